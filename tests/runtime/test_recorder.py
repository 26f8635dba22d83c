"""What recorders hear of runs, and what running costs where none listens."""

import itertools
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.errors import LabelError
from tapeprop.layers import Activation, Dense, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime import recorder as recording
from tapeprop.runtime import team
from tapeprop.runtime.recorder import Recorder, listeners, recording_runs

RANDOM = np.random.default_rng(0)


def network(workers=1, **options):
    node = tp.LayerNode(Sequential(Dense(6, 5), Activation.Tanh(), Dense(5, 3)), name="net")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 6), workers=workers, **options)
    graph.set_optimizer(SGD(0.1))
    return graph


def data(count=8):
    return RANDOM.standard_normal((count, 6)), RANDOM.standard_normal((count, 3))


def test_a_recorder_hears_of_every_run_and_of_none_afterwards():
    graph, (X, y) = network(), data()
    with recording_runs(Recorder()) as found:
        assert listeners() == (found,)
        for _ in range(3):
            graph.train_step(X, y, MSE())
        graph.predict(X)
    assert listeners() == ()
    graph.train_step(X, y, MSE())
    totals, runs, dropped = found.heard()
    assert [executable.name for executable in totals] == ["train_step", "predict"]
    assert [run.executable.name for run in runs] == ["train_step"] * 3 + ["predict"]
    assert dropped == 0
    step = next(iter(totals.values()))
    assert step.calls.tolist() == [3] * len(step.executable.tape.rows)
    assert found.ended is not None


def test_times_are_in_order_and_inside_the_run():
    graph, (X, y) = network(), data()
    with recording_runs(Recorder()) as found:
        graph.fit(X, y, loss=MSE(), batch_size=2, epochs=3, metrics=(), verbose=0)
    _, runs, _ = found.heard()
    assert sum(len(run.ticks) for run in runs) == 12
    for run in runs:
        flat = run.ticks[:, 0].reshape(-1)
        assert (np.diff(flat) >= 0).all()
        assert run.start <= flat[0]
        assert flat[-1] <= run.stop
    assert all(a.stop <= b.start for a, b in itertools.pairwise(runs))


def test_busy_and_waits_add_up_to_the_time_between_first_and_last():
    graph, (X, y) = network(), data(64)
    with recording_runs(Recorder()) as found:
        graph.fit(X, y, loss=MSE(), batch_size=8, metrics=(), verbose=0)
    totals, runs, _ = found.heard()
    (step,) = totals.values()
    inside = sum(int(run.ticks[-1, 0, -1, 1] - run.ticks[0, 0, 0, 0]) for run in runs)
    assert step.busy.sum() + step.waits.sum() == inside
    assert step.wall == sum(run.stop - run.start for run in runs) >= inside


def test_repeated_rows_have_a_slot_for_each_time():
    graph, (X, y) = network(), data(12)
    with recording_runs(Recorder()) as found:
        graph.fit(X, y, loss=MSE(), batch_size=2, accumulate=3, metrics=(), verbose=0)
    totals, runs, _ = found.heard()
    (step,) = totals.values()
    update = [row.step.span == "update" for row in step.executable.tape.rows]
    np.testing.assert_array_equal(step.calls, np.where(update, 2, 6))
    for run in runs:
        assert run.ticks.shape[2] == len(run.rows) == 3 * update.count(False) + update.count(True)
        assert (run.ticks > 0).all()


def test_only_one_executable_and_several_recorders():
    graph, (X, y) = network(), data()
    graph.train_step(X, y, MSE())
    with recording_runs(Recorder()) as all_of_them:
        graph.predict(X)
        executable = next(iter(all_of_them.totals))
        with recording_runs(Recorder(only=executable)) as one:
            graph.train_step(X, y, MSE())
            graph.predict(X)
    assert len(all_of_them.totals) == 2
    assert [run.executable for run in one.runs] == [executable]


def test_the_oldest_runs_are_dropped_and_counted():
    graph, (X, y) = network(), data()
    graph.train_step(X, y, MSE())
    with recording_runs(Recorder(limit=1)) as probe:
        graph.train_step(X, y, MSE())
    spans = probe.spans
    with recording_runs(Recorder(limit=2 * spans + 1)) as found:
        for _ in range(5):
            graph.train_step(X, y, MSE())
    totals, runs, dropped = found.heard()
    assert len(runs) == 2
    assert dropped == 3 * spans
    assert next(iter(totals.values())).calls[0] == 5


