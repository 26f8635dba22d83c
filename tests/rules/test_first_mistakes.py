"""What a newcomer gets wrong first: the error names the node where there is one, what was expected and received, and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, SequentialNode, ops
from tapeprop.errors import DTypeError, GraphError, LabelError, MergeError, NumericsError, ShapeError, StateError
from tapeprop.layers import Activation, Conv2D, Dense, Flatten, Identity, Lambda
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

X, Y = np.ones((10, 4)), np.zeros(10, int)


def network(**options: Any) -> LayerGraph:
    hidden, head = SequentialNode(Dense(4, 8), Activation.ReLU(), name="hidden"), LayerNode(Dense(8, 3), name="head")
    return LayerGraph({hidden: [head], head: []}, root=hidden, term=head, seed=0).build(**options)


def trained() -> LayerGraph:
    graph = network()
    graph.set_optimizer(SGD(lr=0.1))
    return graph


def single(layer: Any, shape: Any = None) -> LayerGraph:
    node = LayerNode(layer, name="only")
    return LayerGraph({node: []}, root=node, term=node).build(shape)


def two_roots() -> LayerGraph:
    a, b, c = LayerNode(Dense(4, 2), name="a"), LayerNode(Dense(3, 2), name="b"), LayerNode(Activation.Tanh(), name="c")
    return LayerGraph({a: [c], b: [c], c: []}, root=[a, b], term=c)


def shortcut(body: Any, shape: Any = (None, 3, 8, 8)) -> LayerGraph:
    """x + body(x)."""
    start, inner, join = (
        LayerNode(layer, name=n) for layer, n in ((Identity(), "start"), (body, "body"), (Identity(), "join"))
    )
    return LayerGraph({start: [inner, join], inner: [join]}, root=start, term=join).build(shape)


def branches(*channels: int) -> LayerGraph:
    """The sum of convolutions of x."""
    start, join = LayerNode(Identity(), name="start"), LayerNode(Identity(), name="join")
    found = [LayerNode(Conv2D(3, n, 1), name=f"b{i}") for i, n in enumerate(channels)]
    edges = {start: found, **{branch: [join] for branch in found}}
    return LayerGraph(edges, root=start, term=join).build((None, 3, 8, 8))


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], tuple[str, ...]]] = {
    "too many features": (
        lambda: network()(np.ones((10, 5))),
        ShapeError,
        ("'hidden.0'", "in_features=4", "(10, 5)", "write Dense(5, 8)"),
    ),
    "one sample without its batch axis": (
        lambda: network()(np.ones(4)),
        ShapeError,
        ("'hidden.0'", "(N, in_features=4)", "got (4,)", "add a batch axis"),
    ),
    "an image for a vector": (
        lambda: network()(np.ones((10, 1, 2, 2))),
        ShapeError,
        ("'hidden.0'", "(10, 1, 2, 2)", "put Flatten() before it"),
    ),
    "channels last": (
        lambda: single(Conv2D(3, 4, 3))(np.ones((2, 8, 8, 3))),
        ShapeError,
        ("'only'", "3 channels on axis 1", "got 8 in (2, 8, 8, 3)", "X.transpose(0, 3, 1, 2)"),
    ),
    "the channels of another layer": (
        lambda: single(Conv2D(3, 4, 3, stride=2), (None, 5, 8, 8)),
        ShapeError,
        ("'only'", "3 channels on axis 1", "got 5", "write Conv2D(5, 4, 3, stride=2) or add Conv2D(5, 3, 1) before it"),
    ),
    "a dense layer behind an image": (
        lambda: single(Dense(100, 10, bias=False), (None, 8, 7, 7)),
        ShapeError,
        ("'only'", "got (N, 8, 7, 7)", "put Flatten() before it and write Dense(392, 10, bias=False)"),
    ),
    "a dense layer behind an image of open size": (
        lambda: single(Dense(100, 10), (None, 8, None, 7)),
        ShapeError,
        ("'only'", "put Flatten() before it and set in_features to what 56*H will be"),
    ),
    "wrong in_features": (
        lambda: single(SequentialNode(Flatten(), Dense(100, 10)).layer, (None, 8, 7, 7)),
        ShapeError,
        ("'only.1'", "in_features=100", "got (N, 392)", "write Dense(392, 10)"),
    ),
    "more channels than the shortcut has": (
        lambda: shortcut(Conv2D(3, 6, 3)),
        MergeError,
        ("'join'", "'body' (N, 6, 8, 8)", "'start' (N, 3, 8, 8)", "add Conv2D(3, 6, 1) on the shortcut from 'start'"),
    ),
    "fewer channels than the shortcut has": (
        lambda: shortcut(Conv2D(3, 2, 3)),
        MergeError,
        ("add Conv2D(3, 2, 1) on the shortcut from 'start', or merge by CHCAT",),
    ),
    "a stride that the shortcut lacks": (
        lambda: shortcut(Conv2D(3, 6, 3, stride=2)),
        MergeError,
        ("add Conv2D(3, 6, 1, stride=2) on the shortcut from 'start'",),
    ),
    "features that the shortcut lacks": (
        lambda: shortcut(Dense(3, 5), (None, 3)),
        MergeError,
        ("add Dense(3, 5) on the shortcut from 'start', or merge by CHCAT",),
    ),
    "branches of three widths": (
        lambda: branches(4, 6, 5),
        MergeError,
        ("add Conv2D(4, 6, 1) behind 'b0' and add Conv2D(5, 6, 1) behind 'b2', or merge by CHCAT",),
    ),
    "rows of unequal length": (
        lambda: network()([[1, 2, 3, 4], [1, 2]]),
        DTypeError,
        ("'hidden'", "real numbers", "unequal length"),
    ),
    "a label too high": (
        lambda: trained().train_step(X, Y + 3, CrossEntropy()),
        LabelError,
        ("'head'", "from 0 to 2", "from 3 to 3"),
    ),
    "floating class ids": (
        lambda: trained().train_step(X, Y * 1.0, CrossEntropy()),
        LabelError,
        ("'head'", "float64 of shape (10,)", 'astype("int64")'),
    ),
    "no optimizer": (lambda: network().train_step(X, Y, CrossEntropy()), StateError, ("set_optimizer(SGD(lr=0.01))",)),
    "a learning rate for nobody": (lambda: network().update_lr(0.1), StateError, ("set_optimizer(SGD(lr=0.01))",)),
    "an optimizer by name": (lambda: network().set_optimizer("adam"), GraphError, ("SGD(lr=0.01)", "'adam'")),
    "an optimizer of a node by name": (
        lambda: network().nodes[0].set_optimizer("adam"),
        GraphError,
        ("SGD(lr=0.01)", "'adam'"),
    ),
    "parameters by name": (
        lambda: network().set_optimizer(SGD(0.1), where="bias"),
        GraphError,
        ("lambda name, parameter", "'bias'"),
    ),
    "gradcheck in float32": (lambda: tp.gradcheck(network(), X), DTypeError, ('dtype="float64"', "float32")),
    "one shape for two roots": (
        lambda: two_roots().build((None, 4)),
        GraphError,
        ("input shape", "a list of 2", "a, b", "received 1 entries"),
    ),
    "a layer called on an array": (
        lambda: Dense(4, 2)(X),
        GraphError,
        ("Dense.weight", "outside a graph", "LayerNode"),
    ),
    "bad data with debug_nan": (
        lambda: network(debug_nan=True)(X * np.inf),
        NumericsError,
        ("'hidden.0'", "made a NaN", "(10, 8)"),
    ),
}


@pytest.mark.parametrize(("mistake", "error", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(mistake: Callable[[], object], error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as found:
        mistake()
    assert all(part in str(found.value) for part in parts), str(found.value)


def test_the_remedy_for_a_merge_mends_it() -> None:
    start, body, join = LayerNode(Identity()), LayerNode(Conv2D(3, 6, 3, stride=2)), LayerNode(Identity())
    graph = LayerGraph({start: [body, join], body: [join]}, root=start, term=join)
    with pytest.raises(MergeError, match=r"add Conv2D\(3, 6, 1, stride=2\)"):
        graph.build((None, 3, 8, 8))
    graph.disconnect(start, join)
    graph.add_node(LayerNode(Conv2D(3, 6, 1, stride=2)), [start], [join])
    assert graph.build((None, 3, 8, 8)).out_shape((2, 3, 8, 8)) == (2, 6, 4, 4)


def test_a_refused_optimizer_leaves_the_old_one() -> None:
    graph = trained()
    before = graph.optimizer
    for wrong in ("adam", 42):
        with pytest.raises(GraphError):
            graph.set_optimizer(wrong)
    assert graph.optimizer is before
    assert np.isfinite(graph.train_step(X, Y, CrossEntropy()))


def test_numpy_in_a_formula_is_told_where_and_what_instead() -> None:
    with pytest.raises(TypeError) as found:
        single(Lambda(np.tanh), (None, 4))
    assert "node 'only'" in found.value.__notes__[0]
    assert "tapeprop.ops" in found.value.__notes__[0]
    assert single(Lambda(ops.tanh), (None, 4)).built_
