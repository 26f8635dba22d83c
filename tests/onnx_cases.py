"""The cases of ONNX' conformance suite that concern us, and those that are excluded, each with its reason.

The package onnx generates them in process: a model, mostly of one node, with inputs and outputs. Twins called `_expanded`, in which
an operator is written in others, are not counted, nor are cases without a float32 or float64 among inputs and outputs.
"""

import functools
import warnings

#: {operator: why all its cases are excluded}
OPERATORS: dict[str, str] = {}
#: {case: why it is excluded}
CASES: dict[str, str] = {}

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
