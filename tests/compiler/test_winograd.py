"""The Winograd mode: which convolutions change, the size of their error, and the rules that hold in every mode."""

import numpy as np
import pytest
from rules.networks import assert_same_bits, state

from tapeprop import LayerGraph, LayerNode, MergeMode, load
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Flatten, GlobalAvgPool2D, Sequential
from tapeprop.losses import MSE
from tapeprop.optimizers import SGD

RNG = np.random.default_rng(0)


def network(channels=32):
    """A 3 x 3 convolution of few channels, two of many with a shortcut, one of stride 2 and one of 1 x 1."""
    stem = LayerNode(Sequential(Conv2D(3, channels, 3), BatchNorm2D(channels), Activation.ReLU()), name="stem")
    body = LayerNode(Sequential(Conv2D(channels, channels, 3), Activation.ReLU(), Conv2D(channels, 40, 3)), name="body")
    short = LayerNode(Conv2D(channels, 40, 1), name="short")
    joined = LayerNode(Sequential(Activation.ReLU(), Conv2D(40, 32, 3, stride=2)), MergeMode.SUM, name="joined")
    head = LayerNode(Sequential(GlobalAvgPool2D(), Flatten()), name="head")
    edges = {stem: [body, short], body: [joined], short: [joined], joined: [head], head: []}
    return LayerGraph(edges, root=stem, term=head, seed=0)


def built(math_mode, dtype="float64", **options):
    graph = network().build((None, 3, 7, 9), dtype=dtype, math_mode=math_mode, **options)
    graph.set_optimizer(SGD(0.01, momentum=0.9))
    return graph


X, Y = RNG.standard_normal((16, 3, 7, 9)), RNG.standard_normal((16, 32))


def rows(graph, op):
    (tape,) = graph.profile(X, Y, MSE(), repeats=1).tapes
    return [row.layer for row in tape.rows if row.op == op]


def test_only_large_convolutions_of_stride_1_change():
    graph = built("winograd")
    assert rows(graph, "conv2d_winograd") == ["body.0", "body.2", "body.2", "body.0"]
    assert rows(graph, "conv2d_lanes") == ["stem.0", "short", "joined.1"]
    assert len(rows(graph, "conv2d_lanes_weight_grad")) == 5
    assert not rows(built("fp32"), "conv2d_winograd")


def test_it_computes_what_summing_directly_does():
    """float64: the difference is rounding, far below what any mistake in a tile would make."""
    direct, winograd = built("fp32"), built("winograd")
    for _ in range(3):
        assert winograd.train_step(X, Y, MSE()) == pytest.approx(direct.train_step(X, Y, MSE()), rel=1e-12)
    for name, value in state(direct).items():
        np.testing.assert_allclose(state(winograd)[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_is_within_the_stated_bound(dtype):
    conv = LayerNode(Conv2D(48, 32, 3, bias=False))
    x = RNG.uniform(-1, 1, (16, 48, 8, 8))
    found = {}
    for math_mode in ("fp32", "winograd"):
        graph = LayerGraph({conv: []}, root=conv, term=conv).build(x.shape, dtype=dtype, math_mode=math_mode)
        conv.layer.weight.assign(np.random.default_rng(1).uniform(-1, 1, (32, 48, 3, 3)))
        found[math_mode] = graph.forward(x.astype(dtype)).astype(np.longdouble)
        weight = np.array(conv.layer.weight.value, np.longdouble)
    padded = np.pad(x.astype(dtype).astype(np.longdouble), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    exact = np.einsum("nchwrk,ocrk->nohw", windows, weight)
    errors = {mode: float(abs(y - exact).max()) for mode, y in found.items()}
    assert 0 < errors["winograd"] <= 81 * 48 * (48 + 11) / 2 * np.finfo(dtype).eps
    assert errors["winograd"] <= 2 * errors["fp32"]  # measured 0.4 to 0.5: its sums are shorter


def test_a_step_is_its_parts_and_any_number_of_workers_gives_the_same_bits():
    whole, parts, many = built("winograd"), built("winograd"), built("winograd", workers=3)
    loss = MSE()
    for _ in range(2):
        whole.train_step(X, Y, loss)
        many.train_step(X, Y, loss)
        parts.zero_grad()
        parts.backward(loss.grad(Y, parts.forward(X, True)))
        parts.update()
    assert_same_bits(state(whole), state(parts))
    assert_same_bits(state(whole), state(many))


def test_the_mode_is_saved_with_the_graph(tmp_path):
    graph = built("winograd")
    y = graph.forward(X)
    graph.save(tmp_path / "graph.safetensors")
    again = load(tmp_path / "graph.safetensors")
    assert again.build_options()["math_mode"] == "winograd"
    np.testing.assert_array_equal(again.forward(X), y)
