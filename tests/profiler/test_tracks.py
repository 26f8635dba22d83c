import numpy as np
import pytest
from profiler.profiles import profile, row, small, tape
from profiler.timelines import TIMELINES, python_row_that_calls_a_graph, threads, two_workers_apart

from tapeprop.profiler.colours import phase_colour
from tapeprop.profiler.tracks import (
    groups,
    in_order,
    lanes,
    node_name,
    present,
    run_bounds,
    runs_side_by_side,
    waits,
    whole_rows,
    with_waits,
    worker_spans,
)

MS = 1_000_000


def listed(spans):
    return list(zip(spans.begin.tolist(), spans.end.tolist(), spans.place.tolist(), strict=True))


def test_spans_of_a_worker_are_those_that_it_had_a_part_in():
    run = two_workers_apart().runs[0]
    assert listed(worker_spans(run, 1)) == [
        (200_000, 1_500_000, 0),
        (1_700_000, 2_400_000, 1),
        (2_500_000, 3 * MS, 2),
        (4 * MS, 4_500_000, 3),
        (6 * MS, 7_500_000, 5),
    ]


def test_a_row_lasts_until_the_last_worker_is_done_or_the_next_row_begins():
    run = two_workers_apart().runs[0]
    first, second, *_ = listed(whole_rows(run))
    assert first == (0, MS, 0)  # the second worker needs until 1.5 ms, when the first is at the next row
    assert second == (MS, 2_400_000, 1)


def test_waits_fill_what_spans_leave():
    run = two_workers_apart().runs[0]
    spans = worker_spans(run, 1)
    filled = with_waits(spans, run)
    assert filled.begin[1:].tolist() == filled.end[:-1].tolist()
    assert filled.end[-1] == 7_500_000
    gaps = waits(spans, run)
    assert (gaps.end - gaps.begin).sum() + (spans.end - spans.begin).sum() == 7_300_000


def test_groups_end_with_the_label_the_step_and_the_round():
    made = TIMELINES["micro-batches"]()
    run, rows = made.runs[0], made.tapes[0].rows
    found = groups(whole_rows(run), run, lambda number: rows[number].node)
    assert found.place.tolist() == [0, 2, 4, 6, 7, 9, 11, 13]  # three rounds of node a, and the update
    phases = groups(whole_rows(run), run, lambda number: rows[number].phase)
    assert phases.place.tolist() == list(range(14))
    assert groups(whole_rows(run), run, lambda number: 0).place.tolist() == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("name", TIMELINES)
def test_spans_are_in_order_and_inside_their_run(name):
    for run in TIMELINES[name]().runs:
        start, stop = run_bounds(run)
        for spans in (whole_rows(run), *(worker_spans(run, worker) for worker in present(run))):
            assert (spans.begin <= spans.end).all()
            assert (spans.end[:-1] <= spans.begin[1:]).all()
            assert ((start <= spans.begin) & (spans.end <= stop)).all()


def test_workers_that_took_part():
    assert present(TIMELINES["absent worker"]().runs[0]) == [0]
    assert present(small(workers=2).runs[0]) == [0, 1]
    assert present(TIMELINES["no steps"]().runs[0]) == []


def test_lanes():
    assert [(lane.name, lane.runs) for lane in lanes(threads(False))] == [("trainer", [0]), ("server", [1])]
    assert [(lane.name, lane.runs) for lane in lanes(threads(True))] == [("trainer", [0]), ("trainer (2)", [1])]
    assert [(lane.name, lane.runs) for lane in lanes(python_row_that_calls_a_graph())] == [("MainThread", [0, 1])]
    after = profile(tape([row(0)], [1e-3]), tape([row(0)], [1e-3], first=1.0))
    assert [(lane.name, lane.runs) for lane in lanes(after)] == [("MainThread", [0, 1])]
    assert lanes(profile()) == []


def test_runs_that_go_on_at_the_same_time_come_together():
    pairs = [tape([row(0)], [1e-3], steps=1, first=first) for first in (5.0, 0.0, 0.0005, 0.003)]
    made = profile(*pairs)
    assert in_order(made) == [1, 2, 3, 0]
    assert list(runs_side_by_side(made)) == [[1, 2], [3], [0]]
    assert list(runs_side_by_side(made, [3, 1])) == [[1], [3]]
    assert list(runs_side_by_side(profile())) == []


def test_a_row_without_a_node_is_named_after_its_phase():
    assert node_name(row(0, node="a")) == "a"
    assert node_name(row(0, "update", node="")) == "(update)"


def test_phases_have_colours_of_their_own():
    phases = ("fold", "gather", "forward", "loss", "backward", "update", "something else")
    assert len({phase_colour(phase) for phase in phases}) == len(phases)
    assert all(np.array([int(phase_colour(phase)[i : i + 2], 16) for i in (1, 3, 5)]).mean() > 90 for phase in phases)
