"""Prediction and evaluation over whole data sets, and the checks of what goes in."""

from __future__ import annotations

import numpy as np
import pytest
from training.fakes import PlainCrossEntropy, PlainGraph, PlainMSE, blobs

from tapeprop.errors import DTypeError, LabelError, ShapeError
from tapeprop.training.data import real_array
from tapeprop.training.evaluate import evaluate, predict

X, Y = blobs(70)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 70, 1000])
def test_predict_is_one_forward_whatever_the_batches(batch_size) -> None:
    graph = PlainGraph()
    found = predict(graph, X, batch_size)
    np.testing.assert_allclose(found, X @ graph.weights[0], rtol=1e-12)
    assert found.dtype == np.float64
    assert graph.inferred == 70


def test_predict_gives_lists_where_the_graph_has_a_list_of_terms() -> None:
    one, two = PlainGraph(listed=True), PlainGraph(outputs=("a", "b"))
    assert [y.shape for y in predict(one, X)] == [(70, 3)]
    assert [y.shape for y in predict(two, X, 32)] == [(70, 3)] * 2


def test_predict_takes_a_dict_and_what_can_be_an_array() -> None:
    graph = PlainGraph()
    np.testing.assert_array_equal(predict(graph, {"in": X}), predict(graph, X.tolist()))


def test_predict_refuses_outputs_without_rows() -> None:
    class Total(PlainGraph):
        def infer(self, arrays):
            return [y.sum(axis=0) for y in super().infer(arrays)]

    with pytest.raises(ShapeError, match=r"node 'out': its output has shape \(3,\) for 70 samples; .* use forward\(\)"):
        predict(Total(), X)


def test_predict_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        predict(PlainGraph(), X, 0)
    with pytest.raises(DTypeError, match="X of node 'in': expected real numbers, received dtype <U1"):
        predict(PlainGraph(), [["a"]])
    with pytest.raises(ShapeError, match="at least one sample along axis 0"):
        predict(PlainGraph(), np.zeros((0, 4)))
    with pytest.raises(ShapeError, match="at least one sample along axis 0"):
        predict(PlainGraph(), 3.0)


def test_evaluate() -> None:
    graph = PlainGraph()
    z = X @ graph.weights[0]
    found = evaluate(graph, X, Y, loss=PlainCrossEntropy(), metrics=["accuracy", "top5_accuracy"], batch_size=16)
    assert found == {
        "loss": pytest.approx(PlainCrossEntropy()(Y, z), rel=1e-14),
        "accuracy": np.mean(z.argmax(1) == Y),
        "top5_accuracy": 1.0,
    }


def test_evaluate_several_outputs() -> None:
    graph = PlainGraph(outputs=("a", "b"))
    one_hot = np.eye(3)[Y]
    found = evaluate(
        graph, X, {"a": Y, "b": one_hot}, loss={"a": PlainCrossEntropy(), "b": PlainMSE()}, loss_weights=[2.0, 3.0]
    )
    assert list(found) == ["loss", "a_loss", "a_accuracy", "b_loss"]
    assert found["loss"] == pytest.approx(2 * found["a_loss"] + 3 * found["b_loss"])
    assert found["b_loss"] == pytest.approx(np.square(X @ graph.weights[1] - one_hot).mean())


def test_metrics_see_the_labels_as_they_were_given() -> None:
    seen = []

    def metric(y_true, y_pred):
        seen.append((y_true, y_pred))
        return np.float32(1.5)

    found = evaluate(PlainGraph(), X, Y.astype(np.uint8), loss=PlainCrossEntropy(), metrics=[metric])
    assert found["metric"] == 1.5
    assert seen[0][0].dtype == np.uint8
    assert seen[0][1].shape == (70, 3)


def test_a_metric_has_to_give_one_real_number() -> None:
    def per_class(y_true, y_pred):
        return y_pred.mean(axis=0)

    with pytest.raises(
        TypeError, match=r"metric 'per_class': expected one real number, received float64 of shape \(3,\)"
    ):
        evaluate(PlainGraph(), X, Y, loss=PlainCrossEntropy(), metrics=[per_class])


def test_outputs_without_a_row_per_sample_are_refused() -> None:
    class Flat(PlainGraph):
        def output_shapes(self, shapes):
            return [(3,)]

    with pytest.raises(ShapeError, match="need one row per sample"):
        evaluate(Flat(), X, Y, loss=PlainCrossEntropy())


def test_lengths_have_to_agree() -> None:
    with pytest.raises(
        LabelError, match=r"y of node 'out': expected 70 labels, one per sample, received shape \(69,\)"
    ):
        evaluate(PlainGraph(), X, Y[1:], loss=PlainCrossEntropy())


def test_nothing_of_the_callers_is_written() -> None:
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    evaluate(PlainGraph(), x, y, loss=PlainCrossEntropy())
    np.testing.assert_array_equal(x, X)


# ---- arrays


def test_real_arrays_are_kept_where_they_fit() -> None:
    x = np.zeros((2, 3), np.float32)
    assert real_array(x, "float32", "X") is x
    assert real_array(x[:, ::2], "float32", "X").flags.c_contiguous
    assert real_array([[True]], "float64", "X").dtype == np.float64
    nan = np.array([np.nan, np.inf])
    assert real_array(nan, "float64", "X") is nan  # what is no number in X goes through
