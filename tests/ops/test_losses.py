"""Losses: the values everyone knows, large logits, labels out of range, kinks, the shortcut for a gradient of one."""

import numpy as np
import pytest
from ops.op_runner import gradient, run, trace

import tapeprop as tp
from tapeprop import ops
from tapeprop.compiler.gradient import gradients
from tapeprop.errors import DTypeError, GraphError, LabelError, ShapeError
from tapeprop.ir import Constant, Input, Tensor, Trace, reachable, recording
from tapeprop.ops.losses.labels import LABEL_OUT_OF_RANGE
from tapeprop.ops.op import failure_text, record
from tapeprop.runtime.formula import Formula

INF, NAN = np.inf, np.nan
Z = np.array([[0.2, 1, -1], [0.5, 0.1, 2]])
ONE_HOT = np.array([[0.0, 1, 0], [1, 0, 0]])


def softmax(z):
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_cross_entropy_of_whole_and_one_hot_labels():
    for labels in (np.array([1, 0]), ONE_HOT):
        assert run(ops.softmax_cross_entropy, Z, labels) == pytest.approx(1.1385756338124233, rel=1e-15)
        found = gradient(ops.softmax_cross_entropy, Z, labels)[0]
        np.testing.assert_allclose(found, (softmax(Z) - ONE_HOT) / 2, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("logits", "label", "loss", "slope"),
    [
        ([1000.0, 0.0, -1000.0], 2, 2000.0, [1, 0, -1]),
        ([1000.0, 0.0, -1000.0], 0, 0.0, [0, 0, 0]),
        ([-1000.0, -1000.0, -1000.0], 1, np.log(3), [1 / 3, -2 / 3, 1 / 3]),
        ([0.0, -INF, 0.0], 0, np.log(2), [-0.5, 0, 0.5]),
        ([0.0, -INF, 0.0], 1, INF, [0.5, -1, 0.5]),
        ([INF, 0.0, 0.0], 0, 0.0, [0, 0, 0]),
        ([INF, 0.0, 0.0], 2, INF, [1, 0, -1]),
        ([0.0, NAN, 0.0], 0, NAN, [NAN] * 3),
    ],
)
def test_cross_entropy_at_the_ends(logits, label, loss, slope, dtype):
    z = np.array([logits], dtype)
    for labels in (np.array([label]), np.eye(3, dtype=dtype)[[label]]):
        found, (dz,) = Formula(ops.softmax_cross_entropy).value_and_gradient([z, labels], dtype)
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        np.testing.assert_allclose(found[0], loss, rtol=tolerance)
        np.testing.assert_allclose(dz[0], slope, rtol=tolerance)
        assert dz.dtype == found[0].dtype == dtype


def test_soft_labels_need_not_sum_to_one():
    weights = np.array([[0.2, 0.3, 0.0], [1.0, 2.0, 0.5]])
    logs = np.log(softmax(Z))
    assert run(ops.softmax_cross_entropy, Z, weights) == pytest.approx(-(weights * logs).sum() / 2)
    found = gradient(ops.softmax_cross_entropy, Z, weights)
    np.testing.assert_allclose(found[0], (softmax(Z) * weights.sum(1, keepdims=True) - weights) / 2)
    np.testing.assert_allclose(found[1], -logs / 2)


def test_a_gradient_of_one_costs_no_instruction():
    with recording(Trace("float64", True)) as recorded:
        logits = Tensor((4, 3), "float64", source=Input(0))
        loss = ops.softmax_cross_entropy(logits, Tensor((4,), "int64", source=Input(1)))
        one, two = recorded.constant(np.array(1.0)), recorded.constant(np.array(2.0))
        assert isinstance(one.source, Constant)
        plain, doubled = (gradients({loss: seed}, [logits])[logits] for seed in (one, two))
    assert [call.op.name for call in reachable([plain])] == ["softmax_cross_entropy"]
    assert [call.op.name for call in reachable([doubled])] == ["softmax_cross_entropy", "elementwise"]


def test_a_weighted_loss_has_a_weighted_gradient():
    labels = np.array([1, 0])
    once = gradient(ops.softmax_cross_entropy, Z, labels)[0]
    np.testing.assert_allclose(gradient(lambda z, y: 3.0 * ops.softmax_cross_entropy(z, y), Z, labels)[0], 3 * once)
    both = gradient(lambda z, y: ops.softmax_cross_entropy(z, y) + ops.nll(ops.log_softmax(z), y), Z, labels)[0]
    np.testing.assert_allclose(both, 2 * once)


