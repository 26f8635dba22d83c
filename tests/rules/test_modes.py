"""Rules 7, 8 and 16: training and evaluation, running statistics, dropout, and who keeps the state."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, chain, images, labels, node_of, perceptron, rows, state, vision

from tapeprop.errors import ShapeError
from tapeprop.layers import BatchNorm1D, BatchNorm2D, Dense, Dropout, Identity, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()


def norm_graph(momentum=0.75, **build):
    layer = BatchNorm2D(2, momentum=momentum, epsilon=0.0)
    return chain(layer, names=["norm"]).build(**{"dtype": "float64", **build}), layer


# ---- batch norm


def test_running_statistics_advance_once_per_training_forward():
    graph, layer = norm_graph()
    mean, variance = np.zeros(2), np.ones(2)
    for i in range(4):
        x = images(i) * 2 + 1
        graph.forward(x, True)
        mean = 0.75 * mean + 0.25 * x.mean((0, 2, 3))
        variance = 0.75 * variance + 0.25 * x.var((0, 2, 3))  # the biased one
        np.testing.assert_allclose(layer.running_mean.value, mean, rtol=1e-13)
        np.testing.assert_allclose(layer.running_var.value, variance, rtol=1e-13)
    kept = graph.state_dict()
    graph.backward()
    graph.backward()
    graph.forward(x, False)
    graph.backward()
    graph.predict(x)
    assert_same_bits(graph.state_dict(), kept)  # nothing else advances them


def test_momentum_is_the_fraction_kept():
    for momentum, expected in ((1.0, 0.0), (0.0, 5.0), (0.9, 0.5)):
        graph, layer = norm_graph(momentum)
        x = images() - images().mean((0, 2, 3), keepdims=True) + 5
        graph.forward(x, True)
        np.testing.assert_allclose(layer.running_mean.value, expected, atol=1e-12)


def test_evaluation_uses_the_running_statistics_of_now():
    """They are read at each run: no plan has frozen them."""
    graph, layer = norm_graph()
    x = images()
    for i in range(3):
        y = graph.forward(x, False)
        expected = (x - layer.running_mean.value[:, None, None]) / np.sqrt(layer.running_var.value[:, None, None])
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(graph.predict(x), expected, rtol=1e-12, atol=1e-12)
        graph.forward(images(i) * 3, True)
    layer.running_mean.value[...] = 7.0
    np.testing.assert_allclose(graph.forward(np.full((2, 2, 1, 1), 7.0)), 0, atol=1e-12)


def test_the_mode_of_the_forward_is_the_mode_of_its_backward():
    graph, layer = norm_graph()
    x, d = images(), images(1)
    graph.forward(x, False)
    scale = 1 / np.sqrt(layer.running_var.value)[:, None, None]
    np.testing.assert_allclose(graph.backward(d), d * scale, rtol=1e-12)  # evaluation: an affine map
    np.testing.assert_allclose(layer.bias.grad, d.sum((0, 2, 3)), rtol=1e-12)
    graph.zero_grad()
    graph.forward(x, True)
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    z = (x - mean) / np.sqrt(variance)
    centred = d - d.mean((0, 2, 3), keepdims=True) - z * (d * z).mean((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(graph.backward(d), centred / np.sqrt(variance), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(layer.weight.grad, (d * z).sum((0, 2, 3)), rtol=1e-10)


def test_one_norm_in_two_nodes_advances_twice():
    layer = BatchNorm1D(4, momentum=0.5)
    graph = chain(layer, layer).build(dtype="float64")
    x = rows() + 3
    graph.forward(x, True)
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(layer.running_mean.value, 0.5 * (0.5 * x.mean(0)) + 0.5 * z.mean(0), atol=1e-12)
    np.testing.assert_allclose(layer.running_var.value, 0.5 * (0.5 + 0.5 * x.var(0)) + 0.5 * z.var(0), rtol=1e-12)


@pytest.mark.parametrize("layer", [BatchNorm1D(4), Sequential(Identity(), BatchNorm1D(4))])
def test_one_value_per_channel_is_refused_in_training(layer):
    graph = chain(layer, names=["norm"]).build((None, 4), dtype="float64")
    graph.set_optimizer(SGD(0.1))
    graph.forward(rows(), True)
    before = state(graph)
    for call in (
        lambda: graph.forward(rows()[:1], True),
        lambda: graph.train_step(rows()[:1], [0], LOSS),
        lambda: graph.fit(rows(), [0, 1, 0, 1, 0], loss=LOSS, batch_size=4, verbose=0),
    ):
        with pytest.raises(ShapeError, match=r"node 'norm.*per channel in training"):
            call()
        assert_same_bits(state(graph), before)
    assert graph.forward(rows()[:1], False).shape == (1, 4)  # evaluation is defined
    assert graph.predict(rows()[:1]).shape == (1, 4)
    graph.forward(rows()[:2], True)


def test_one_sample_with_several_places_is_a_batch():
    graph, _ = norm_graph()
    y = graph.forward(images(0, (1, 2, 3, 3)), True)
    np.testing.assert_allclose(y.mean((2, 3)), 0, atol=1e-12)


# ---- dropout


def drops(rate=0.5, seed=3, **options):
    return chain(Dropout(rate, **options), seed=seed).build(dtype="float64")


ONES = np.ones((8, 50))


def test_dropout_is_the_identity_in_evaluation():
    graph = drops()
    np.testing.assert_array_equal(graph.forward(ONES, False), ONES)
    np.testing.assert_array_equal(graph.backward(3 * ONES), 3 * ONES)
    np.testing.assert_array_equal(graph.predict(ONES), ONES)


def test_every_training_call_has_a_mask_of_its_own_and_backward_the_same():
    graph = drops(0.25)
    masks = []
    for _ in range(4):
        y = graph.forward(ONES, True)
        assert set(np.unique(y)) == {0.0, 1 / 0.75}
        np.testing.assert_array_equal(graph.backward(ONES), y)
        np.testing.assert_array_equal(graph.backward(2 * ONES), 2 * y)
        masks.append(y)
    for i, mask in enumerate(masks):
        assert not any((mask == other).all() for other in masks[:i])
    assert np.mean([y == 0 for y in masks]) == pytest.approx(0.25, abs=0.05)  # 1,600 draws: 3.5 standard deviations


def test_the_sequence_follows_from_the_seed():
    def sequence(**options):
        graph = drops(**options)
        return [graph.forward(ONES, True) for _ in range(3)]

    np.testing.assert_array_equal(sequence(), sequence())
    assert (sequence()[0] != sequence(seed=4)[0]).any()
    own = sequence(random_state=1)
    np.testing.assert_array_equal(own, sequence(random_state=1, seed=9))  # of its own, whatever the graph's
    assert (own[0] != sequence(random_state=2)[0]).any()


def test_what_is_not_training_draws_nothing():
    plain, busy = drops(), drops()
    for _ in range(3):
        busy.forward(ONES, False)
        busy.backward()
        busy.predict(ONES)
        busy.evaluate(ONES, np.zeros(8, int), loss=LOSS)
        np.testing.assert_array_equal(plain.forward(ONES, True), busy.forward(ONES, True))


def test_places_draw_apart():
    graph = chain(Dropout(0.5), Dropout(0.5), seed=0).build(dtype="float64")
    y = graph.forward(np.ones((100, 100)), True)
    assert np.mean(y > 0) == pytest.approx(0.25, abs=0.02)  # 10,000 draws; one mask twice would keep a half


def test_a_batch_of_another_size_goes_on_with_the_sequence():
    same, other = drops(), drops()
    for size in (8, 3):
        same.forward(ONES, True)
        other.forward(ONES[:size], True)
    np.testing.assert_array_equal(other.forward(ONES, True), same.forward(ONES, True))


def test_rates_at_the_ends():
    np.testing.assert_array_equal(drops(0.0).forward(ONES, True), ONES)
    graph = drops(1.0)
    np.testing.assert_array_equal(graph.forward(ONES, True), 0 * ONES)
    np.testing.assert_array_equal(graph.backward(ONES), 0 * ONES)


# ---- predict between forward and backward, and who owns the state


@pytest.mark.parametrize("is_train", [False, True])
def test_predict_between_forward_and_backward_disturbs_nothing(is_train):
    plain, disturbed = (vision(dtype="float64") for _ in range(2))
    x, y = images(), labels(6)
    for graph in (plain, disturbed):
        graph.set_optimizer(Adam(0.01))
        for i in range(2):
            graph.forward(images(i), is_train)
            if graph is disturbed:
                graph.predict(images(5, (40, 2, 6, 6)), batch_size=16)  # larger than anything before
                graph.evaluate(x, y, loss=LOSS)
                graph.out_shape((9, 2, 6, 6))
                graph.summary()
            graph.backward(images(3, (6, 3)))
            graph.update()
    assert_same_bits(state(plain), state(disturbed))


def test_evaluation_between_steps_forks_nothing():
    plain, busy = (vision(dtype="float64") for _ in range(2))
    for graph in (plain, busy):
        graph.set_optimizer(Adam(0.01))
    for i in range(4):
        x, y = images(i), labels(6, i)
        expected = plain.train_step(x, y, LOSS)
        busy.forward(x, False)
        busy.backward()
        busy.evaluate(x, y, loss=LOSS)
        assert busy.train_step(x, y, LOSS) == expected
    assert_same_bits(state(plain), state(busy))


def test_batches_of_changing_size_share_one_state():
    """Sizes 6, 4, 6, 2 in one graph, against fresh plans for each: step counts, moments, statistics, masks."""
    one, fresh = (vision(dtype="float64") for _ in range(2))
    for graph in (one, fresh):
        graph.set_optimizer(Adam(0.05))
    for i, size in enumerate([6, 4, 6, 2, 4, 6]):
        x, y = images(i, (size, 2, 6, 6)), labels(size, i)
        expected = one.train_step(x, y, LOSS)
        fresh.build((None, 2, 6, 6), dtype="float64")  # drops every plan and keeps every number
        assert fresh.train_step(x, y, LOSS) == expected
    assert_same_bits(state(one), state(fresh))


def test_more_batch_sizes_than_plans_are_kept():
    one, few = (perceptron(dtype="float64") for _ in range(2))
    for graph in (one, few):
        graph.set_optimizer(Adam(0.05))
    for i in range(30):
        size = 2 + i % 11
        x, y = images(i, (size, 4)), labels(size, i)
        one.train_step(x, y, LOSS)
        one.forward(x)
        few.train_step(x, y, LOSS)
    assert one.cache_info().size <= 8
    assert_same_bits(state(one), state(few))


def test_a_learning_rate_set_by_hand_holds_for_every_batch_size():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.5))
    graph.train_step(rows(), labels(5), LOSS)
    graph.update_lr(0.0)
    before = graph.state_dict()
    for size in (5, 3, 2):
        graph.train_step(rows()[:size], labels(size), LOSS)
    assert_same_bits(graph.state_dict(), before)
    assert graph.lr == 0.0


def test_a_weight_edited_by_hand_is_seen_by_all():
    graph = perceptron(dtype="float64")
    x = rows()
    graph.forward(x)
    graph.predict(x)
    node_of(graph, "second").layer.weight.value[...] = 0
    bias = node_of(graph, "second").layer.bias
    bias.assign([1.0, 2.0, 3.0])
    expected = np.tile([1.0, 2.0, 3.0], (5, 1))
    np.testing.assert_array_equal(graph.forward(x), expected)
    np.testing.assert_array_equal(graph.forward(x, True), expected)
    np.testing.assert_array_equal(graph.predict(x), expected)
    graph.set_optimizer(SGD(0.0))
    assert graph.train_step(x, [2] * 5, LOSS) == LOSS([2] * 5, expected)
    view = bias.value
    graph.set_optimizer(SGD(1.0))
    graph.train_step(x, labels(5), LOSS)
    np.testing.assert_array_equal(view, graph.state_dict()["second.bias"])  # live


def test_dense_in_float32_computes_in_float32():
    graph = chain(Dense(4, 3)).build(dtype="float32")
    assert graph.forward(rows()).dtype == np.float32
    assert graph.backward(rows()[:, :3]).dtype == np.float32
    assert graph.predict(rows()).dtype == np.float32
    assert all(value.dtype == np.float32 for value in graph.state_dict().values())
    for dtype in (np.float16, np.float64, np.int8, bool, np.uint64):
        x = (rows() > 0).astype(dtype)
        np.testing.assert_array_equal(graph.forward(x), graph.forward(x.astype(np.float32)))


def test_timing_a_step_leaves_no_trace():
    """Weights, gradients, moments, step counts, statistics and random state are as before; so is what waits for update()."""
    plain, timed = (vision(dtype="float64") for _ in range(2))
    x, y = images(), labels(6)
    for graph in (plain, timed):
        graph.set_optimizer(Adam(0.01))
        graph.train_step(x, y, LOSS)
        graph.forward(x, True)
        graph.backward()
    before = state(timed)
    timings = timed.profile(x, y, LOSS, repeats=3).figures()
    assert len(timings) > 5
    assert_same_bits(state(timed), before)
    for graph in (plain, timed):
        graph.update()
    for i in range(2):
        assert plain.train_step(images(i), y, LOSS) == timed.train_step(images(i), y, LOSS)
    assert_same_bits(state(plain), state(timed))
