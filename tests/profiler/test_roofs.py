import math
import os

import pytest
from patience import HANG_SECONDS

from tapeprop.profiler import roofs as module
from tapeprop.profiler.profile import Roofs
from tapeprop.profiler.roofs import level_names, machine_roofs, roof_seconds, row_roof
from tapeprop.runtime.roofs import MeasuredRoofs

KB, MB = 1 << 10, 1 << 20
ROOFS = Roofs(
    {("float32", 1): 100e9, ("float64", 1): 50e9, ("float32", 4): 400e9, ("float64", 4): 200e9},
    {
        1: ((8 * KB, 300e9), (128 * KB, 100e9), (64 * MB, 20e9)),
        4: ((8 * KB, 1200e9), (128 * KB, 400e9), (32 * MB, 40e9)),
    },
)


@pytest.mark.parametrize(
    ("flops", "traffic", "dtype", "workers", "seconds", "bound", "level"),
    [
        (10**9, 1000, "float32", 1, 1e-2, "compute", "L1"),
        (10**9, 1000, "float64", 1, 2e-2, "compute", "L1"),
        (10**9, 1000, "float32", 4, 2.5e-3, "compute", "L1"),
        (0, 32 * KB, "float32", 1, 32 * KB / 300e9, "bandwidth", "L1"),  # four times what L1 was measured with
        (0, 32 * KB + 1, "float32", 1, (32 * KB + 1) / 100e9, "bandwidth", "L2"),
        (0, 128 * KB, "float32", 4, 128 * KB / 1200e9, "bandwidth", "L1"),  # a quarter of it for each worker
        (0, 1 << 40, "float32", 1, (1 << 40) / 20e9, "bandwidth", "memory"),
        (10**6, 10 * MB, "float32", 1, 10 * MB / 20e9, "bandwidth", "memory"),
        (0, 0, "float32", 1, 0.0, "", "L1"),
        (10**9, 0, "float32", 3, 1e-2, "compute", "L1"),  # three were not measured: one was
        (10**9, 0, "float32", 9, 2.5e-3, "compute", "L1"),
        (10**9, 300, "int64", 1, 1e-9, "bandwidth", "L1"),
    ],
)
def test_the_least_time_of_a_row(flops, traffic, dtype, workers, seconds, bound, level):
    found = row_roof(ROOFS, flops, traffic, dtype, workers)
    assert found.seconds == pytest.approx(seconds, rel=1e-12)
    assert (found.bound, found.level) == (bound, level)
    assert roof_seconds(ROOFS, flops, traffic, dtype, workers) == found.seconds


def test_more_work_needs_more_time():
    for flops, traffic in ((1, 10**3), (10**6, 10**5), (10**9, 10**7)):
        least = roof_seconds(ROOFS, flops, traffic, "float32", 1)
        assert roof_seconds(ROOFS, 2 * flops, 2 * traffic, "float32", 1) >= 2 * least
        assert roof_seconds(ROOFS, flops, traffic, "float32", 4) <= least


def test_nothing_measured():
    found = row_roof(Roofs(), 100, 100, "float32", 1)
    assert (found.seconds, found.bound, found.level) == (0.0, "", "")
    assert math.isnan(found.peak)
    assert math.isnan(found.bandwidth)


def test_names_of_levels():
    assert [level_names(n) for n in range(4)] == [[], ["memory"], ["L1", "memory"], ["L1", "L2", "memory"]]


@pytest.fixture
def measurements(monkeypatch):
    """What was measured, as lists of workers; the team is busy the first time."""
    asked = []

    def measure(workers):
        asked.append(workers)
        counts = {1} if len(asked) == 1 else {1, workers}
        return MeasuredRoofs({("float32", n): 1.0 for n in counts}, dict.fromkeys(counts, ((8, 1.0),)))

    monkeypatch.setattr(module, "measure_roofs", measure)
    monkeypatch.setattr(module, "_measured", {})
    return asked


def test_measured_once_per_process_and_again_where_the_team_was_busy(measurements):
    assert set(machine_roofs(2).bandwidth) == {1}
    assert set(machine_roofs(2).bandwidth) == {1, 2}
    assert machine_roofs(2) is machine_roofs(2)
    assert machine_roofs(1) is machine_roofs(1)
    assert measurements == [2, 2, 1]


def test_this_machine():
    found = machine_roofs(1)
    assert found.flops["float32", 1] > 0
    least = row_roof(found, 10**6, 10**5, "float32", 1)
    assert 0 < least.seconds < 1
    with pytest.raises(ValueError, match="workers: expected"):
        machine_roofs(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_while_roofs_are_measured_may_measure_its_own():
    with module._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if module._lock.acquire(timeout=HANG_SECONDS) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