def test_nll_is_the_other_half_of_cross_entropy():
    for labels in (np.array([1, 0]), ONE_HOT):
        value = run(lambda z, y: ops.nll(ops.log_softmax(z), y), Z, labels)
        assert value == pytest.approx(1.1385756338124233, rel=1e-15)
        found = gradient(lambda z, y: ops.nll(ops.log_softmax(z), y), Z, labels)[0]
        np.testing.assert_allclose(found, (softmax(Z) - ONE_HOT) / 2, rtol=1e-13)


def test_nll_of_an_impossible_class_that_has_no_weight():
    logs = np.array([[0.0, -INF]])
    for labels in (np.array([0]), np.array([[1.0, 0.0]])):
        assert run(ops.nll, logs, labels) == 0
    assert run(ops.nll, logs, np.array([1])) == INF


@pytest.mark.parametrize("bad", [3, -1, 2**40, -(2**62)])
@pytest.mark.parametrize("loss", [ops.softmax_cross_entropy, ops.nll])
def test_a_label_out_of_range_is_an_error_and_is_not_read_with(loss, bad):
    good = np.array([0, 2])
    formula = Formula(loss)
    before = formula.value_and_gradient([Z, good], "float64")
    with pytest.raises(LabelError, match=r"outside 0 \.\. classes - 1"):
        formula.value_and_gradient([Z, np.array([0, bad])], "float64")
    after = formula.value_and_gradient([Z, good], "float64")
    assert before[0] == after[0]
    call = trace(loss, [Z, good])[1][0].producer.operands[0].producer
    from tapeprop.compiler.interpret import call_of

    with pytest.raises(LabelError, match=r"0 \.\. 2"):
        call.op.reference(call_of(call, {}), Z, np.array([0, bad]))


def test_the_code_is_known_to_the_runtime():
    assert failure_text(LABEL_OUT_OF_RANGE)[0] == "label"


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "nll"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3,), "int64"), ((2, 1), "int64"), ((2, 4), "float64"), ((2, 3), "float32"), ((2,), "float64")],
)
def test_labels_that_do_not_fit(name, shape, dtype):
    with pytest.raises(LabelError, match=rf"{name}: expected labels int64 \(2,\) or float64 \(2, 3\), got {dtype}"):
        getattr(ops, name)(Tensor((2, 3), "float64", source=Input(0)), Tensor(shape, dtype, source=Input(1)))


def test_logits_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"rank 2 \(N, C\)"):
        ops.softmax_cross_entropy(Tensor((2,), "float64", source=Input(0)), Tensor((2,), "int64", source=Input(1)))
    with pytest.raises(DTypeError, match="int64"):
        ops.nll(Tensor((2, 3), "int64", source=Input(0)), Tensor((2,), "int64", source=Input(1)))


def test_the_mean_is_summed_in_float64():
    # 2^24 + 1 is no float32: a float32 sum of 1.0 after 2^24 would stand still
    losses = np.full(300_000, 100.0, np.float32)
    losses[0] = 2.0**30
    wanted = losses.mean(dtype=np.float64)
    logs = np.stack([-losses, -losses], 1)
    assert run(ops.nll, logs, np.zeros(losses.size, np.int64)) == pytest.approx(wanted, rel=1e-7)


# ---- compositions

P, T = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[1.0, 1.0], [-1.0, -1.0]])


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (ops.mse, (0 + 9 + 2.25 + 16) / 4, [[0, -6], [3, 8]]),
        (ops.mae, (0 + 3 + 1.5 + 4) / 4, [[0, -1], [1, 1]]),
        (ops.hinge, (0 + 3 + 1.5 + 4) / 4, [[0, -1], [1, 1]]),
        (ops.huber, (0 + 2.5 + 1 + 3.5) / 4, [[0, -1], [1, 1]]),
        (lambda p, t: ops.huber(p, t, 3.0), (0 + 4.5 + 1.125 + 7.5) / 4, [[0, -3], [1.5, 3]]),
    ],
)
def test_value_and_slope(loss, value, slope):
    assert run(loss, P, T) == pytest.approx(value)
    np.testing.assert_allclose(gradient(loss, P, T)[0], np.array(slope) / 4)


def test_hinge_has_no_slope_at_its_kink():
    one = np.array([[1.0, -1.0]])
    np.testing.assert_array_equal(gradient(ops.hinge, one, one)[0], [[0, 0]])


