"""The only place that imports the package onnx, which is an extra."""

from __future__ import annotations

from typing import Any

from tapeprop.errors import GraphError

__all__ = ["onnx_package"]


def onnx_package(what: str) -> Any:
    """The module onnx. GraphError, saying how to get it, where it is not installed. what: who asks."""
    try:
        import onnx
    except ImportError as error:
        raise GraphError(
            f'{what}: needs the package onnx, which is not installed; install it with: pip install "tapeprop[onnx]"'
        ) from error
    return onnx
