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
OPERATORS: dict[str, str] = {}
#: {case: why it is excluded}
CASES: dict[str, str] = {}
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
        found = CONVERTERS.get(node.op_type)
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
