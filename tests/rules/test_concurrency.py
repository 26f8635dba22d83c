"""Rule 17 where it is subtle: calls that belong together, threads that hand on, fits side by side, forks of running threads."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS
from rules.networks import assert_same_bits, chain, images, labels, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph
from tapeprop.errors import StateError
from tapeprop.interchange.safetensors import read
from tapeprop.layers import Layer
from tapeprop.losses import MAE, CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()
TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def several_workers(monkeypatch):
    """Small tapes would go to one worker, and never meet the team."""
    monkeypatch.setattr("tapeprop.runtime.executable.worthwhile_workers", lambda tape, workers: workers)


def together(*calls: Callable[[], object]) -> None:
    """Runs the calls in threads that start at once; the first exception comes out."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(calls))

    def run(call):
        start.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def trained(seed: int, workers: int, steps: int = 15) -> LayerGraph:
    graph = vision(dtype="float64", workers=workers, seed=seed)
    graph.set_optimizer(Adam(0.01))
    x, y = images(seed, (16, 2, 6, 6)), labels(16)
    for _ in range(steps):
        graph.train_step(x, y, LOSS)
    return graph


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_graphs_in_threads_are_graphs_alone(workers):
    """Building, compiling, planning and running; the team goes to whoever asks first, the bits are the same."""
    found: dict[int, LayerGraph] = {}
    together(*(lambda seed=seed: found.update({seed: trained(seed, workers)}) for seed in range(3)))
    for seed, graph in found.items():
        assert_same_bits(state(graph), state(trained(seed, 1)))


def test_steps_of_one_graph_from_three_threads_are_its_steps_in_a_row():
    graph = vision(dtype="float64", workers=2)
    graph.set_optimizer(Adam(0.01))
    x, y = images(0, (16, 2, 6, 6)), labels(16)

    def train():
        for _ in range(10):
            graph.train_step(x, y, LOSS)

    together(train, train, train)
    assert_same_bits(state(graph), state(trained(0, 1, steps=30)))


def test_calls_of_every_kind_at_once_leave_a_graph_that_works():
    graph = vision(dtype="float64", workers=2)
    graph.set_optimizer(SGD(0.0))  # so that what is right does not change
    x, y = images(0, (16, 2, 6, 6)), labels(16)
    graph.fit(x, y, loss=LOSS, epochs=2, verbose=0)
    # the layout of a batch, and with it the order of sums, depends on its size
    expected = {size: graph.predict(x[:size]) for size in (16, 5, 7)}
    graph.nodes[1].layer.momentum = 1.0  # nor do the running statistics
    graph.build((None, 2, 6, 6), dtype="float64", workers=2)

    def predict():
        for size in (16, 5, 7, 16):
            np.testing.assert_array_equal(graph.predict(x[:size]), expected[size])

    together(
        predict,
        predict,
        lambda: graph.fit(x, y, loss=LOSS, epochs=3, batch_size=7, verbose=0),
        lambda: [graph.train_step(x, y, LOSS) for _ in range(10)],
        lambda: [graph.forward(x[:n], True) for n in (3, 16, 9)],
        lambda: [graph.update_lr(0.0) for _ in range(20)],
        lambda: [graph.evaluate(x, y, loss=LOSS) for _ in range(3)],
        lambda: [(graph.summary(), graph.state_dict()) for _ in range(5)],
    )
    predict()


def test_a_forward_and_its_backward_belong_together():
    """Of two threads that run pairs, each gets the gradient of its own input, or a StateError; never the other's."""
    graph = perceptron(dtype="float64")
    inputs = [rows(i) for i in range(3)]
    expected = []
    for x in inputs:
        graph.forward(x)
        expected.append(graph.backward())
    right = []

    def pairs(i, count=150):
        for _ in range(count):
            graph.forward(inputs[i])
            try:
                dx = graph.backward()
            except StateError as error:
                assert "another thread" in str(error)  # noqa: PT017
                continue
            np.testing.assert_array_equal(dx, expected[i])
            right.append(i)

    together(*(lambda i=i: pairs(i) for i in range(3)))
    right.clear()
    together(lambda: pairs(1, count=5))
    assert right == [1] * 5  # nobody is refused who is not overtaken


