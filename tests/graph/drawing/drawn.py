"""Graphs that the tests of drawings share."""

from __future__ import annotations

import tapeprop as tp
from tapeprop.layers import Activation, Dense

NASTY = 'a <b> "q" & \\ \\N ünï 二\nline #35; `x` ]]> \x00\x1b\ud800 end'


def network() -> tp.LayerGraph:
    """Norms behind a node's layer and inside one, shared weights, a checkpoint, a frozen node, a stopped edge, SUB and SUM; built."""
    weights = Dense(8, 8)
    start, relu = tp.LayerNode(Dense(4, 8), name="start"), tp.LayerNode(Activation.ReLU(), name="relu")
    one, two = tp.LayerNode(weights, name="one", checkpoint=True), tp.LayerNode(weights, name="two")
    join = tp.LayerNode(Activation.Tanh(), "sub", name="join")
    deep = tp.SequentialNode(Dense(8, 8), Activation.ReLU(), Dense(8, 3), name="deep")
    side = tp.LayerNode(Dense(8, 8), name="side")
    side.frozen = True
    side.set_optimizer(tp.optimizers.SGD(lr=0.1))
    graph = tp.LayerGraph(
        {start: [relu], relu: [one, two, join], one: [join], two: [join], join: [deep, side], side: [deep]},
        root=start,
        term=deep,
        seed=0,
    )
    graph.stop_gradient(join, side)
    return graph.build((5, 4), auto_batch_norm=True)


def nasty() -> tp.LayerGraph:
    """Two nodes, one with a name that no language takes as it is; not built."""
    start, end = tp.LayerNode(Dense(4, 8), name=NASTY), tp.LayerNode(Activation.ReLU(), name="x" * 300)
    return tp.LayerGraph({start: [end]}, root=start, term=end)
