"""Random networks: profiling changes no bit, and what a profile says agrees with itself and with its tape."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume
from random_graphs import Built, Recipe, build, for_random_graphs
from rules.networks import assert_same_bits, state

import tapeprop as tp
from tapeprop.losses import MSE
from tapeprop.optimizers import Adam
from tapeprop.profiler.profile import Profile

BYS = ("instruction", "op", "node", "layer", "phase")


def steps(case: Built):
    """(inputs, labels, losses) of a training step: outputs without a gradient have no loss."""
    rng = np.random.default_rng(0)
    y = [None if d is None else rng.standard_normal(d.shape) for d in case.d_out]
    inputs = case.inputs if isinstance(case.graph.root, list) else case.inputs[0]
    return inputs, y, [None if d is None else MSE() for d in case.d_out]


def fitted(case: Built, seed: int = 1) -> None:
    """Two epochs of two whole batches and a smaller one, which batch norm wants of two samples at least."""
    inputs, y, losses = steps(case)

    def more(x):
        return None if x is None else np.concatenate([x, x, x[:2]])

    X = list(map(more, inputs)) if isinstance(inputs, list) else more(inputs)
    options = {"batch_size": len(case.inputs[0]), "epochs": 2, "metrics": (), "verbose": 0, "seed": seed}
    case.graph.fit(X, list(map(more, y)), loss=losses, **options)


def prepared(recipe: Recipe, **options) -> Built:
    """With an optimizer, one step done, and a forward that waits for its backward."""
    case = build(recipe, **options)
    assume(case.graph.param_size != (0, 0))  # nothing to train is an error
    inputs, y, losses = steps(case)
    case.graph.set_optimizer(Adam(0.01))
    case.graph.train_step(inputs, y, losses)
    case.graph.forward(inputs, case.training)
    return case


def agrees_with_itself(profile: Profile) -> None:
    for tape in profile.tapes:
        assert (tape.busy >= 0).all()
        assert (tape.waits >= 0).all()
        told = (tape.busy + tape.waits).sum(axis=0)
        assert (told <= tape.wall * (1 + 1e-9)).all()
        memory = tape.memory
        for number, live in enumerate(memory.live):
            stretches = sorted((b.offset, b.offset + b.nbytes) for b in memory.blocks if b.first <= number <= b.last)
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(stretches))
            assert live == sum(end - start for start, end in stretches) <= memory.arena
        assert all(number > max(row.after, default=-1) for number, row in enumerate(tape.rows))
    for run in profile.runs:
        flat = np.stack([run.begin[:, 0], run.end[:, 0]], -1).reshape(-1)
        assert (np.diff(flat) >= 0).all()
        assert run.start <= flat[0]
        assert flat[-1] <= run.stop
    whole = [(math.fsum(f.seconds for f in found), sum(f.flops for f in found)) for found in map(profile.figures, BYS)]
    for seconds, flops in whole:
        assert seconds == pytest.approx(whole[0][0])
        assert flops == pytest.approx(whole[0][1])


@for_random_graphs(40)
def test_profiling_changes_no_bit(recipe: Recipe) -> None:
    plain, profiled = prepared(recipe), prepared(recipe)
    inputs, y, losses = steps(profiled)
    before = state(profiled.graph)
    found = profiled.graph.profile(inputs, y, losses, repeats=2)
    profiled.graph.profile(inputs, repeats=2)
    assert_same_bits(state(profiled.graph), before)
    agrees_with_itself(found)
    assert found.counters["instructions"] == len(found.tapes[0].rows)
    a, b = (case.graph.backward(case.d_out) for case in (plain, profiled))
    for x, z in zip(a if isinstance(a, list) else [a], b if isinstance(b, list) else [b], strict=True):
        np.testing.assert_array_equal(x, z)
    with tp.profiling() as p:
        profiled.graph.train_step(inputs, y, losses)
        fitted(profiled)
    plain.graph.train_step(inputs, y, losses)
    fitted(plain)
    assert_same_bits(state(profiled.graph), state(plain.graph))
    agrees_with_itself(p.profile)


@for_random_graphs(12)
def test_counters_and_rows_do_not_depend_on_workers_or_the_day(recipe: Recipe) -> None:
    found = []
    for workers in (1, 1, 3):
        case = prepared(recipe, workers=workers)
        inputs, y, losses = steps(case)
        profile = case.graph.profile(inputs, y, losses, repeats=1)
        # scratch is one for each worker that the tape is worth
        counters = {name: n for name, n in profile.counters.items() if name != "scratch_bytes"}
        found.append((counters, profile.tapes[0].rows, profile.tapes[0].memory.blocks))
    assert found[0] == found[1] == found[2]


@for_random_graphs(8)
def test_every_way_to_show_one_takes_it_and_what_its_file_gives(recipe: Recipe) -> None:
    case = prepared(recipe)
    with tp.profiling() as p:
        case.graph.backward(case.d_out)
        fitted(case)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        again = Profile.load(p.to_json(folder / "p.json"))
        agrees = [(a.key, a.rows, a.flops) for a in again.figures("op")] == [
            (a.key, a.rows, a.flops) for a in p.figures("op")
        ]
        assert agrees or len(again.figures("op")) == len(p.figures("op"))  # equal times may change places
        for number, profile in enumerate((p.profile, again)):
            json.loads(profile.to_chrome_trace(folder / f"{number}.trace.json").read_text())
            json.loads(profile.to_speedscope(folder / f"{number}.speedscope.json").read_text())
            assert profile.to_html(folder / f"{number}.html").stat().st_size > 10_000
            assert "<svg" in profile.to_flame_graph(folder / f"{number}.svg").read_text()
            assert str(profile.diagnose())
        assert not again.compare(again).changed
