"""First values of weights, by name or as functions: see `tapeprop.layers.initializers`."""

from tapeprop.layers.initializers import (
    fans,
    glorot,
    he,
    normal,
    ones,
    orthogonal,
    truncated_normal,
    uniform,
    xavier,
    zeros,
)

__all__ = ["fans", "glorot", "he", "normal", "ones", "orthogonal", "truncated_normal", "uniform", "xavier", "zeros"]
