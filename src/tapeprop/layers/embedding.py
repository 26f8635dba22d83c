"""Tokens as vectors, and where in a sequence they stand."""

from __future__ import annotations

import functools

import numpy as np

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Dim, Tensor, UndecidedError
from tapeprop.ir.dims import text
from tapeprop.layers import arguments, initializers
from tapeprop.layers.initializers import Initializer
from tapeprop.layers.layer import Layer, misfit


class Embedding(Layer):
    """A row of a table for each token: (...) -> (..., features) (torch.nn.Embedding).

    Tokens are whole numbers from 0 to num_embeddings - 1: integers, or floats, as which integer inputs reach a graph. Another
    number ends the call with an error. padding_idx: a token whose row is zeros at first and gets no gradient.

    weight: (num_embeddings, features), normal with variance 1 at first. Tokens that come repeatedly add their gradients in
    order. GraphError for arguments out of range; DTypeError, in trace, for more than 2^24 rows in a graph of float32, which has no
    place for larger whole numbers.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        padding_idx: int | None = None,
        initializer: str | Initializer = "standard_normal",
        random_state: int | None = None,
    ):
        self.num_embeddings = arguments.whole("Embedding", "num_embeddings", num_embeddings)
        self.features = arguments.whole("Embedding", "features", features)
        if padding_idx is not None and arguments.whole("Embedding", "padding_idx", padding_idx, 0) >= num_embeddings:
            raise GraphError(
                f"Embedding: expected padding_idx below num_embeddings={num_embeddings}, got {padding_idx}"
            )
        self.padding_idx = padding_idx
        self.initializer = initializer
        self.random_state = arguments.seed("Embedding", "random_state", random_state)
        first = initializers.find(initializer)
        if padding_idx is not None:
            first = functools.partial(_without_row, first, padding_idx)
        self.weight = self.parameter((self.num_embeddings, self.features), first, name="weight")

    def trace(self, x: Tensor) -> Tensor:
        """x: tokens, of any shape. Gives (*x.shape, features)."""
        return ops.embedding(self.weight, x, self.padding_idx)


def _without_row(
    initializer: Initializer, row: int, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """What the initializer draws, with zeros in one row."""
    values = np.array(initializer(shape, generator), np.float64)
    values[row] = 0.0
    return values


class PositionalEncoding(Layer):
    """x + P: (N, L, features) -> the same, P[l, 2 i] = sin(l / 10000^(2 i / features)), P[l, 2 i + 1] the cosine.

    Vaswani et al. 2017, Attention Is All You Need, 3.5. max_length: the longest L. GraphError for arguments out of range;
    ShapeError, in trace, for another rank, another number of features, or a longer sequence.
    """

    keeps_shape = True

    def __init__(self, features: int, max_length: int = 5000):
        self.features = arguments.whole("PositionalEncoding", "features", features)
        self.max_length = arguments.whole("PositionalEncoding", "max_length", max_length)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, L, features)."""
        if x.ndim != 3 or x.shape[2] != self.features:
            raise misfit(f"{self!r} expects (N, L, {self.features}), got {text(x.shape)}: give sequences of vectors")
        length = x.shape[1]
        if isinstance(length, Dim):
            raise UndecidedError(f"the length {length} of sequences for PositionalEncoding")
        if length > self.max_length:
            raise misfit(
                f"PositionalEncoding expects sequences of at most {self.max_length} elements, got {text(x.shape)}: "
                f"write {self.written(max_length=length)}"
            )
        return x + _waves(length, self.features)


def _waves(length: int, features: int) -> np.ndarray:
    """P, (length, features)."""
    even = np.arange(0, features, 2)
    angles = np.arange(length)[:, None] / 10000.0 ** (even / features)
    waves = np.empty((length, features))
    waves[:, 0::2] = np.sin(angles)
    waves[:, 1::2] = np.cos(angles)[:, : features // 2]
    return waves
