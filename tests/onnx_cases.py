"""The cases of ONNX' conformance suite that concern us, and those that are excluded, each with its reason.

The package onnx generates them in process: a model, mostly of one node, with inputs and outputs. Twins called `_expanded`, in which
an operator is written in others, are not counted, nor are cases without a float32 or float64 among inputs and outputs.
"""

import functools
import warnings

#: {operator: why all its cases are excluded}
OPERATORS: dict[str, str] = {
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "tapeprop has no recurrent layers yet"),
    **dict.fromkeys(("Attention", "FlexAttention"), "tapeprop has no attention layer yet"),
    "RotaryEmbedding": "belongs to attention, of which tapeprop has no layer yet",
    **dict.fromkeys(("GridSample", "AffineGrid", "DeformConv"), "sampling at computed places is no op of tapeprop"),
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), "pooling of regions that data chooses is no op of tapeprop"),
    "MaxUnpool": "needs the places of maxima, which tapeprop's pools do not give",
    "Col2Im": "adding up overlapping blocks is no op of tapeprop",
}
#: {case: why it is excluded}
CASES: dict[str, str] = {
    **dict.fromkeys(
        (
            "test_training_dropout",
            "test_training_dropout_default",
            "test_training_dropout_default_mask",
            "test_training_dropout_mask",
        ),
        "expects the very draws of NumPy's generator; training with Dropout is a layer's, not a file's",
    ),
    **dict.fromkeys(
        ("test_maxpool_with_argmax_2d_precomputed_pads", "test_maxpool_with_argmax_2d_precomputed_strides"),
        "asks for the places of maxima, which tapeprop's pools do not give",
    ),
}

_FLOATS = {1, 11}  # TensorProto.FLOAT, DOUBLE


@functools.cache
def cases():
    """{name: case} of the node cases in scope."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the suite's own arithmetic: casts that overflow
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return {case.name: case for case in found if case.model is not None and _counts(case)}


def _counts(case):
    graph = case.model.graph
    kinds = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    return "_expanded" not in case.name and bool(kinds & _FLOATS)


def reason(case):
    """Why a case is excluded; "" where it has to pass."""
    return CASES.get(case.name) or next(
        (OPERATORS[n.op_type] for n in case.model.graph.node if n.op_type in OPERATORS), ""
    )
