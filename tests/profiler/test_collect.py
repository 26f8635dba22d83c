"""graph.profile(), function.profile() and profiling(): what they tell, and that they change nothing."""

import gc
import threading
import weakref

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import NotBuiltError, StateError
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Identity,
    Lambda,
    MaxPool2D,
    PythonLayer,
    Sequential,
)  # fmt: skip
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.runtime.recorder import listeners

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((16, 3, 8, 8)), RANDOM.integers(0, 10, 16)


def network(**options):
    """Convolution, two branches that meet, dropout: everything that keeps state."""
    stem = tp.SequentialNode(Conv2D(3, 8, 3), BatchNorm2D(8), Activation.ReLU(), name="stem")
    wide = tp.LayerNode(Conv2D(8, 8, 3), name="wide.branch")
    narrow = tp.LayerNode(Conv2D(8, 8, 1), name="narrow")
    head = tp.LayerNode(
        Sequential(MaxPool2D(2), Flatten(), Dropout(0.2), Dense(8 * 16, 10)), tp.MergeMode.HADAMARD, name="head"
    )
    edges = {stem: [wide, narrow], wide: [head], narrow: [head], head: []}
    graph = tp.LayerGraph(edges, root=stem, term=head, seed=3)
    return graph.build((None, 3, 8, 8), **{"workers": 1, **options})


def state(graph):
    return {**graph.state_dict(), **{f"{k}.grad": p.grad.copy() for k, p in graph.named_parameters() if p.trainable}}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# ---- profile()


def test_a_training_step_is_told_row_by_row():
    graph = network()
    graph.set_optimizer(Adam())
    profile = graph.profile(X, Y, CrossEntropy(), repeats=4)
    (tape,) = profile.tapes
    assert (profile.what, tape.name, tape.steps) == ("train_step", "train_step", 4)
    assert tape.sizes == ("float32 (16,3,8,8)", "int64 (16)")
    assert tape.calls.tolist() == [4] * len(tape.rows)
    assert [row.row for row in tape.rows] == list(range(len(tape.rows)))
    phases = [row.phase for row in tape.rows]
    assert list(dict.fromkeys(phases)) == ["forward", "loss", "backward", "update"]
    assert {row.node for row in tape.rows} == {"stem", "wide.branch", "narrow", "head", ""}
    assert {row.layer for row in tape.rows if row.node == "stem"} == {"stem.0", "stem.1", "stem.2"}
    assert {row.node for row in tape.rows if row.phase == "update"} == {""}
    for row in tape.rows:
        assert row.kernel.startswith("tapeprop.ops.")
        assert all(earlier < row.row for earlier in row.after)
        assert row.traffic > 0
    assert tape.rows[-1].after
    first = tape.rows[0]
    assert first.after == ()
    assert first.operands[0].startswith("float32 (")
    (outline,) = profile.outlines
    assert tape.outline == 0
    assert [node.name for node in outline.nodes] == ["stem", "wide.branch", "narrow", "head"]
    assert ("stem", "narrow") in outline.edges
    assert outline.nodes[3].merge == "HADAMARD"
    assert (outline.roots, outline.terms) == (("stem",), ("head",))


def test_rows_name_those_whose_results_they_read():
    """Also through a reshape, which has no row."""
    node = tp.LayerNode(Sequential(Conv2D(1, 2, 3), Flatten(), Dense(2 * 9, 4)), name="a")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 1, 3, 3), workers=1)
    (tape,) = graph.profile(RANDOM.standard_normal((3, 1, 3, 3)), repeats=1).tapes
    dense = next(row for row in tape.rows if row.layer == "a.2")
    assert [tape.rows[i].layer for i in dense.after] == ["a.0"]


def test_without_labels_it_is_predict():
    profile = network().profile(X, repeats=2)
    (tape,) = profile.tapes
    assert tape.name == profile.what == "predict"
    assert {row.phase for row in tape.rows} == {"fold", "forward"}
    assert tape.steps == 2


def test_without_an_optimizer_there_is_no_update():
    (tape,) = network().profile(X, Y, CrossEntropy(), repeats=1).tapes
    assert "update" not in {row.phase for row in tape.rows}
    assert "backward" in {row.phase for row in tape.rows}


@pytest.mark.parametrize("pending", [False, True])
def test_nothing_is_trained(pending):
    """Weights, gradients, what is pending, optimizer, running statistics and random state are those of a twin."""
    graphs = [network(), network()]
    for graph in graphs:
        graph.set_optimizer(SGD(0.1, momentum=0.9))
        graph.train_step(X, Y, CrossEntropy())
        if pending:
            graph.forward(X, True)
            graph.backward()
    plain, profiled = graphs
    before = state(profiled)
    profiled.profile(X, Y, CrossEntropy(), repeats=3)
    profiled.profile(X, repeats=3)
    assert_same(state(profiled), before)
    for graph in graphs:
        if pending:
            graph.update()
        graph.train_step(X, Y, CrossEntropy())
        graph.set_optimizer(SGD(0.1, momentum=0.9))
    assert_same(state(profiled), state(plain))


