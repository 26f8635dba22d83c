"""Comparing two profiles: what is matched, what counts as a change, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.profiler.compare import Change, compare
from tapeprop.profiler.profile import Block, Memory, Profile, RowInfo, RunSamples, TapeInfo

Row = tuple[str, str, str]


def rows_of(names: Sequence[Row], kinds: Sequence[str] = ()) -> list[RowInfo]:
    return [
        RowInfo(i, phase, op, layer.split(".")[0], layer, operands=(kinds[i],) if kinds else ())
        for i, (phase, op, layer) in enumerate(names)
    ]


def tape_of(rows: list[RowInfo], name: str = "train_step", **memory) -> TapeInfo:
    count = len(rows)
    block = Block("value", 0, 64, 0, max(count - 1, 0))
    held = Memory(**{"live": (64,) * count, "arena": 64, "unshared": 64, "blocks": (block,), **memory})
    return TapeInfo(
        name, (), 1, rows, held, 1, np.zeros((count, 1)), np.ones(count, np.int64), 1.0, np.zeros((count, 1))
    )


def run_of(seconds: np.ndarray, tape: int = 0) -> RunSamples:
    """seconds: (steps, rows), one after another."""
    ends = np.cumsum(seconds.reshape(-1)).reshape(seconds.shape)
    stop = float(ends[-1, -1]) if ends.size else 0.0
    return RunSamples(tape, np.arange(seconds.shape[1]), (ends - seconds)[:, None], ends[:, None], 0.0, stop)


def profile_of(names: Sequence[Row], seconds: np.ndarray, kinds: Sequence[str] = (), **figures) -> Profile:
    """A profile of one tape. seconds: (steps, rows)."""
    memory = figures.pop("memory", {})
    return Profile(
        "train_step", "", {"cpu": "one"}, [tape_of(rows_of(names, kinds), **memory)], [run_of(seconds)], 1.0, **figures
    )


def noisy(seconds: Sequence[float], steps: int = 20, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """(steps, rows): the noise that machines make, which is never below zero and has a long tail."""
    rng = np.random.default_rng(seed)
    return np.array(seconds) * (1 + rng.gamma(1.0, noise, (steps, len(seconds))))


NAMES = [("forward", "dense", "a"), ("forward", "relu", "a"), ("forward", "dense", "b"), ("update", "sgd", "")]


def test_a_row_that_became_slower_is_found_and_comes_first() -> None:
    found = compare(
        profile_of(NAMES, noisy([1e-3, 1e-4, 2e-3, 5e-4], seed=1)),
        profile_of(NAMES, noisy([1e-3, 1e-4, 3e-3, 5e-4], seed=2)),
    )
    first = found.rows[0]
    assert first.key == ("", "forward", "dense", "b", "")
    assert first.state == "slower"
    assert first.ratio == pytest.approx(1.5, rel=0.05)
    assert first.low < first.ratio < first.high
    assert first.change == pytest.approx(1e-3, rel=0.1)
    assert first.steps == (20, 20)
    assert [row.state for row in found.rows[1:]] == ["", "", ""]
    assert found.changed == [first]
    assert list(found) == found.rows
    assert found.whole.state == "slower"
    assert found.whole.ratio == pytest.approx(4.6 / 3.6, rel=0.05)


def test_the_method_of_a_profile() -> None:
    a, b = profile_of(NAMES, noisy([1, 1, 1, 1], seed=1)), profile_of(NAMES, noisy([1, 1, 1, 0.5], seed=2))
    assert a.compare(b, "op", seed=5).to_dict() == compare(a, b, "op", seed=5).to_dict()
    with pytest.raises(TypeError, match=r"expected a Profile, got 'b\.json'"):
        a.compare("b.json")  # type: ignore[arg-type]
    with tp.profiling() as nothing:
        pass
    assert math.isnan(a.compare(nothing).whole.ratio)  # type: ignore[arg-type]


def test_faster_is_the_reverse() -> None:
    a, b = profile_of(NAMES, noisy([1, 1, 1, 1], seed=1)), profile_of(NAMES, noisy([1, 1, 1, 0.5], seed=2))
    there, back = compare(a, b), compare(b, a)
    assert (there.rows[0].state, back.rows[0].state) == ("faster", "slower")
    assert there.rows[0].ratio == pytest.approx(1 / back.rows[0].ratio)
    assert there.rows[0].change == pytest.approx(-back.rows[0].change)


def test_rows_are_sorted_by_the_seconds_they_changed_by() -> None:
    found = compare(profile_of(NAMES, noisy([1, 2, 3, 4])), profile_of(NAMES, noisy([3, 2, 2.5, 1], seed=1)))
    changes = [abs(row.change) for row in found.rows]
    assert changes == sorted(changes, reverse=True)


@pytest.mark.parametrize("steps", [6, 20])
def test_equal_profiles_show_a_change_in_at_most_one_comparison_of_twenty(steps: int) -> None:
    names = [("forward", f"op{i}", "node") for i in range(10)]
    whole = groups = 0
    for seed in range(100):
        a, b = (profile_of(names, noisy(np.geomspace(1e-6, 1e-3, 10), steps, 2 * seed + side)) for side in (0, 1))
        found = compare(a, b, seed=seed)
        whole += found.whole.significant
        groups += bool(found.changed)
    assert whole <= 5
    assert groups <= 5


@pytest.mark.parametrize("steps", [10, 20])
def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says(steps: int) -> None:
    """In at least 92 of 100 trials: percentiles of so few steps fall short of 95 by one or two (Efron and Tibshirani 1993, ch. 13)."""
    names = [("forward", "op", "node")]
    held = 0
    for seed in range(100):
        a, b = (profile_of(names, noisy([side], steps, 2 * seed + (side > 1))) for side in (1.0, 1.2))
        row = compare(a, b, seed=seed).rows[0]
        held += row.low <= 1.2 <= row.high
    assert held >= 92


def test_a_profile_equals_itself() -> None:
    a = profile_of(NAMES, noisy([1, 2, 3, 4]), counters={"instructions": 4})
    found = compare(a, a)
    assert found.changed == []
    assert {row.ratio for row in found.rows} == {1.0}
    assert found.whole.ratio == 1
    assert "equal" in str(found)
    assert "counters: equal\nmemory: equal" in str(found)


def test_outliers_change_nothing() -> None:
    """Other work on the machine makes a few steps ten times as long."""
    a, b = noisy([1, 2, 3, 4], seed=1), noisy([1, 2, 3, 4], seed=2)
    b[[3, 9, 15]] *= 10
    found = compare(profile_of(NAMES, a), profile_of(NAMES, b))
    assert found.changed == []
    assert found.whole.ratio == pytest.approx(1, abs=0.05)


def test_seeds_repeat() -> None:
    a, b = profile_of(NAMES, noisy([1, 2, 3, 4], seed=1)), profile_of(NAMES, noisy([1, 2, 3, 4], seed=2))
    assert compare(a, b, seed=3).to_dict() == compare(a, b, seed=3).to_dict()
    assert compare(a, b, seed=3).rows[0].low != compare(a, b, seed=4).rows[0].low


# ---- matching


def test_an_instruction_that_comes_in_between_shifts_no_other() -> None:
    more = [NAMES[0], ("forward", "dropout", "a"), *NAMES[1:]]
    found = compare(profile_of(NAMES, noisy([1, 2, 3, 4])), profile_of(more, noisy([1, 0.5, 2, 3, 4], seed=1)))
    assert [(row.key[2], row.state) for row in found.rows if row.state] == [("dropout", "new")]
    new = next(row for row in found.rows if row.state)
    assert math.isnan(new.before)
    assert new.change == new.after
    back = compare(profile_of(more, noisy([1, 0.5, 2, 3, 4])), profile_of(NAMES, noisy([1, 2, 3, 4], seed=1)))
    gone = next(row for row in back.rows if row.state)
    assert (gone.key[2], gone.state) == ("dropout", "gone")
    assert gone.change == -gone.before


def test_of_instructions_that_are_alike_shapes_tell_which_came_in_between() -> None:
    """The update has no node, so all its rows bear one name."""
    update = ("update", "sgd", "")
    old = profile_of([update] * 3, noisy([1, 2, 3]), ["float32 (1)", "float32 (2)", "float32 (3)"])
    new = profile_of([update] * 4, noisy([1, 9, 2, 3]), ["float32 (1)", "float32 (9)", "float32 (2)", "float32 (3)"])
    found = compare(old, new)
    assert [(row.state, round(row.after)) for row in found.rows if row.state] == [("new", 9)]
    assert sorted(row.ratio for row in found.rows if not row.state) == pytest.approx([1, 1, 1], abs=0.05)
    assert sorted(row.key[4] for row in compare(old, old).rows) == ["", "#2", "#3"]


def test_groups() -> None:
    old, new = profile_of(NAMES, noisy([1, 2, 3, 4])), profile_of(NAMES, noisy([1, 2, 6, 4], seed=1))
    for by, name in (("op", "dense"), ("node", "b"), ("layer", "b"), ("phase", "forward")):
        first = compare(old, new, by).rows[0]
        assert first.key == ("", name)
        assert first.state == "slower"
    assert {row.key[1] for row in compare(old, new, "node").rows} == {"a", "b", "(none)"}
    dense = next(row for row in compare(old, new, "op").rows if row.key[1] == "dense")
    assert (dense.before, dense.after) == pytest.approx((4.2, 7.4), rel=0.05)  # a step's sum
    with pytest.raises(ValueError, match="expected by='instruction' or 'op'"):
        compare(old, new, "colour")


def test_a_row_that_runs_several_times_in_a_step_counts_as_often() -> None:
    profile = profile_of(NAMES[:2], noisy([1, 2]))
    twice = replace(profile, runs=[replace(run_of(noisy([1, 2, 1, 2], seed=1)), rows=np.array([0, 1, 0, 1]))])
    assert {round(row.ratio, 1) for row in compare(profile, twice).rows} == {2.0}


def test_of_several_workers_the_slowest_counts() -> None:
    profile = profile_of(NAMES[:2], noisy([1, 2]))
    run = profile.runs[0]
    late = run.begin + 0.25 * (run.end - run.begin)
    shared = replace(
        run, begin=np.concatenate([run.begin, late], axis=1), end=np.concatenate([run.end, run.end], axis=1)
    )
    idle = replace(
        run, **{n: np.concatenate([getattr(run, n), np.full_like(run.end, np.nan)], axis=1) for n in ("begin", "end")}
    )
    for other in (shared, idle):
        assert [row.ratio for row in compare(profile, replace(profile, runs=[other])).rows] == [1, 1]


def test_a_step_in_several_calls_is_put_together() -> None:
    """forward() and backward() are two calls on one tape, and Python may take its time between them."""
    whole = profile_of(NAMES, noisy([1, 2, 3, 4]))
    parts = []
    for i, step in enumerate(noisy([1, 2, 3, 4], seed=1)):
        for first in (0, 2):
            part = run_of(step[None, first : first + 2])
            shift = 100.0 * i + 50 * first
            part = replace(part, rows=np.arange(first, first + 2), begin=part.begin + shift, end=part.end + shift)
            parts.append(replace(part, start=part.start + shift, stop=part.stop + shift))
    called = replace(whole, runs=parts)
    found = compare(whole, called)
    assert found.whole.steps == (20, 20)
    assert found.whole.ratio == pytest.approx(1, abs=0.05)
    assert {row.steps for row in found.rows} == {(20, 20)}
    dense = next(row for row in compare(whole, called, "op").rows if row.key[1] == "dense")  # rows of both calls
    assert dense.ratio == pytest.approx(1, abs=0.05)


def test_tapes_are_matched_by_name() -> None:
    def several(*named: tuple[str, float]) -> Profile:
        tapes = [tape_of(rows_of(NAMES[:1]), name) for name, _ in named]
        runs = [run_of(noisy([seconds], seed=i), i) for i, (_, seconds) in enumerate(named)]
        return Profile("profiling", "", {}, tapes, runs, 1.0)

    old = several(("forward", 1.0), ("update", 2.0), ("fit", 5.0))
    new = several(("forward", 1.0), ("predict", 3.0), ("update", 4.0))
    found = compare(old, new)
    assert [(row.key[0], row.state) for row in found.rows] == [
        ("fit", "gone"), ("predict", "new"), ("update", "slower"), ("forward", ""),
    ]  # fmt: skip
    assert found.whole.before == pytest.approx(3, rel=0.1)  # forward and update, which both have
    assert found.whole.after == pytest.approx(5, rel=0.1)
    assert {count.name.split()[0] for count in found.memory} == {"forward", "update"}
    assert found.whole.key == ("forward", "update")
    assert str(found).startswith("a step of each of 2 tapes: 3.")
    assert "only in the first: fit" in found.notes
    assert "only in the second: predict" in found.notes


def test_nothing_in_common() -> None:
    old = profile_of(NAMES, noisy([1, 2, 3, 4]))
    new = replace(old, what="predict", tapes=[replace(old.tapes[0], name="predict")])
    found = compare(old, new)
    assert math.isnan(found.whole.ratio)
    assert not found.slower_by(0)
    assert "nothing to compare" in str(found)
    assert "different things were measured: train_step and predict" in found.notes


# ---- what there is too little of


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_cannot_judge(steps: int) -> None:
    found = compare(profile_of(NAMES, noisy([1] * 4, steps)), profile_of(NAMES, noisy([9] * 4, steps, seed=1)))
    assert found.whole.ratio > 5
    assert math.isnan(found.whole.low)
    assert found.changed == []
    assert not found.slower_by(0.05)
    assert ("one step was measured" if steps == 1 else f"{steps} steps were measured") in str(found)
    assert "profile with 20 repeats" in str(found)
    assert "cannot be told" in str(found)


def test_few_steps_of_one_tape_are_told_of_that_one() -> None:
    counts = {"fit": 20, "predict": 1, "update": 1}
    tapes = [tape_of(rows_of(NAMES[:1]), name) for name in counts]
    runs = [run_of(noisy([1.0], steps), i) for i, steps in enumerate(counts.values())]
    profile = Profile("profiling", "", {}, tapes, runs, 1.0)
    assert [note for note in compare(profile, profile).notes if "measured" in note] == [
        "of predict, update one step was measured: that cannot tell a change from chance; profile with 20 repeats"
    ]


def test_many_groups_take_more_steps() -> None:
    """Six steps can say of one group that it changed, but not of a hundred: the largest of six exceeds the smallest by chance too often."""
    names = [("forward", f"op{i}", "node") for i in range(100)]
    few = compare(profile_of(names, noisy([1] * 100, 6)), profile_of(names, noisy([9] * 100, 6, seed=1)))
    assert few.whole.state == "slower"
    assert few.changed == []
    assert "to judge 100 groups takes 12" in str(few)
    enough = compare(profile_of(names, noisy([1] * 100, 12)), profile_of(names, noisy([9] * 100, 12, seed=1)))
    assert len(enough.changed) == 100


def test_nothing_measured() -> None:
    empty = profile_of([], np.zeros((0, 0)))
    found = compare(empty, empty)
    assert found.rows == []
    assert math.isnan(found.whole.ratio)
    assert str(found)
    none = Profile("profiling", "", {}, [], [], 0.0)
    assert compare(none, none).rows == []
    assert [row.state for row in compare(none, profile_of(NAMES, noisy([1, 2, 3, 4]))).rows] == ["new"] * 4


def test_rows_without_time_and_without_spans() -> None:
    old, new = noisy([1, 1, 1, 1]), noisy([1, 1, 1, 1], seed=1)
    old[:, 0] = new[:, 0] = 0
    old[:, 1] = 0
    first, second = profile_of(NAMES, old), profile_of(NAMES, new)
    second.runs[0].begin[:, :, 2] = np.nan
    rows = {row.key[1:4]: row for row in compare(first, second).rows}
    assert rows[NAMES[0]].ratio == 1
    assert rows[NAMES[1]].ratio == math.inf
    assert rows[NAMES[1]].state == "slower"
    assert rows[NAMES[2]].state == "gone"
    dense = next(row for row in compare(first, second, "op").rows if row.key[1] == "dense")
    assert dense.after == 0  # the one of them that ran
    json.dumps(compare(first, second).to_dict(), allow_nan=False)
    assert "inf" in str(compare(first, second))


# ---- what is told


def test_figures_that_are_exact() -> None:
    old = profile_of(NAMES, noisy([1] * 4), counters={"instructions": 4, "flops": 8, "gone": 1})
    new = profile_of(
        NAMES, noisy([1] * 4), counters={"instructions": 5, "flops": 8}, memory={"arena": 4096, "live": (1,) * 4}
    )
    found = compare(old, new)
    assert {(c.name, c.before, c.after) for c in found.counters} == {
        ("instructions", 4, 5), ("flops", 8, 8), ("gone", 1, None),
    }  # fmt: skip
    assert ("arena", 64, 4096) in {(c.name, c.before, c.after) for c in found.memory}
    assert "counters: instructions 4 -> 5, gone 1 -> none" in str(found)
    assert "memory: peak 64 B -> 1 B, arena 64 B -> 4.0 KiB" in str(found)


def test_machines_that_differ_are_told() -> None:
    old, new = profile_of(NAMES, noisy([1] * 4)), profile_of(NAMES, noisy([1] * 4))
    new.machine = {"cpu": "another"}
    assert "cpu differs: one and another" in compare(old, new).notes


def test_tapes_that_differ_are_told() -> None:
    old = profile_of(NAMES, noisy([1] * 4))
    new = replace(old, tapes=[replace(old.tapes[0], workers=2, sizes=("float32 (8,2)",))])
    assert compare(old, new).notes[1:] == [
        "inputs of train_step differ: ; float32 (8,2)",
        "workers of train_step differ: 1 and 2",
    ]


def test_slower_by() -> None:
    old = profile_of(NAMES, noisy([1] * 4, seed=1, noise=0.01))
    slower = compare(old, profile_of(NAMES, noisy([1.2] * 4, seed=2, noise=0.01)))
    assert slower.slower_by(0.05)
    assert slower.slower_by(0)
    assert not slower.slower_by(0.25)
    near = replace(slower, whole=replace(slower.whole, ratio=1.06, low=1.04))
    assert not near.slower_by(0.05)  # the interval reaches below
    assert not compare(old, old).slower_by(0)


def test_table() -> None:
    names = [("forward", "dense", "<script>é"), ("forward", "relu", "a" * 100), *NAMES]
    found = compare(profile_of(names, noisy([1] * 6)), profile_of(names, noisy([1, 1, 1, 2, 1, 1], seed=1)))
    lines = str(found.table(2)).splitlines()
    assert lines[0].startswith("a step: 6.")
    assert "slower (95 % interval +" in lines[0]
    assert lines[1].split()[:3] == ["phase", "op", "layer"]
    assert lines[2].startswith("forward  relu")
    assert lines[2].endswith("slower")
    assert lines[4] == "4 more"
    assert len(found.table(None)) == 6
    assert "<script>" not in found.table(None)._repr_html_()
    assert max(map(len, str(found).splitlines())) < 160


def test_what_takes_many_times_as_long_is_not_told_in_per_cent() -> None:
    a, b = profile_of(NAMES, noisy([1, 1, 1, 1], seed=1)), profile_of(NAMES, noisy([30, 30, 30, 30], seed=2))
    head = str(compare(a, b)).splitlines()[0]
    assert "30 times as long (95 % interval " in head
    assert "%" not in head.replace("95 %", "")
    assert "% faster" in str(compare(b, a))


def test_json(tmp_path) -> None:
    found = compare(profile_of(NAMES, noisy([1] * 4)), profile_of(NAMES[:3], noisy([1, 2, 1], seed=1)))
    path = found.to_json(tmp_path / "found.json")
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(found.to_dict()))
    assert {row["state"] for row in read["rows"]} == {"gone", "slower", ""}
    assert next(row for row in read["rows"] if row["state"] == "gone")["after"] is None
    assert read["whole"]["steps"] == [20, 20]
    assert read["by"] == "instruction"


def test_names_of_changes() -> None:
    assert Change(("", "forward", "dense", "a", "#2"), 1, 2).name == "forward dense a #2"
    assert Change((), 1, 2).name == ""