@pytest.mark.parametrize("loss", [ops.mse, ops.mae, ops.hinge, ops.huber, ops.binary_cross_entropy])
def test_compositions_let_nan_through_and_check_shapes(loss):
    assert np.isnan(run(loss, np.array([[NAN, 1.0]]), np.array([[1.0, 1.0]])))
    with pytest.raises(ShapeError, match=r"y_true of y_pred's shape \(4, 1\), got \(4,\)"):
        loss(Tensor((4, 1), "float64", source=Input(0)), Tensor((4,), "float64", source=Input(1)))
    with pytest.raises(DTypeError, match="float"):
        loss(Tensor((4,), "float64", source=Input(0)), Tensor((4,), "float32", source=Input(1)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_binary_cross_entropy_of_large_logits(dtype):
    x = np.array([1000, 1000, -1000, -1000, 0, 0, 20], dtype)
    t = np.array([1, 0, 1, 0, 1, 0, 1], dtype)
    for i, wanted in enumerate([0, 1000, 1000, 0, np.log(2), np.log(2), np.log1p(np.exp(-20))]):
        found = run(ops.binary_cross_entropy, x[i : i + 1], t[i : i + 1])
        np.testing.assert_allclose(found, wanted, rtol=1e-6 if dtype == "float32" else 1e-14)
    slopes = gradient(ops.binary_cross_entropy, x.astype(np.float64), t.astype(np.float64))[0] * x.size
    np.testing.assert_allclose(slopes, [0, 1, -1, 0, -0.5, 0.5, -1 / (1 + np.exp(20))], rtol=1e-7, atol=1e-15)


def test_kl_divergence():
    p = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    q = np.array([[0.25, 0.5, 0.25], [0.3, 0.3, 0.4]])
    wanted = (0.5 * np.log(2) + 0.2 * np.log(2 / 3) + 0.5 * np.log(1.25)) / 2
    assert run(ops.kl_divergence, q, p) == pytest.approx(wanted)
    np.testing.assert_allclose(gradient(ops.kl_divergence, q, p)[0], -p / q / 2)
    of_logs = lambda logs, truth: ops.kl_divergence(logs, truth, log_predictions=True)  # noqa: E731
    assert run(of_logs, np.log(q), p) == pytest.approx(wanted)
    np.testing.assert_allclose(gradient(of_logs, np.log(q), p)[0], -p / 2)


def test_kl_divergence_of_impossible_classes():
    q = np.array([[1.0, 0.0]])
    assert run(ops.kl_divergence, q, np.array([[1.0, 0.0]])) == 0
    assert run(ops.kl_divergence, q, np.array([[0.5, 0.5]])) == INF
    np.testing.assert_array_equal(gradient(ops.kl_divergence, q, np.array([[1.0, 0.0]]))[0], [[-1, 0]])


@pytest.mark.parametrize("bad", [3, -1, 2**40])
@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: ops.softmax_cross_entropy(z, y, [1.0, 2.0, 0.5], 0.1, -100),
        lambda z, y: ops.nll(z, y, [1.0, 2.0, 0.5], -100),
    ],
    ids=["softmax_cross_entropy", "nll"],
)
def test_a_label_out_of_range_is_an_error_with_weights_too(loss, bad):
    formula = Formula(loss)
    before = formula.value_and_gradient([Z, np.array([-100, 2])], "float64")
    with pytest.raises(LabelError, match=r"outside 0 \.\. classes - 1"):
        formula.value_and_gradient([Z, np.array([0, bad])], "float64")
    assert formula.value_and_gradient([Z, np.array([-100, 2])], "float64")[0] == before[0]


@pytest.mark.parametrize("name", ["weighted_cross_entropy", "weighted_nll", "weighted_nll_grad"])
def test_class_weights_have_no_gradient(name):
    z, w = Tensor((2, 3), "float64", source=Input(0)), Tensor((3,), "float64", source=Input(2))
    operands = [z, Tensor((2,), "int64", source=Input(1)), w]
    if name == "weighted_nll_grad":
        operands[:2] = [operands[1], Tensor((2,), "float64", source=Input(0))]
    with pytest.raises(
        GraphError, match=f"{name} has no gradient by the class weights; write the formula in other ops"
    ):
        tp.gradients([record(name, operands, {"smoothing": 0.0, "ignore": None})[0]], [w])


def test_class_weights_that_do_not_fit():
    z, y = Tensor((2, 3), "float64", source=Input(0)), Tensor((2,), "int64", source=Input(1))
    with pytest.raises(ShapeError, match=r"class_weights of shape \(3,\), one for each class, got shape \(2,\)"):
        ops.softmax_cross_entropy(z, y, class_weights=[1.0, 2.0])
    with pytest.raises(
        LabelError, match="nll: ignore_index=1 is a class number, got labels with a weight for each class"
    ):
        ops.nll(z, z, ignore_index=1)
