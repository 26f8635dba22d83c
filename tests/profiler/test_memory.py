"""The memory of a tape over its rows agrees with where the tape's rows read and write."""

import itertools

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, Identity, MaxPool2D, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.profiler.memory import memory_of
from tapeprop.profiler.profile import Block, Memory
from tapeprop.runtime.recorder import Recorder, recording_runs

RANDOM = np.random.default_rng(0)


def images(checkpoint=False):
    stem = tp.LayerNode(
        Sequential(Conv2D(3, 8, 3), BatchNorm2D(8), Activation.ReLU()), name="stem", checkpoint=checkpoint
    )
    a, b = tp.LayerNode(Conv2D(8, 4, 3), name="a"), tp.LayerNode(Identity(), name="b")
    head = tp.LayerNode(
        Sequential(MaxPool2D(2), Flatten(), Dropout(0.5), Dense(12 * 16, 10)), tp.MergeMode.CHCAT, name="head"
    )
    graph = tp.LayerGraph({stem: [a, b], a: [head], b: [head], head: []}, root=stem, term=head, seed=0)
    graph.build((None, 3, 8, 8), workers=1).set_optimizer(Adam())
    return graph, RANDOM.standard_normal((16, 3, 8, 8)), RANDOM.integers(0, 10, 16), CrossEntropy()


def chain():
    nodes = [tp.LayerNode(Sequential(Dense(6, 6), Activation.Tanh())) for _ in range(12)]
    edges = {node: [nodes[i + 1]] if i < 11 else [] for i, node in enumerate(nodes)}
    for i in range(10):
        edges[nodes[i]] = [nodes[i + 1], nodes[i + 2]]
    graph = tp.LayerGraph(edges, root=nodes[0], term=nodes[-1], seed=0).build((None, 6), workers=1)
    graph.set_optimizer(SGD(0.1))
    return graph, RANDOM.standard_normal((5, 6)), RANDOM.standard_normal((5, 6)), MSE()


def scalars():
    x = [tp.placeholder((), name=f"x{i}", dtype="float64") for i in range(40)]
    return tp.function(sum((ops.sin(a) * b for a, b in itertools.pairwise(x)), x[0]), x)


@pytest.fixture(scope="module")
def executables():
    """Of every kind, with and without layouts, recomputation and rows of several instructions."""
    with recording_runs(Recorder()) as found:
        for graph, X, y, loss in (images(), images(True), chain()):
            graph.train_step(X, y, loss)
            graph.fit(X, y, loss=loss, batch_size=4, metrics=(), verbose=0)
            graph.forward(X, True)
            graph.backward()
            graph.update()
            graph.predict(X)
        scalars().value_and_grad(*np.ones(40))
    names = {executable.name for executable in found.totals}
    assert names == {"train_step", "fit", "forward", "backward", "update", "predict", "value_and_gradient"}
    return list(found.totals)


def test_what_is_live_together_shares_no_byte(executables):
    for executable in executables:
        memory = memory_of(executable)
        for number in range(len(memory.live)):
            live = sorted((b.offset, b.offset + b.nbytes) for b in memory.blocks if b.first <= number <= b.last)
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(live)), (executable.name, number)
            assert memory.live[number] == sum(end - start for start, end in live) <= memory.arena


def test_rows_touch_nothing_but_what_is_live(executables):
    for executable in executables:
        memory, name = memory_of(executable), executable.tape.arena
        for number, row in enumerate(executable.tape.rows):
            for extent in (*row.reads, *row.writes):
                start, end = extent.place.offset, extent.place.offset + extent.nbytes
                live = [b for b in memory.blocks if b.first <= number <= b.last]
                inside = any(b.offset <= start and end <= b.offset + b.nbytes for b in live)
                assert inside or extent.place.buffer != name, (executable.name, number, row.label)


def test_the_arena_is_as_large_as_the_highest_block(executables):
    for executable in executables:
        memory = memory_of(executable)
        assert max((b.offset + b.nbytes for b in memory.blocks), default=0) == memory.arena
        assert sum(b.nbytes for b in memory.blocks) == memory.unshared


def test_what_lies_outside_the_arena_is_counted_by_its_kind():
    graph, X, y, loss = chain()
    (tape,) = graph.profile(X, y, loss, repeats=1).tapes
    weights = sum(p.size for _, p in graph.named_parameters()) * 4
    memory = tape.memory
    assert memory.inputs == X.size * 4 + y.size * 4
    assert weights <= memory.parameters <= weights + 64 * 24  # each parameter starts on a line of its own
    assert memory.gradients == memory.parameters
    assert memory.optimizer == 8  # one learning rate
    graph.set_optimizer(Adam())
    (tape,) = graph.profile(X, y, loss, repeats=1).tapes
    assert tape.memory.optimizer >= 2 * weights


def test_the_peak_and_who_holds_it():
    blocks = (Block("a", 0, 64, 0, 2), Block("b", 64, 192, 1, 2), Block("c", 256, 64, 3, 3))
    memory = Memory((64, 256, 256, 64), 320, 320, blocks)
    assert memory.peak_row == 1
    assert [b.label for b in memory.holders] == ["b", "a"]
    empty = Memory((), 0, 0)
    assert empty.peak_row == 0
    assert empty.holders == []


def test_labels_name_layer_op_and_shape():
    graph, X, y, loss = images()
    (tape,) = graph.profile(X, y, loss, repeats=1).tapes
    assert any(b.label.startswith("a conv2d") and b.label.endswith("float32 (1,4,8,8,16)") for b in tape.memory.blocks)
