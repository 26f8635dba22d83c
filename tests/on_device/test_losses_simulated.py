"""CUDA kernels of the losses: the CPU's values at the ends, labels out of range, small losses, memory shared with logits."""

import numpy as np
import pytest
from on_device.calls import on_cpu, on_cuda, reported

from tapeprop.ops.losses.labels import CLASSES_OF_A_THREAD, LABEL_OUT_OF_RANGE

pytestmark = pytest.mark.cuda

INF, NAN = np.inf, np.nan
ENDS = np.array(
    [
        [1000.0, 0.0, -1000.0],
        [-1000.0, -1000.0, -1000.0],
        [0.0, -INF, 0.0],
        [INF, 0.0, INF],
        [-INF, -INF, -INF],
        [0.0, NAN, 0.0],
        [3.0, 3.0, 3.0],
    ]
)
WIDTHS = [3, CLASSES_OF_A_THREAD + 3]  # a thread's row, and a block's


def widened(rows, width, fill):
    """(N, C) with columns of `fill` behind, up to `width`."""
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=fill)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dense", [False, True])
def test_cross_entropy_at_the_ends_is_the_cpus(width, dtype, dense):
    logits = widened(ENDS, width, -INF).astype(dtype)
    labels = np.array([2, 1, 1, 0, 0, 1, 2])
    if dense:
        labels = widened(np.eye(3)[labels] * 0.75 + np.array([0.0, 0.25, 0.0]), width, 0.0).astype(dtype)
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for found, wanted in zip(
        on_cuda("softmax_cross_entropy", logits, labels), on_cpu("softmax_cross_entropy", logits, labels), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_small_loss_keeps_its_digits_in_float32(width):
    logits = widened(np.array([[18.0, 0.0]]), width, -INF).astype("float32")
    loss, slope = on_cuda("softmax_cross_entropy", logits, np.array([0]))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-18.0)), rtol=1e-6)
    np.testing.assert_allclose(slope[0, 1], np.exp(-18.0) / (1 + np.exp(-18.0)), rtol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dense", [False, True])
def test_the_gradient_may_take_the_place_of_the_logits(width, dense):
    random = np.random.default_rng(0)
    logits = random.standard_normal((5, width)).astype("float32")
    labels = random.uniform(0, 1, (5, width)).astype("float32") if dense else random.integers(0, width, 5)
    (rows, slopes), code = reported("softmax_cross_entropy", logits, labels, inplace=[(1, 0)])
    assert code == 0
    apart = on_cuda("softmax_cross_entropy", logits, labels)
    np.testing.assert_array_equal(rows, apart[0])
    np.testing.assert_array_equal(slopes, apart[1])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("label", [-1, 2**40, None])
def test_a_label_out_of_range_is_reported_and_its_loss_is_nan(width, label):
    label = width if label is None else label
    random = np.random.default_rng(0)
    logits, labels = random.standard_normal((4, width)), np.array([0, label, 2, 1])
    (rows, slopes), code = reported("softmax_cross_entropy", logits, labels)
    assert code == LABEL_OUT_OF_RANGE
    assert np.isnan(rows[1])
    powers = np.exp(logits[1])
    np.testing.assert_allclose(slopes[1], powers / powers.sum() / 4)
    (rows,), code = reported("nll", logits, labels)
    assert code == LABEL_OUT_OF_RANGE
    np.testing.assert_array_equal(rows[:2], [-logits[0, 0], NAN])
    assert reported("nll_grad", labels, np.array([1.0, 2, 3, 4]), classes=width)[1] == LABEL_OUT_OF_RANGE


@pytest.mark.parametrize("width", WIDTHS)
def test_a_class_of_no_weight_costs_nothing(width):
    logs = widened(np.array([[-INF, -1.0, NAN]]), width, NAN)
    weights = widened(np.array([[0.0, 2.0, 0.0]]), width, 0.0)
    np.testing.assert_array_equal(on_cuda("nll", logs, weights)[0], [2.0])


def test_indices_of_2_to_the_31_and_more_are_divided(monkeypatch):
    monkeypatch.setattr("tapeprop.ops.losses.spec.NARROW", 0)
    found = on_cuda("nll_grad", np.array([2, 0, 1]), np.array([1.0, 2, 3]), classes=3)[0]
    np.testing.assert_array_equal(found, -np.array([[0.0, 0, 1], [2, 0, 0], [0, 3, 0]]))


def test_a_mean_of_many_losses_is_summed_in_float64():
    rows = np.full(999, 0.1, np.float32)
    rows[0] = 2.0**20
    assert on_cuda("mean_loss", rows)[0] == np.float32(rows.astype(np.float64).mean())


# ---- class weights, smoothing, labels left out

SPREAD = {"smoothing": 0.25, "ignore": -7}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weighted_cross_entropy_at_the_ends_is_the_cpus(width, dtype):
    logits = widened(ENDS, width, -INF).astype(dtype)
    labels, weights = np.array([2, 1, -7, 0, 0, 1, -7]), np.zeros(width, dtype)
    weights[:3] = 0.5, 2, 1
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    operands = (logits, labels, weights)
    for found, wanted in zip(
        on_cuda("weighted_cross_entropy", *operands, **SPREAD),
        on_cpu("weighted_cross_entropy", *operands, **SPREAD),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_weighted_gradient_may_take_the_place_of_the_logits(width):
    random = np.random.default_rng(0)
    operands = random.standard_normal((5, width)), np.array([0, -7, 2, 1, 1]), random.uniform(0.5, 2, width)
    (rows, slopes), code = reported("weighted_cross_entropy", *operands, inplace=[(1, 0)], **SPREAD)
    assert code == 0
    apart = on_cuda("weighted_cross_entropy", *operands, **SPREAD)
    np.testing.assert_array_equal(rows, apart[0])
    np.testing.assert_array_equal(slopes, apart[1])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("label", [-1, 2**40, None])
def test_a_weighted_label_out_of_range_is_reported_and_its_loss_is_nan(width, label):
    label = width if label is None else label
    logits, labels, weights = np.zeros((4, width)), np.array([0, label, -7, 1]), np.ones(width)
    (rows, slopes), code = reported("weighted_cross_entropy", logits, labels, weights, **SPREAD)
    assert code == LABEL_OUT_OF_RANGE
    np.testing.assert_array_equal(np.isnan(rows), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(slopes).all(1), [False, True, False, False])
    (rows,), code = reported("weighted_nll", logits, labels, weights, **SPREAD)
    assert code == LABEL_OUT_OF_RANGE
    np.testing.assert_array_equal(np.isnan(rows), [False, True, False, False])
    assert reported("weighted_nll_grad", labels, np.ones(4), weights, **SPREAD)[1] == LABEL_OUT_OF_RANGE
    assert reported("scaled_class_weights", labels, weights, ignore=-7)[1] == LABEL_OUT_OF_RANGE


def test_weights_of_many_labels_are_summed_by_several_blocks():
    labels = np.random.default_rng(0).integers(0, 3, 999)
    weights = np.array([0.5, 2.0, 1.0])
    found = on_cuda("scaled_class_weights", labels, weights, ignore=None)[0]
    np.testing.assert_allclose(found, weights * 999 / weights[labels].sum(), rtol=1e-14)