def test_a_forward_before_it_still_has_its_backward():
    graphs = [network(), network()]
    for graph in graphs:
        graph.forward(X, True)
    graphs[1].set_optimizer(SGD(0.1))
    graphs[1].profile(X, Y, CrossEntropy(), repeats=2)
    np.testing.assert_array_equal(graphs[0].backward(), graphs[1].backward())


def test_the_state_comes_back_after_an_error():
    class Stubborn(PythonLayer):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            if type(self).calls > 3:
                raise RuntimeError("enough")
            return 2 * x

        def backward(self, d):
            return 2 * d

    node = tp.LayerNode(Sequential(Dense(4, 4), Stubborn()), name="a")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 4))
    graph.set_optimizer(SGD(0.1))
    x = RANDOM.standard_normal((2, 4))
    before = state(graph)
    with pytest.raises(RuntimeError, match="enough"):
        graph.profile(x, x, MSE(), repeats=5)
    assert_same(state(graph), before)


def test_counters_are_exact():
    def counters(**options):
        graph = network(**options)
        graph.set_optimizer(SGD(0.1))
        return graph.profile(X, Y, CrossEntropy(), repeats=3).counters, graph

    found, graph = counters()
    assert counters()[0] == found
    assert found["steps"] == 3
    assert (found["lowerings"], found["plans"], found["plan_hits"]) == (1, 1, 0)
    (tape,) = graph.profile(X, Y, CrossEntropy(), repeats=7).tapes
    assert found["instructions"] == len(tape.rows)
    assert found["barriers"] == sum(row.barrier for row in tape.rows)
    assert found["flops"] == sum(row.flops for row in tape.rows)
    assert found["bytes"] == sum(row.traffic for row in tape.rows)
    assert found["arena_bytes"] == tape.memory.arena
    again = graph.profile(X, Y, CrossEntropy(), repeats=7).counters
    assert (again["lowerings"], again["plans"], again["plan_hits"]) == (0, 0, 1)
    assert again["instructions"] == found["instructions"]


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True, "3", None])
def test_repeats_have_to_be_a_number_of_steps(repeats):
    with pytest.raises(ValueError, match="repeats of at least 1"):
        network().profile(X, repeats=repeats)


def test_labels_and_loss_belong_together():
    graph = network()
    with pytest.raises(ValueError, match="y and loss"):
        graph.profile(X, Y)
    with pytest.raises(ValueError, match="y and loss"):
        graph.profile(X, loss=CrossEntropy())
    with pytest.raises(NotBuiltError, match="profile"):
        tp.LayerGraph().profile(X)


def test_rows_of_python_have_no_kernel():
    class Doubled(PythonLayer):
        def forward(self, x):
            return 2 * x

        def backward(self, d):
            return 2 * d

    node = tp.LayerNode(Sequential(Dense(4, 4), Doubled(), Dense(4, 4)), name="a")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 4), workers=2)
    x = RANDOM.standard_normal((2, 4))
    profile = graph.profile(x, x, MSE(), repeats=3)
    (tape,) = profile.tapes
    assert {row.op for row in tape.rows if not row.kernel} == {"python", "python_grad"}
    assert (tape.waits >= 0).all()
    assert (tape.busy + tape.waits).sum() <= tape.wall * tape.workers
    for run in profile.runs:
        assert (np.diff(np.stack([run.begin, run.end], -1)[:, 0].reshape(-1)) >= 0).all()
        assert not np.isnan(run.begin[:, 0]).any()


def test_nested_graphs_and_names_with_dots():
    inner = tp.SequentialNode(Dense(4, 4), Activation.Tanh(), name="deep")
    outer = tp.LayerNode(tp.LayerGraph({inner: []}, root=inner, term=inner), name="block.one")
    last = tp.LayerNode(Dense(4, 2), name="block")
    graph = tp.LayerGraph({outer: [last], last: []}, root=outer, term=last).build((None, 4))
    (tape,) = graph.profile(RANDOM.standard_normal((3, 4)), repeats=1).tapes
    assert {(row.node, row.layer) for row in tape.rows} == {
        ("block.one", "block.one.deep.0"),
        ("block.one", "block.one.deep.1"),
        ("block", "block"),
    }


