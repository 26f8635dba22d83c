"""Models of real exporters as graphs: ONNX' stored cases, PyTorch's among them, give what they should, and again once saved."""

from pathlib import Path

import numpy as np
import onnx_cases
import pytest

import tapeprop as tp
from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load

pytestmark = pytest.mark.conformance

#: Products and powers of two inputs, which no merge is.
TWO_INPUTS = {
    "pytorch-operator/test_operator_addmm",
    "pytorch-operator/test_operator_mm",
    "pytorch-operator/test_operator_pow",
}


def pytest_generate_tests(metafunc):
    """The cases are made only where they are to be run."""
    unwanted = "not conformance" in metafunc.config.getoption("markexpr")
    found = {} if unwanted else onnx_cases.cases()
    metafunc.parametrize("name", [name for name, case in found.items() if "/" in name and not onnx_cases.reason(case)])


def test_stored_case(name, tmp_path: Path):
    case = onnx_cases.cases()[name]
    for inputs, expected in case.data_sets:
        model, given = onnx_cases._with_initialisers(case, [onnx_cases._array(value) for value in inputs])
        if name in TWO_INPUTS:
            with pytest.raises(GraphError, match="use load_function"):
                load(model)
            continue
        graph = load(model)
        x = given if isinstance(graph.root, list) else given[0]
        found = graph(x) if isinstance(graph.term, list) else [graph(x)]
        assert len(found) == len(expected)
        for result, wanted in zip(found, map(onnx_cases._array, expected)):
            assert result.shape == wanted.shape
            np.testing.assert_allclose(result.astype(wanted.dtype), wanted, rtol=case.rtol, atol=case.atol)
        graph.save(tmp_path / "graph")
        again = tp.load(tmp_path / "graph")(x)
        for result, wanted in zip(again if isinstance(graph.term, list) else [again], found):
            np.testing.assert_array_equal(result, wanted)