def test_a_thread_that_was_overtaken_is_told():
    graph = perceptron(dtype="float64")
    graph.forward(rows(0))
    together(lambda: graph.forward(rows(1)))
    with pytest.raises(StateError, match=r"another thread called forward\(\)"):
        graph.backward()
    graph.forward(rows(0))
    graph.backward()


def test_a_forward_may_be_handed_to_another_thread():
    graph = perceptron(dtype="float64")
    graph.forward(rows(0))
    expected, found = graph.backward(), []
    together(lambda: found.append(graph.backward()))
    np.testing.assert_array_equal(found[0], expected)


def test_two_losses_in_two_threads_add_up():
    """backward() from two outputs at once: the gradients are those of one after the other, in some order."""
    graph = two_heads(dtype="float64")
    graph.forward(rows(), True)
    d = images(1, (5, 3))
    graph.backward([d, None])
    graph.backward([None, d])
    expected = {name: p.grad.copy() for name, p in graph.named_parameters()}
    for _ in range(20):
        graph.zero_grad()
        together(lambda: graph.backward([d, None]), lambda: graph.backward([None, d]))
        for name, parameter in graph.named_parameters():
            np.testing.assert_array_equal(parameter.grad, expected[name])  # a + b is b + a


# ---- one graph, whole states


class Shift(Layer):
    """x + weight, of many numbers, so that copying them takes a while."""

    def __init__(self, size: int):
        self.size = size
        self.weight = self.parameter((size,), "zeros")

    def trace(self, x):
        return x + self.weight


def climbing() -> LayerGraph:
    """A chain in which every step adds the same to every weight: the gradient of MAE has one size."""
    graph = chain(*(Shift(200_000) for _ in range(3))).build(workers=1)
    graph.set_optimizer(SGD(1.0))
    return graph


SAVED = {
    "state_dict": lambda graph, path: graph.state_dict().values(),
    "save": lambda graph, path: (graph.save(path, classes={"Shift": Shift}), read(path)[0].values())[1],
    "forward": lambda graph, path: graph.forward(np.zeros((1, 200_000)))[0].reshape(4, -1),
}


@pytest.mark.parametrize("look", SAVED)
def test_a_state_is_that_between_two_steps(look, tmp_path):
    graph, done, seen = climbing(), threading.Event(), []
    x, y = np.zeros((1, 200_000)), np.full((1, 200_000), 1e6)
    graph.train_step(x, y, MAE())

    def train():
        while not done.is_set():
            graph.train_step(x, y, MAE())

    def watch():
        try:
            # as often as it takes until training has gone on in between, whoever gets the processor
            while not done.is_set() and (len(seen) < 20 or len(set(seen)) < 3):
                found = [array.reshape(-1) for array in SAVED[look](graph, tmp_path / "g") if array.size >= 1000]
                assert len({value for array in found for value in (array[0], array[-1])}) == 1
                seen.append(found[0][0])
                time.sleep(0.001)
        finally:
            done.set()

    try:
        together(train, watch)
    finally:
        done.set()
    assert seen == sorted(seen)


def test_state_that_is_loaded_is_loaded_between_two_steps():
    graph, done = climbing(), threading.Event()
    x, y = np.zeros((1, 200_000)), np.full((1, 200_000), 1e6)
    start = graph.state_dict()

    def load():
        try:
            for _ in range(20):
                graph.load_state_dict(start)
        finally:
            done.set()

    def train():
        while not done.is_set():
            graph.train_step(x, y, MAE())

    together(load, train)
    assert len({value for array in graph.state_dict().values() for value in (array.min(), array.max())}) == 1