def test_a_function_is_profiled():
    x = tp.placeholder((3,), name="x", dtype="float64")
    w = tp.variable([1.0, 2.0, 3.0], dtype="float64")
    f = tp.function(ops.sum(ops.sin(x) * w), x)
    f.value_and_grad([1.0, 1.0, 1.0])
    before = w.grad.copy()
    profile = f.profile([1.0, 2.0, 3.0], repeats=3)
    np.testing.assert_array_equal(w.grad, before)
    (tape,) = profile.tapes
    assert tape.name == "value_and_gradient"
    assert {row.phase for row in tape.rows} == {"forward", "backward"}
    assert profile.outlines == ()
    assert tape.outline == -1


def test_debug_nan_runs_row_by_row_and_is_profiled_all_the_same():
    graph = network(debug_nan=True)
    graph.set_optimizer(SGD(0.1))
    profile = graph.profile(X, Y, CrossEntropy(), repeats=2)
    (tape,) = profile.tapes
    assert tape.steps == 2
    assert tape.calls.tolist() == [2] * len(tape.rows)


# ---- profiling()


def test_whatever_runs_inside_is_profiled():
    graph = network()
    graph.set_optimizer(SGD(0.1))
    with tp.profiling() as p:
        graph.forward(X, True)
        graph.backward()
        graph.update()
        graph.train_step(X, Y, CrossEntropy())
        graph.fit(X, Y, loss=CrossEntropy(), batch_size=6, epochs=2, verbose=0)
        graph.predict(X)
    found = [(tape.name, tape.steps) for tape in p.tapes]
    assert found == [
        ("forward", 1),
        ("backward", 1),
        ("update", 1),
        ("train_step", 1),
        ("fit", 4),
        ("fit #2", 2),
        ("predict", 1),
    ]
    assert p.what == "profiling"
    assert not p.per_step
    assert "gather" in {row.phase for row in p.tapes[4].rows}
    assert len(p.outlines) == 1
    graph.predict(X)
    assert len(p.tapes) == 7
    assert p.profile is p.profile
    backward = p.tapes[1]
    assert backward.arena == "backward"
    assert "7 more" in str(p.table(top=len(p.figures()) - 7))


def test_training_goes_on_as_without():
    plain, profiled = network(), network()
    for graph in (plain, profiled):
        graph.set_optimizer(SGD(0.1))
    first = plain.fit(X, Y, loss=CrossEntropy(), batch_size=4, epochs=3, verbose=0, seed=0)
    with tp.profiling():
        second = profiled.fit(X, Y, loss=CrossEntropy(), batch_size=4, epochs=3, verbose=0, seed=0)
    assert first.loss == second.loss
    assert_same(state(plain), state(profiled))


def test_it_can_be_looked_at_inside_and_nested_and_after_an_error():
    graph = network()
    try:
        with tp.profiling() as outer:
            graph.predict(X)
            assert outer.tapes[0].steps == 1
            with tp.profiling() as inner:
                graph.predict(X)
                graph.predict(X)
            assert (outer.tapes[0].steps, inner.tapes[0].steps) == (3, 2)
            raise KeyError
    except KeyError:
        graph.predict(X)
    assert outer.tapes[0].steps == 3
    assert outer.seconds == outer.profile.seconds >= inner.seconds


