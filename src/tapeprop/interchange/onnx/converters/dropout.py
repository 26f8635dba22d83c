"""Dropout as a trained model has it: nothing is dropped."""

from __future__ import annotations

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter


@converter("Dropout", known=[1, 2])
def dropout(node, x, ratio=None, training_mode=None):
    """x itself, and the mask, of ones. GraphError in training_mode with a ratio other than 0."""
    node.get("seed")  # of draws, of which there are none
    share = 0.5 if ratio is None else float(np.asarray(ratio).reshape(()))
    if training_mode is not None and bool(np.asarray(training_mode).reshape(())) and share != 0:
        raise node.fail(
            "training_mode to be false, or a ratio of 0",
            f"training_mode with ratio {share}",
            "export the model for inference, and put tapeprop.layers.Dropout where it trains",
        )
    if not any(node.outputs[1:]):
        return x
    return x, ops.expand(ops.reshape(np.float32(1), (1,) * x.ndim), x.shape)
