"""Threads and processes: graphs side by side, one graph from two threads, after fork and in a spawned process."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from tapeprop import LayerGraph, LayerNode
from tapeprop.layers import Activation, Conv2D, Dense, Flatten, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((32, 3, 12, 12)), RNG.integers(0, 4, 32)
STEPS = 6


def network(seed):
    """Large enough that two workers are worth while."""
    body = LayerNode(Sequential(Conv2D(3, 16, 3), Activation.ReLU(), Conv2D(16, 16, 3), Activation.ReLU()))
    head = LayerNode(Sequential(Flatten(), Dense(16 * 144, 4)))
    graph = LayerGraph({body: [head]}, root=body, term=head, seed=seed).build((None, 3, 12, 12), workers=2)
    graph.set_optimizer(SGD(lr=0.05, momentum=0.9))
    return graph


def train(graph, steps=STEPS):
    return [graph.train_step(X, Y, CrossEntropy()) for _ in range(steps)]


def in_threads(*calls):
    found, threads = [None] * len(calls), []

    def run(i):
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    for i in range(len(calls)):
        threads.append(threading.Thread(target=run, args=(i,)))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_two_graphs_in_two_threads_train_as_they_do_alone():
    alone = [train(network(seed)) for seed in (1, 2)]
    graphs = [network(1), network(2)]
    assert in_threads(lambda: train(graphs[0]), lambda: train(graphs[1])) == alone


def test_one_graph_from_two_threads_serialises():
    expected = train(network(3), 2 * STEPS)
    graph = network(3)
    found = in_threads(lambda: train(graph), lambda: train(graph))
    assert sorted(found[0] + found[1]) == sorted(expected)


def test_predictions_from_many_threads_are_right():
    graph = network(4)
    expected = graph.predict(X)
    for found in in_threads(*[lambda: graph.predict(X)] * 4):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is a POSIX call")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_trains_on():
    graph = network(5)
    train(graph, 2)
    expected = train(network(5), 4)[2:]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, repr(train(graph, 2)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert text == repr(expected)
    assert train(graph, 2) == expected


def _train_anew(steps):
    return train(network(6), steps)


def test_a_spawned_process_gives_the_same_bits():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_train_anew, (3,)) == _train_anew(3)