def test_a_tape_without_instructions():
    node = tp.LayerNode(Identity(), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((4, 3))
    profile = graph.profile(np.ones((4, 3)), repeats=3)
    assert profile.figures() == []
    assert profile.counters["instructions"] == profile.counters["flops"] == 0
    assert "nothing ran" in str(profile)


def test_notebooks_show_it_as_they_show_its_profile():
    with tp.profiling() as p:
        network().predict(X)
    assert p._repr_html_() == p.profile._repr_html_()


def test_tapes_of_one_name_are_told_apart():
    graph = network()
    with tp.profiling() as p:
        for size in (16, 16, 5, 3):
            graph.predict(X[:size])
    assert [(tape.name, tape.steps) for tape in p.tapes] == [("predict", 2), ("predict #2", 1), ("predict #3", 1)]
    assert len(p.figures("instruction")) == sum(np.count_nonzero(tape.calls) for tape in p.tapes)
    with tp.profiling() as other:
        for size in (3, 5):
            graph.predict(X[:size])
    assert not any("inputs of" in note for note in p.compare(other).notes), "those with equal inputs belong together"


def test_a_block_has_to_be_written_and_is_one_block():
    p = tp.profiling()
    assert repr(p) == "<profiling that has not begun>"
    with pytest.raises(StateError, match="with tapeprop"):
        p.table()
    with pytest.raises(StateError, match="with tapeprop"):
        str(p)
    with p:
        network().predict(X)
    for _ in range(2):  # before its figures are asked for and after
        with pytest.raises(StateError, match="make another"):
            p.__enter__()
        assert p.tapes[0].steps == 1
    assert listeners() == ()


def test_nothing_ran():
    with tp.profiling() as p:
        pass
    assert p.tapes == []
    assert p.figures() == []
    assert "nothing ran" in str(p)
    assert p.counters["instructions"] == 0


def test_only_the_last_spans_are_kept():
    graph = network()
    graph.predict(X)
    with tp.profiling(spans=1) as p:
        for _ in range(3):
            graph.predict(X)
    assert len(p.runs) == 1
    assert p.dropped > 0
    assert p.tapes[0].steps == 3
    assert "were dropped" in str(p)
    with pytest.raises(ValueError, match="at least 1 span"), tp.profiling(spans=0):
        pass


def test_runs_name_their_thread():
    graph = network()

    def work():
        graph.predict(X)

    with tp.profiling() as p:
        thread = threading.Thread(target=work, name="server")
        thread.start()
        thread.join()
    assert [run.thread for run in p.runs] == ["server"]


def test_instructions_and_waits_agree_with_wall_time():
    """Of one worker everything between first and last belongs to a row or the wait behind it; the rest is the call itself."""
    node = tp.LayerNode(Sequential(Dense(300, 300), Activation.Tanh(), Dense(300, 300)))
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 300), workers=1)
    graph.set_optimizer(SGD(0.01))
    x = RANDOM.standard_normal((64, 300))
    found = graph.profile(x, x, MSE(), repeats=20)
    (tape,) = found.tapes
    told = float(tape.busy.sum() + tape.waits.sum())
    assert told <= tape.wall
    inside = [run.end[-1, 0, -1] - run.begin[0, 0, 0] for run in found.runs]  # in whole nanoseconds
    assert told == pytest.approx(sum(inside), abs=1e-9 * len(inside))
    assert tape.wall == pytest.approx(sum(run.stop - run.start for run in found.runs), abs=1e-9 * len(inside))


def test_seconds_in_all_hold_those_of_the_runs():
    graph = network()
    with tp.profiling() as p:
        for _ in range(3):
            graph.predict(X)
    assert p.seconds >= sum(run.stop - run.start for run in p.runs) > 0
    assert p.seconds >= p.compile_seconds + p.lowering_seconds > 0
    assert all(0 <= run.start <= run.stop <= p.seconds for run in p.runs)


def test_runs_stand_in_the_order_in_which_they_began():
    """One that a PythonLayer makes ends before the one that it is called in."""
    inner = network()
    inner.predict(X)

    class Asks(PythonLayer):
        def forward(self, x):
            inner.predict(X)
            return x

        def backward(self, d):
            return d

    node = tp.LayerNode(Sequential(Dense(4, 4), Asks()))
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4))
    with tp.profiling() as p:
        graph.forward(np.ones((2, 4)))
    outside, inside = p.runs
    assert outside.start < inside.start < inside.stop < outside.stop
    assert [p.tapes[run.tape].name for run in (outside, inside)] == ["forward", "predict"]


def test_what_ran_is_let_go_when_it_has_been_told():
    graph = network()
    with tp.profiling() as p:
        graph.predict(X)
        executable = weakref.ref(next(iter(p._recorder.totals)))
    assert len(p.tapes) == 1
    del graph
    gc.collect()
    assert executable() is None
    assert len(p.tapes) == 1


def test_a_loss_by_itself_bears_its_name():
    with tp.profiling() as p:
        CrossEntropy()(Y, RANDOM.standard_normal((16, 10)))
    (tape,) = p.tapes
    assert tape.name == "CrossEntropy"
    assert {row.phase for row in tape.rows} == {"formula"}


def test_two_graphs_have_two_outlines():
    node = tp.LayerNode(Lambda(ops.tanh), name="other")
    other = tp.LayerGraph({node: []}, root=node, term=node).build((None, 3))
    graph = network()
    with tp.profiling() as p:
        graph.predict(X)
        other.predict(np.ones((2, 3)))
    assert [p.outlines[tape.outline].nodes[0].name for tape in p.tapes] == ["stem", "other"]


def test_roofs_are_those_of_the_cpus_where_workers_outnumber_them(monkeypatch):
    from tapeprop.profiler import collect
    from tapeprop.profiler.roofs import machine_roofs
    from tapeprop.targets.cpu import machine

    asked = []
    monkeypatch.setattr(machine, "usable_cpus", lambda: 1)
    monkeypatch.setattr(collect, "machine_roofs", lambda workers: asked.append(workers) or machine_roofs(workers))
    node = tp.LayerNode(Dense(256, 256), name="n")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 256), workers=3)
    profile = graph.profile(np.ones((512, 256), "float32"), repeats=1)
    assert profile.tapes[0].workers > 1
    assert asked == [1]
