"""The figures of a profile, checked by hand on profiles made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from profiler.profiles import NASTY, ROOFS, profile, row, small, tape

import tapeprop as tp
from tapeprop.layers import Dense
from tapeprop.profiler.tables import BY, SORTS, figures, row_seconds, table
from tapeprop.profiler.text import Table, count_text, seconds_text, share_text, size_text


def test_by_instruction():
    first, second, third = figures(small())
    assert (first.key, first.rows, first.phase, first.op, first.layer) == (
        "1 relu",
        ((0, 1),),
        "forward",
        "relu",
        NASTY,
    )
    assert first.seconds == pytest.approx(2e-3)
    assert first.share == pytest.approx(0.5)
    assert first.calls == 1  # of a step
    assert (first.flops, first.traffic) == (12, 96)
    assert first.gflops == pytest.approx(12 / 2e-3 / 1e9)
    assert first.gbytes == pytest.approx(96 / 2e-3 / 1e9)
    assert first.wait == pytest.approx(1e-6)
    assert first.imbalance == 1
    assert math.isnan(first.roof)
    assert [f.key for f in (second, third)] == ["0 matmul", "2 matmul_grad"]


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("op", ["relu", "matmul", "matmul_grad"]),
        ("node", ["a", NASTY]),
        ("layer", ["a", NASTY]),
        ("phase", ["forward", "backward"]),
    ],
)
def test_groups(by, keys):
    found = figures(small(), by)
    assert [f.key for f in found] == keys
    assert sum(f.share for f in found) == pytest.approx(1)
    assert sum(f.seconds for f in found) == pytest.approx(4e-3)
    assert sum(f.flops for f in found) == 4012
    whole = found[0]
    if by == "node":
        assert whole.rows == ((0, 0), (0, 2))
        assert (whole.phase, whole.op, whole.node) == ("", "", "a")  # they do not agree


@pytest.mark.parametrize("sort", SORTS)
def test_orders(sort):
    found = figures(small(), "instruction", sort)
    key = {"time": "seconds", "bytes": "traffic", "name": "key", "row": "rows"}.get(sort, sort)
    values = [getattr(f, key) for f in found]
    assert values == sorted(values, reverse=sort not in ("row", "name"))


def test_of_several_tapes_everything_is_added_up():
    one = tape([row(0), row(1)], [1e-3, 1e-3], steps=2)
    other = tape([row(0, "update", "sgd", "")], [5e-3], steps=3, name="update", first=1.0)
    found = profile(one, other, what="profiling")
    assert not found.per_step
    by_op = {f.key: f for f in figures(found, "op")}
    assert by_op["matmul"].calls == 4
    assert by_op["matmul"].seconds == pytest.approx(4e-3)
    assert by_op["sgd"].seconds == pytest.approx(15e-3)
    assert [f.key for f in figures(found)] == ["update 0 sgd", "train_step 0 matmul", "train_step 1 matmul"]
    assert {f.key for f in figures(found, "node")} == {"a", "(none)"}


def test_a_median_does_not_see_an_interruption_and_the_slowest_worker_counts():
    made, run = tape([row(0)], [1e-3], steps=5, workers=2)
    run.end[3, 0, 0] += 1.0
    run.end[:, 1, 0] += 1e-3
    assert row_seconds(profile((made, run)))[0] == pytest.approx([2e-3])


def test_the_time_of_a_step_is_a_median_with_waits():
    made, run = tape([row(0), row(1)], [1e-3, 1e-3], steps=3, wait=1e-4)
    run.end[2] += 1.0
    found = profile((made, run))
    assert found.step_seconds == pytest.approx(2.2e-3)  # from begin to begin
    assert "3 steps of 2.2 ms" in str(found)
    assert run.walls.sum() == pytest.approx(run.stop - run.start)
    assert dataclasses.replace(found, runs=[]).step_seconds == pytest.approx(2.2e-3)  # the wall time
    assert math.isnan(profile((made, run), tape([row(0)], [1.0])).step_seconds)
    assert math.isnan(profile().step_seconds)


def test_rows_whose_spans_were_dropped_have_their_mean():
    made, _ = tape([row(0)], [1e-3], steps=4)
    made.busy[0, 0] = 4 * 3e-3
    found = dataclasses.replace(small(), tapes=[made], runs=[])
    assert row_seconds(found)[0] == pytest.approx([3e-3])
    assert figures(found)[0].seconds == pytest.approx(3e-3)


def test_a_worker_that_took_no_part_is_left_out():
    made, run = tape([row(0)], [1e-3], workers=2)
    run.begin[:, 1] = run.end[:, 1] = np.nan
    made.busy[:, 1] = 0
    (found,) = figures(profile((made, run)))
    assert found.seconds == pytest.approx(1e-3)
    assert found.imbalance == pytest.approx(2)


def test_share_of_the_roof():
    """2000 operations at 1e11 per second take 20 ns, 400 bytes from the nearest cache 2 ns."""
    found = {f.key: f for f in figures(small(roofs=ROOFS))}
    assert found["0 matmul"].roof == pytest.approx(20e-9 / 1.1e-3)
    relu = figures(profile(tape([row(0, flops=1, traffic=2000)], [1e-6]), roofs=ROOFS))
    assert relu[0].roof == pytest.approx(10e-9 / 1e-6)
    nothing = figures(profile(tape([row(0, flops=0, traffic=0)], [1e-6]), roofs=ROOFS))
    assert math.isnan(nothing[0].roof)


def test_rows_without_time():
    made, run = tape([row(0)], [0.0], wait=0.0)
    (found,) = figures(profile((made, run), roofs=ROOFS))
    assert (found.seconds, found.gflops, found.gbytes, found.share) == (0, 0, 0, 0)
    assert "0 ns" in str(profile((made, run)).table())


def test_what_is_no_grouping_order_or_number_is_refused():
    with pytest.raises(ValueError, match="expected by='instruction' or"):
        figures(small(), "kernel")
    with pytest.raises(ValueError, match="expected sort='time' or"):
        figures(small(), "op", "speed")
    for top in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="top of at least 1 or None"):
            table(small(), top=top)


# ---- text


def test_the_table_says_what_the_figures_say():
    found = small(workers=2).table(top=1)
    text = str(found)
    assert text.startswith("train_step(float32 (4,5)): 2 steps of 4 ms on 2 workers, 3 instructions\n")
    assert len(found) == 1
    (line,) = found
    assert (line["row"], line["op"], line["time"], line["share"], line["FLOPs"]) == ("1", "relu", "2 ms", "50.0%", "12")
    assert "2 more take 2 ms (50.0%)" in text
    assert "of 8.01 ms in tapes: instructions 99.9%, waits and dispatch 0.1%" in text
    assert "values 128 B, 33% less than side by side; parameters 60 B" in text
    assert "more take" not in str(small().table(top=None))
    assert "imbalance" not in str(small().table())  # one worker
    assert ": 1 step of 1 ms on 1 worker, 1 instruction\n" in str(profile(tape([row(0)], [1e-3], steps=1, wait=0)))


def test_wall_time_is_told_in_full():
    made = profile(tape([row(0)], [3e-3], steps=1, wait=1e-3))
    assert "instructions 75.0%, waits and dispatch 25.0%\n" in str(made)
    made.tapes[0].wall *= 2
    assert "instructions 37.5%, waits and dispatch 12.5%, outside of the executor's loop 50.0%\n" in str(made)


@pytest.mark.parametrize("by", BY)
def test_a_real_profile_in_every_grouping(by):
    node = tp.LayerNode(Dense(4, 3), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4), workers=1)
    found = graph.profile(np.ones((5, 4)), repeats=2)
    (line,) = found.table(by)
    assert line["share"] == "100.0%"
    assert line["roof"].endswith("%")
    assert str(found) == str(found.table())
    assert "train" not in repr(found)
    assert repr(found) == "<Profile of predict: 1 tapes, 2 steps>"


def test_html_is_escaped():
    html = small()._repr_html_()
    assert "<script>" not in html
    assert "&lt;/script&gt;" in html


def test_long_cells_are_cut_and_lines_stay_lines():
    found = str(Table("title", ("a", "b"), [("x" * 100, "1"), ("line\nbreak", "2")], left=("a",), width=20))
    assert found.splitlines() == ["title", "a                     b", "x" * 17 + "...  1", "line break            2"]


def test_what_terminals_obey_is_not_printed():
    nasty = "a\x1b[31m\u202eb\x00\ud800"
    table = Table("", ("name",), [(nasty,)], left=("name",))
    assert str(table).splitlines()[1] == "a\ufffd[31m\ufffdb\ufffd\ufffd"
    assert "<td>a\ufffd[31m\ufffdb\ufffd\ufffd</td>" in table._repr_html_()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.3, "12.3 s"), (4567.0, "4,567 s"), (0.0456, "45.6 ms"), (7.89e-4, "789 us"), (2e-9, "2 ns"), (0, "0 ns"), (math.nan, "-"),
     (9.996e-4, "1 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (9.999e-7, "1 us"), (999.7, "1,000 s")],
)  # fmt: skip
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_sizes_counts_and_shares():
    assert [size_text(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5120.0 GiB",
    ]  # fmt: skip
    assert [count_text(n) for n in (0, 12, 1234, 2.5e6, 3e9, 4.2e12)] == [
        "0",
        "12",
        "1.23 k",
        "2.5 M",
        "3 G",
        "4,200 G",
    ]
    assert [count_text(n) for n in (999.4, 999.7, 999_700)] == ["999", "1 k", "1 M"]
    assert [share_text(x) for x in (0.5, 1.25, math.nan, math.inf)] == ["50.0%", "125.0%", "-", "-"]
