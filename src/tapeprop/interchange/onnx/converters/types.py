"""Casts of data. Whole numbers are int64 here, whatever their width in the file; truth values are numbers, 0 and 1."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.known import dtype_of
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import FLOATS, as_mask
from tapeprop.ir import Tensor
from tapeprop.ops.expression import floor, where


def _cast(node, x, dtype):
    for name in ("saturate", "round_mode"):
        node.get(name)  # of 8-bit floats, which are refused
    if dtype in FLOATS:
        return ops.cast(x, dtype)
    if dtype == x.dtype or (dtype, x.dtype) == ("int32", "int64"):
        return x
    if dtype == "bool":
        x = as_mask(x, "float32" if x.dtype == "uint8" else "float64")
        return ops.select(x, 1.0, 0.0)
    if dtype == "int64" and x.dtype in FLOATS:  # towards zero; what int64 does not hold stops the run
        (whole,) = ops.compute(lambda a: where(a < 0, -floor(-a), floor(a)), x, label="truncate")
        return ops.record("whole_numbers", [whole])[0]
    raise node.fail("float32, float64, int64 or bool to cast data to", f"{x.dtype} to {dtype}", "leave the cast out")


@converter("Cast")
def cast(node, x):
    return _cast(node, x, str(dtype_of(node, node.get("to"))))


@converter("CastLike", either=[1])
def cast_like(node, x, like):
    return _cast(node, x, like.dtype if isinstance(like, Tensor) else str(like.dtype))
