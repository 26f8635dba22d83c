"""ONNX' own cases: `make conformance` says how many pass and how many are excluded (tests/onnx_cases.py says why)."""

import numpy as np
import pytest
from onnx_cases import cases, reason

from tapeprop.interchange.onnx import load_function

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("name", [name for name, case in cases().items() if not reason(case)])
def test_node_case(name):
    case = cases()[name]
    run = load_function(case.model)
    for inputs, expected in case.data_sets:
        given = [array.astype("uint8") if array.dtype == bool else array for array in inputs]
        results = run(*given)
        results = results if isinstance(results, list | tuple) else [results]
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected):
            found = np.asarray(result)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found.astype(wanted.dtype), wanted, rtol=case.rtol, atol=case.atol)