def test_long_runs_are_cut_so_that_they_fit(monkeypatch):
    graph, twin, (X, y) = network(), network(), data(60)
    monkeypatch.setattr(recording, "CHUNK_SPANS", 50)
    with recording_runs(Recorder()) as found:
        graph.fit(X, y, loss=MSE(), batch_size=2, metrics=(), verbose=0, seed=0)
    twin.fit(X, y, loss=MSE(), batch_size=2, metrics=(), verbose=0, seed=0)
    assert len(found.runs) > 5
    assert all(run.spans <= 50 for run in found.runs)
    for name, value in twin.state_dict().items():
        np.testing.assert_array_equal(graph.state_dict()[name], value)


def test_a_step_that_fails_is_not_told_and_the_recording_goes_on():
    graph, (X, _) = network(), data()
    bad, good = np.full(8, 7), np.zeros(8, int)
    with recording_runs(Recorder()) as found:
        graph.train_step(X, good, CrossEntropy())
        with pytest.raises(LabelError):
            graph.train_step(X, bad, CrossEntropy())
        graph.train_step(X, good, CrossEntropy())
    assert len(found.runs) == 2


def test_several_workers_and_those_that_take_no_part():
    node = tp.LayerNode(Sequential(Dense(200, 300), Activation.Tanh(), Dense(300, 200)))
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 200), workers=3)
    graph.set_optimizer(SGD(0.01))
    X = RANDOM.standard_normal((128, 200))
    graph.train_step(X, X, MSE())
    with recording_runs(Recorder()) as found:
        graph.train_step(X, X, MSE())
        with team._get_team().busy:  # a run that finds the team at work goes alone
            graph.train_step(X, X, MSE())
    together, alone = found.runs
    assert together.ticks.shape[1] == 3
    assert (together.ticks > 0).all()
    assert (alone.ticks[:, 0] > 0).all()
    assert not alone.ticks[:, 1:].any()
    (totals,) = found.totals.values()
    own = [(run.ticks[..., 1] - run.ticks[..., 0])[0] for run in (together, alone)]
    np.testing.assert_array_equal(totals.busy.T, own[0] + own[1])
    # of the one that went alone, the others neither work nor wait
    spread = [int(together.ticks[..., 1].max() - together.ticks[0, worker, 0, 0]) for worker in range(3)]
    inside = int(alone.ticks[0, 0, -1, 1] - alone.ticks[0, 0, 0, 0])
    assert (totals.busy + totals.waits).sum(axis=0).tolist() == [spread[0] + inside, *spread[1:]]


def test_runs_of_all_threads_are_heard():
    graphs = [network(), network()]
    X, y = data()

    def work(graph):
        for _ in range(5):
            graph.train_step(X, y, MSE())

    with recording_runs(Recorder()) as found:
        threads = [threading.Thread(target=work, args=(graph,), name=f"trainer-{i}") for i, graph in enumerate(graphs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(run.thread for run in found.runs) == ["trainer-0"] * 5 + ["trainer-1"] * 5
    assert [t.calls[0] for t in found.totals.values()] == [5, 5]


def test_the_ticks_are_told_in_seconds():
    from time import perf_counter

    graph, (X, y) = network(), data(256)
    with recording_runs(Recorder()) as found:
        start = perf_counter()
        graph.fit(X, y, loss=MSE(), batch_size=8, epochs=20, metrics=(), verbose=0)
        seconds = perf_counter() - start
    wall = sum(t.wall for t in found.totals.values()) * found.seconds_per_tick
    assert 0 < wall <= seconds * 1.001  # the runs are inside, and the clocks agree


def test_of_pairs_of_readings_the_closest_counts(monkeypatch):
    seconds, ticks = iter([0.0, 9.0, 10.0, 10.5, 20.0, 29.0, 30.0, 39.0, 40.0, 41.0]), itertools.count(100)
    monkeypatch.setattr(recording, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(recording, "clock", lambda: lambda: next(ticks))
    assert recording._moment() == (101, 10.25)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_records_nothing():
    graph, (X, y) = network(), data()
    graph.train_step(X, y, MSE())
    with recording_runs(Recorder()) as found:
        child = os.fork()
        if child == 0:
            graph.train_step(X, y, MSE())
            os._exit(len(found.runs) + len(listeners()))
        assert os.waitpid(child, 0)[1] == 0
