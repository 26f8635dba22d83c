"""The cases of ONNX' conformance suite that concern us, and those that are excluded, each with its reason.

The package onnx generates them in process: a model, mostly of one node, with inputs and outputs. Twins called `_expanded`, in which
an operator is written in others, are not counted, nor are cases without a float32 or float64 among inputs and outputs.
"""

import functools
import warnings

import numpy as np

from tapeprop.interchange.onnx import load_function
from tapeprop.interchange.onnx.converters import CONVERTERS

#: {operator: why all its cases are excluded}
OPERATORS: dict[str, str] = {
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "tapeprop has no recurrent layers yet"),
    **dict.fromkeys(("Attention", "FlexAttention", "LinearAttention"), "tapeprop has no attention layer yet"),
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
    "test_causal_conv_with_state_kernel_size_one": "its state has no elements, which no tensor of tapeprop has",
    **dict.fromkeys(
        ("test_maxpool_with_argmax_2d_precomputed_pads", "test_maxpool_with_argmax_2d_precomputed_strides"),
        "asks for the places of maxima, which tapeprop's pools do not give",
    ),
}
#: Cases whose whole numbers are given as initialisers, as exporters write them: as data they would be refused.
AS_INITIALISERS = {"test_gather_negative_indices"}

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


def check(case):
    """Runs a case. AssertionError where a result is another one; GraphError where the model is not read.

    Sizes, axes and the like, which the suite feeds, are made initialisers: real models have them there.
    """
    for inputs, expected in case.data_sets:
        model, given = _with_initialisers(case, inputs)
        run = load_function(model)
        results = run(*given)
        results = results if isinstance(results, list | tuple) else [results]
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected):
            found = np.asarray(result)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found.astype(wanted.dtype), wanted, rtol=case.rtol, atol=case.atol)


def _with_initialisers(case, inputs):
    """(the model with the inputs that have to be known as initialisers, the other inputs)."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    known = set()
    for node in model.graph.node:
        found = CONVERTERS.get("Resize" if node.op_type == "Upsample" else node.op_type)  # which it is converted to
        for place, name in enumerate(node.input):
            if found and (found.needs(place) or (place in found.either and case.name in AS_INITIALISERS)):
                known.add(name)
    given = []
    for value, array in zip(model.graph.input, inputs):
        if value.name in known:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        else:
            given.append(array)
    return model, given
