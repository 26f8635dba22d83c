"""ONNX' own cases: `make conformance` says how many pass and how many are excluded (tests/onnx_cases.py says why)."""

import onnx_cases
import pytest

from tapeprop.errors import GraphError

pytestmark = pytest.mark.conformance


def pytest_generate_tests(metafunc):
    """The cases are made only where they are to be run: that takes the package seconds."""
    if "name" not in metafunc.fixturenames:
        return
    unwanted = "not conformance" in metafunc.config.getoption("markexpr")
    excluded = metafunc.function is test_excluded_case
    found = {} if unwanted else onnx_cases.cases()
    metafunc.parametrize("name", [name for name, case in found.items() if bool(onnx_cases.reason(case)) == excluded])


def test_case(name):
    onnx_cases.check(onnx_cases.cases()[name])


def test_excluded_case(name):
    """One that passes is excluded no longer."""
    with pytest.raises((AssertionError, GraphError)):
        onnx_cases.check(onnx_cases.cases()[name])


def test_exclusions_name_what_there_is():
    found = onnx_cases.cases()
    operators = {node.op_type for case in found.values() for node in case.model.graph.node}
    assert set(onnx_cases.OPERATORS) <= operators
    assert set(onnx_cases.CASES) | onnx_cases.AS_INITIALISERS <= set(found)
    twice = [
        name
        for name in onnx_cases.CASES
        if any(n.op_type in onnx_cases.OPERATORS for n in found[name].model.graph.node)
    ]
    assert not twice
