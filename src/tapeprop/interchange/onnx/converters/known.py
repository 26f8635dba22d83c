"""Operators on known numbers, which are worked out while the model is read: the arithmetic of sizes.

Exporters write x.view(x.shape[0], -1) as Shape, Gather, Unsqueeze, Concat and Reshape. A size that is open until data comes is an
entry of an array of objects, and calculates as `Dim` does.
"""

from __future__ import annotations

import numpy as np

from tapeprop.interchange.onnx.converters.registry import converter


@converter("Shape")
def shape(node, x):
    start, end = node.get("start", 0), node.get("end")
    return sizes(x.shape[start:end])


def sizes(found):
    """An array of sizes: int64, or of objects where one is open."""
    if all(isinstance(size, int) for size in found):
        return np.array(found, np.int64)
    array = np.empty(len(found), object)
    array[:] = list(found)
    return array


@converter("Constant")
def constant(node):
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            value = np.asarray(node.attributes[name])
            return value.astype(np.float32) if name.startswith("value_float") else value
    raise node.fail("a tensor or numbers", ", ".join(node.attributes) or "nothing")
