import os
import threading
import time

import numpy as np
import pytest
from patience import wait_until
from runtime.kernels_for_tests import kernel
from runtime.tapes_for_tests import WORKERS, make_tape, run_program
from runtime.test_executor import ring_expected, ring_tape

from tapeprop.runtime import team
from tapeprop.runtime.executor import BoundTape, times
from tapeprop.runtime.native_layout import MAILBOX
from tapeprop.runtime.team import MAX_WORKERS, default_workers, run_bound, run_team, team_size

RING = """
    import numpy as np
    from runtime.test_executor import ring_expected, ring_tape
    from tapeprop.runtime import team
    from tapeprop.runtime.team import run_team
    team._EXIT_SECONDS = 60  # on a busy machine too the end waits for the team
    def ring(workers=3, steps=2):
        a, _, tape, control = ring_tape()
        assert run_team(tape, control, steps=steps, workers=workers) is None
        return np.array_equal(a, ring_expected(steps))
"""


def test_size_grows_as_wanted_and_stays():
    for workers in WORKERS:
        a, _, tape, control = ring_tape()
        assert run_team(tape, control, workers=workers) is None
        np.testing.assert_array_equal(a, ring_expected(1))
        assert team_size() >= workers
    a, _, tape, control = ring_tape()
    assert run_team(tape, control, workers=2) is None  # fewer than there are
    np.testing.assert_array_equal(a, ring_expected(1))
    names = {thread.name for thread in threading.enumerate()}
    assert {"tapeprop-worker-1", "tapeprop-worker-7"} <= names


def test_default_is_what_the_machine_gives():
    assert 1 <= default_workers() <= (os.cpu_count() or 1)
    a, _, tape, control = ring_tape()
    assert run_team(tape, control) is None
    np.testing.assert_array_equal(a, ring_expected(1))


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1])
def test_workers_are_checked(workers):
    _, _, tape, control = ring_tape()
    with pytest.raises(ValueError, match="workers"):
        run_team(tape, control, workers=workers)


def test_every_worker_takes_part_once_per_row():
    a, b = np.arange(64), np.zeros(64, np.int64)
    tape, control = make_tape([(kernel("neighbours"), (a, b), (0, 0))])
    buffer = times(4, 8, 1)
    assert run_team(tape, control, steps=4, workers=8, timing=buffer) is None
    assert (buffer > 0).all()
    np.testing.assert_array_equal(b, 3 * np.roll(a, -1) + np.roll(a, -7))


def test_many_short_runs_in_a_row():
    x = np.zeros(2, np.int64)
    bound = BoundTape(*make_tape([(kernel("count_up"), (x,), ())]))
    for i in range(3000):
        assert run_bound(bound, workers=2 + i % 2) is None
    assert x[0] == 3000


def test_a_busy_team_leaves_a_run_to_its_own_thread():
    a, _, tape, control = ring_tape()
    run_team(tape, control, workers=2)
    with team._get_team().busy:
        b, _, tape, control = ring_tape()
        buffer = times(1, 3, len(tape))
        assert run_team(tape, control, workers=3, timing=buffer) is None
        np.testing.assert_array_equal(b, ring_expected(1))
    assert (buffer[:, 0] > 0).all()
    assert (buffer[:, 1:] == 0).all()  # one worker did it
    np.testing.assert_array_equal(a, ring_expected(1))


def test_threads_at_once_give_the_same_bits():
    wrong: list[int] = []

    def work() -> None:
        for _ in range(15):
            a, _, tape, control = ring_tape()
            if run_team(tape, control, steps=3, workers=3) is not None or not np.array_equal(a, ring_expected(3)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="needs the clocks of threads")
def test_workers_without_a_run_sleep():
    _, _, tape, control = ring_tape()
    run_team(tape, control, workers=3)
    found = team._get_team()
    sleepers = found.block.reshape(-1, 8)[1 : team_size(), MAILBOX["sleepers"]]
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in found.threads]

    def used():
        return [time.clock_gettime_ns(clock) for clock in clocks]

    def asleep():
        before = used()
        time.sleep(0.01)
        return sleepers.all() and used() == before

    wait_until(asleep, "all workers sleep and use no processor")


def test_a_refused_run_frees_the_team():
    _, _, tape, control = ring_tape()
    with pytest.raises(ValueError, match="expected rows"):
        run_team(tape, control, first=10_000, workers=2)
    assert not team._get_team().busy.locked()


def test_no_threads_to_be_had(monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "_team", team._Team())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    a, _, tape, control = ring_tape()
    assert run_team(tape, control, workers=4) is None
    np.testing.assert_array_equal(a, ring_expected(1))
    assert team_size() == 1


# ---- processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_its_own_team():
    out, _ = run_program(
        RING
        + """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    print(ring())
    with team._get_team().busy:  # as if another thread were in a run
        child = os.fork()
        if child == 0:
            before = team.team_size()
            os._exit(0 if ring() and before == 1 and team.team_size() == 3 else 1)
        print(os.waitpid(child, 0)[1])
    print(ring())
    """
    )
    assert out.split() == ["True", "0", "True"]


def test_a_spawned_child_works():
    out, _ = run_program(
        RING
        + """
    import multiprocessing
    from runtime import spawned_for_tests
    print(ring())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(spawned_for_tests.ring))
    """
    )
    assert out.split() == ["True", "True"]


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "import sys; sys.exit(0)",
        "import threading; threading.Thread(target=ring).start()",
        "import threading; threading.Thread(target=lambda: [ring() for _ in range(10**6)], daemon=True).start()",
        "team._at_exit(); assert ring()",
        "team._EXIT_SECONDS = 0.1; team._get_team().busy.acquire()",  # as if a run never ended
        "import os; os._exit(0)",
    ],
)
def test_the_interpreter_ends(ending):
    """Without a hang or a crash, whatever the team is doing."""
    run_program(RING + f"\n    assert ring(8)\n    {ending}\n")


def test_the_interpreter_ends_by_an_interrupt():
    """Signals reach Python although threads wait in native code."""
    run_program(
        RING
        + """
    import os, signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it
    ring()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            ring()
    except KeyboardInterrupt:
        pass
    """
    )
