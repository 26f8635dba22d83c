"""Steps that run the rows at the front several times before the rest: the micro-batches of one update."""

import numpy as np
import pytest
from runtime.kernels_for_tests import kernel
from runtime.tapes_for_tests import WORKERS, make_tape

from tapeprop.runtime.executor import STEP, Rounds, bound_tape, run, times

SIZE, ROWS = 37, 12


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("barriers", [True, False])
@pytest.mark.parametrize("rounds", [Rounds(2, 3), Rounds(ROWS - 2, 2), Rounds(4, 1), Rounds(ROWS, 3)])
def test_the_front_runs_several_times_and_then_the_rest(workers, barriers, rounds):
    """Each row needs what all workers wrote in the one before; without marks only the ends of rounds are barriers."""
    a, b = np.arange(SIZE), np.zeros(SIZE, np.int64)
    rows = [(kernel("neighbours"), (a, b) if i % 2 == 0 else (b, a), (i, 200)) for i in range(ROWS)]
    tape, control = make_tape(rows)
    if not barriers:
        tape[[rounds.rows - 1, ROWS - 1], 1] = 0
    assert run(tape, control, steps=2, workers=workers, rounds=rounds) is None
    assert control[STEP] == 2
    expected = np.arange(SIZE)
    for shift in [*[*range(rounds.rows)] * rounds.repeats, *range(rounds.rows, ROWS)] * 2:
        expected = (3 * np.roll(expected, -1) + np.roll(expected, -7) + shift) & 0xFFFF
    np.testing.assert_array_equal(a, expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_steps_are_counted_and_not_rounds(workers):
    counts = np.zeros((3, 2), np.int64)
    tape, control = make_tape([(kernel("count_up"), (x,), ()) for x in counts])
    assert run(tape, control, steps=4, workers=workers, rounds=Rounds(2, 5)) is None
    assert counts.tolist() == [[20, 3], [20, 3], [4, 3]]
    assert run(tape, control, steps=2, workers=workers) is None  # and as usual again
    assert counts.tolist() == [[22, 1], [22, 1], [6, 1]]
    assert run(tape, control, first=1, count=2, workers=workers, rounds=Rounds(1, 2)) is None
    assert counts[:, 0].tolist() == [22, 24, 7]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("place", [1, 3])
def test_a_failure_ends_the_run_in_the_front_and_in_the_rest(workers, place):
    counts = np.zeros((3, 2), np.int64)
    rows = [(kernel("count_up"), (x,), ()) for x in counts]
    rows.insert(place, (kernel("fail_if"), (np.array([workers - 1, 42, 1]),), ()))
    tape, control = make_tape(rows)
    assert run(tape, control, steps=3, workers=workers, rounds=Rounds(3, 2)) == (place, 42)
    assert control[STEP] == 1
    # step 0 whole; of step 1 the first round up to the failure, or both rounds and nothing of the rest
    assert counts[:, 0].tolist() == ([3, 2, 1] if place == 1 else [4, 4, 4])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_timed_run_holds_every_round(workers):
    counts = np.zeros((3, 2), np.int64)
    tape, control = make_tape([(kernel("count_up"), (x,), ()) for x in counts])
    buffer = times(2, workers, 2 * 4 + 1)
    assert run(tape, control, steps=2, workers=workers, timing=buffer, rounds=Rounds(2, 4)) is None
    assert counts[:, 0].tolist() == [8, 8, 2]
    assert (buffer > 0).all()
    assert (np.diff(buffer.transpose(1, 0, 2, 3).reshape(workers, -1)) >= 0).all()


@pytest.mark.parametrize("rounds", [Rounds(0, 2), Rounds(4, 2), Rounds(2, 0)])
def test_rounds_that_no_tape_has_are_refused(rounds):
    counts = np.zeros((3, 2), np.int64)
    tape, control = make_tape([(kernel("count_up"), (x,), ()) for x in counts])
    with pytest.raises(ValueError, match="rounds: expected 1 to 3 rows"):
        bound_tape(tape, control).run(rounds=rounds)
    assert not counts.any()
