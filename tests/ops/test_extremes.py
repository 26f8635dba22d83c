"""NaN, infinities, thousands and denormals go through every kernel of the catalogue as through its reference."""

import numpy as np
import pytest
from ops.kernel_harness import run_rows
from ops.test_catalogue import CASES, _in_float64, compare, has_kernel, make_call

from tapeprop.ops import registry

pytestmark = pytest.mark.conformance

KINDS = ("nan", "infinity", "large and small")
DENORMAL = {"float32": 1e-40, "float64": 1e-310}
#: Ops whose terms are arranged in another way than the reference's: where this is not finite they may be finite, or NaN for
#: infinity. But they are finite wherever it is.
REARRANGED = {
    "batch_norm": "a running value moves by rate * (new - old)",
    "batch_norm_grad": "the terms of dx are joined per channel before they meet dy and x",
    "row_norm": "means of chunks are merged by their differences",
    "row_norm_grad": "the terms of dx are joined per row before they meet dy and x",
    "conv2d_winograd": "the zeros of its transforms are not multiplied with",
    "winograd_filters": "the zeros of its transform are not multiplied with",
}
#: {op: operand} that may meet zeros which are not there in the reference, or are there only: what is finite goes through.
FINITE = {
    "conv2d_input_grad": 1, "conv3d_input_grad": 1,  # of padding
    "conv2d_lanes": 1, "conv2d_lanes_input_grad": 1, "conv2d_lanes_weight_grad": 1,  # of padding
    "weighted_cross_entropy": 2, "weighted_nll": 2, "weighted_nll_grad": 2, "scaled_class_weights": 1,  # of other classes
}  # fmt: skip
#: {op: operands} that have to agree with one another, or to be whole numbers.
NOT_FREE = {"max_pool2d_lanes_grad": (0, 1), "whole_numbers": (0,)}


def spoiled(array: np.ndarray, kind: str, turn: int) -> np.ndarray:
    """A copy with extremes at a few places."""
    copy = array.copy()
    flat = copy.reshape(-1)
    tiny = DENORMAL[str(array.dtype)]
    values = {
        "nan": [np.nan],
        "infinity": [[np.inf], [-np.inf], [np.inf, -np.inf]][turn % 3],
        "large and small": [1000.0, -1000.0, tiny, -tiny, 0.0],
    }[kind]
    places = np.random.default_rng(turn).choice(flat.size, min(flat.size, len(values)), replace=False)
    flat[places] = values[: len(places)]
    return copy


def check_extremes(op, call, arrays, sample, dtype):
    """Asserts that the kernels compute what the reference does from these operands, NaN and infinity included."""
    exact = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    with np.errstate(all="ignore"):
        expected = op.reference(_in_float64(call), *exact)
    found = run_rows(op.cpu_rows(call), call, arrays, 2)
    for value, wanted, kind in zip(found, expected, call.results, strict=True):
        wanted = np.asarray(wanted).reshape(kind.shape)
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(value, wanted)
            continue
        if op.name in REARRANGED:
            broken = ~np.isfinite(wanted)
            assert broken[~np.isfinite(value)].all(), "not finite where the reference is"
            value, wanted = np.where(broken, 0, value), np.where(broken, 0, wanted)
        with np.errstate(over="ignore"):
            wanted = wanted.astype(value.dtype)
        compare(value, wanted, exact, str(value.dtype), sample.depth, dtype)


@pytest.mark.parametrize(("op", "number"), CASES)
def test_extremes_go_through_as_in_the_reference(op, number):
    """Each operand in turn gets NaN, infinities, or thousands and denormals at a few places.

    A sample meets one kind in float32 and the next in float64; all kinds with each sample would take minutes.
    """
    if not has_kernel(op):
        return
    for turn, dtype in enumerate(("float32", "float64")):
        call, arrays, sample, _, _ = make_call(op, number, dtype)
        for k, array in enumerate(arrays):
            kind = KINDS[(number + k + turn) % len(KINDS)]
            if array.dtype.kind != "f" or not array.size or k in NOT_FREE.get(op.name, ()):
                continue
            if FINITE.get(op.name) == k:
                kind = "large and small"
            changed = [spoiled(a, kind, number + k) if i == k else a for i, a in enumerate(arrays)]
            try:
                check_extremes(op, call, changed, sample, dtype)
            except AssertionError as error:
                raise AssertionError(f"{dtype}, {kind} in operand {k}: {error}") from None


def test_exceptions_name_ops_that_there_are():
    assert set(registry) >= {*REARRANGED, *FINITE, *NOT_FREE}