def test_a_graph_is_built_by_one_thread_while_others_run_it():
    """What a call needs of the call before it may be gone, which is a StateError; everything else goes through."""
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.0))
    x, tanh = rows(), graph.nodes[1]
    expected, through = graph.predict(x), []

    def use(call):
        def run():
            for _ in range(30):
                try:
                    call()
                except StateError:
                    continue
                through.append(call)

        return run

    whole = [
        lambda: graph.train_step(x, labels(5), LOSS),
        lambda: np.testing.assert_array_equal(graph.predict(x), expected),
        lambda: str(graph.tape),
        lambda: graph.build((None, 4), dtype="float64"),
        lambda: graph.build(dtype="float64"),
    ]
    parted = [
        lambda: graph.fit(x, labels(5), loss=LOSS, epochs=2, batch_size=2, verbose=0),
        lambda: (graph.watch(tanh), graph.forward(x), graph.value(tanh), graph.backward(), graph.gradient(tanh)),
    ]
    together(*(use(call) for call in (*whole, *parted)))
    assert [through.count(call) for call in whole] == [30] * len(whole)
    for call in parted:
        call()


def test_fits_of_one_graph_from_two_threads_train_every_sample_of_both():
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.001, beta1=0.9))
    x, y = images(0, (40, 4)), labels(40)
    histories = {}

    def fit(i):
        histories[i] = graph.fit(x, [y, y], loss=LOSS, epochs=5, batch_size=7, metrics=(), verbose=0, seed=i)

    together(lambda: fit(0), lambda: fit(1))
    assert [len(histories[i].loss) for i in (0, 1)] == [5, 5]
    assert np.isfinite(histories[0].loss + histories[1].loss).all()
    (unit,) = graph.optimizer_units
    assert unit.scalar("beta1_power") == pytest.approx(0.9 ** (2 * 5 * 6), rel=1e-12)  # six batches in an epoch


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX call")


@needs_fork
def test_a_child_forked_while_another_thread_trains_makes_graphs_of_its_own():
    """The child has the parent's locks and team as they were at that moment, but not its threads."""
    program = """
import os, sys, threading
sys.path[:0] = sys.argv[1:]
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads is what is tested
from rules.networks import images, labels, vision
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
import tapeprop.runtime.executable as executable
executable.worthwhile_workers = lambda tape, workers: workers

def make():
    graph = vision(workers=2)
    graph.set_optimizer(SGD(0.01))
    return graph

def train(graph, steps):
    for _ in range(steps):
        graph.train_step(images(0, (16, 2, 6, 6)), labels(16), CrossEntropy())
    return graph

busy, done = make(), threading.Event()
train(busy, 1)

def forever():
    while not done.is_set():
        train(busy, 1)

thread = threading.Thread(target=forever)
thread.start()
codes = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        train(make(), 3)
        os._exit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
thread.join()
train(busy, 1)
print(codes)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(TESTS), str(TESTS.parent / "src")],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.stdout.strip() == "[7, 7, 7, 7, 7]", done.stderr


def work_in_child(pipe) -> None:
    """What a spawned or forked worker does: builds, trains, predicts and tells."""
    graph = trained(0, workers=2, steps=3)
    pipe.send((graph.predict(images(5)), graph.state_dict()))


@pytest.mark.parametrize("method", ["spawn", *(["fork"] if hasattr(os, "fork") else [])])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_multiprocessing(method):
    here = trained(0, workers=2, steps=3)
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    child = context.Process(target=work_in_child, args=(theirs,))
    child.start()
    assert mine.poll(HANG_SECONDS)
    predicted, weights = mine.recv()
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    np.testing.assert_array_equal(predicted, here.predict(images(5)))
    assert_same_bits(weights, here.state_dict())


def test_a_graph_can_be_sent_to_another_process():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.05))
    graph.train_step(rows(), labels(5), LOSS)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(build_and_run, (graph, rows(1)))
    np.testing.assert_array_equal(found, graph.forward(rows(1)))


def build_and_run(graph: LayerGraph, x: np.ndarray) -> np.ndarray:
    """A copy of a graph has its weights, and asks to be built."""
    assert not graph.built_
    return graph.build(dtype="float64").forward(x)
