"""docs/onnx.md lists what the registry has."""

import onnx_table
import pytest


def test_the_table_is_that_of_the_registry() -> None:
    """Else: python tests/onnx_table.py"""
    assert [row[:-1] for row in onnx_table.shown()] == onnx_table.rows()


@pytest.mark.conformance
def test_the_table_counts_the_cases() -> None:
    passed = onnx_table.counts()
    assert {row[0]: row[-1] for row in onnx_table.shown()} == {
        row[0]: str(passed[row[0].strip("`")] or "") for row in onnx_table.rows()
    }
