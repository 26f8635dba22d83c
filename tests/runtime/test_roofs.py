import math
import os
import threading

import numpy as np
import pytest
from runtime.tapes_for_tests import run_program

from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.runtime import team
from tapeprop.runtime.executor import aligned_words, control_block, run
from tapeprop.runtime.linker import load_text
from tapeprop.runtime.memory import aligned
from tapeprop.runtime.roofs import DTYPES, WELL_INSIDE, _most_at_once, measure_roofs, working_sets
from tapeprop.targets.cpu.roof_kernels import ROOF_KERNELS, STREAM_BLOCK, fma_operations, roof_text

KB, MB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def measured():
    return measure_roofs(2)


def run_kernel(name: str, fields: list[int], workers: int) -> None:
    address = load_text(roof_text(), ROOF_KERNELS, "test")[name]
    control = control_block()
    tape = aligned_words(16).reshape(1, 16)
    tape[0, : FIRST_FIELD + len(fields)] = [address, 1, control.ctypes.data, 0, *fields]
    assert run(tape, control, workers=workers) is None


# ---- kernels


@pytest.mark.parametrize("workers", [1, 3])
def test_stream_adds_once_per_round_and_nowhere_else(workers):
    each, between, apart, rounds = 3 * STREAM_BLOCK, 4 * STREAM_BLOCK, 9 * STREAM_BLOCK, 5
    memory = aligned(workers * apart)
    values = memory.view(np.float32)
    values[:] = np.arange(values.size) % 7
    expected = values.copy()
    for worker in range(workers):
        y = slice(worker * apart // 4, (worker * apart + each) // 4)
        x = slice((worker * apart + between) // 4, (worker * apart + between + each) // 4)
        expected[y] += rounds * expected[x]
    run_kernel("stream", [memory.ctypes.data, apart, between, each, rounds], workers)
    np.testing.assert_array_equal(values, expected)  # small integers: exact


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_leaves_its_sums_and_counts_them(dtype):
    lines = aligned(3 * 64)
    run_kernel(f"fma_{dtype}", [1000, lines.ctypes.data], 3)
    chains = roof_text().split(f"@fma_{dtype}(")[1].split("define")[0].count("fadd contract")
    lanes = fma_operations(dtype) // (2 * chains)
    found = lines.view(dtype).reshape(3, -1)[:, :lanes]
    assert found.shape == (3, lanes)
    np.testing.assert_allclose(found, chains / 3, rtol=1e-5)  # each sum goes to 1/3; float32 adds a few roundings


def test_measuring_loads_no_numba():
    out, _ = run_program(
        """
        import sys
        from tapeprop.runtime.roofs import measure_roofs
        print(len(measure_roofs(1).flops), "numba" in sys.modules)
        """
    )
    assert out.split() == ["2", "False"]


# ---- measuring


def test_what_is_measured(measured):
    assert set(measured.flops) == {(dtype, n) for dtype in DTYPES for n in (1, 2)}
    assert set(measured.bandwidth) == {1, 2}
    for n, levels in measured.bandwidth.items():
        assert [size for size, _ in levels] == working_sets(n)
        assert len(levels) >= 2
    rates = [*measured.flops.values(), *(rate for levels in measured.bandwidth.values() for _, rate in levels)]
    assert all(isinstance(rate, float) and math.isfinite(rate) and rate > 0 for rate in rates)


def test_one_worker_and_one_more_than_there_are_cpus():
    assert set(measure_roofs(1).bandwidth) == {1}
    many = team.default_workers() + 1
    assert set(measure_roofs(many).bandwidth) == {1, many}


def test_a_busy_team_is_not_measured():
    measure_roofs(2)
    with team._get_team().busy:
        found = measure_roofs(2)
    assert set(found.bandwidth) == {1}
    assert set(found.flops) == {(dtype, 1) for dtype in DTYPES}


@pytest.mark.parametrize("workers", [0, -1, team.MAX_WORKERS + 1])
def test_workers_that_cannot_be(workers):
    with pytest.raises(ValueError, match=f"workers: expected 1 to {team.MAX_WORKERS}, got {workers}"):
        measure_roofs(workers)


# ---- working sets


@pytest.mark.parametrize(
    ("workers", "caches", "expected"),
    [
        (1, [(32 * KB, 1), (512 * KB, 1), (32 * MB, 2)], [8 * KB, 128 * KB, 8 * MB]),
        (2, [(32 * KB, 1), (512 * KB, 1), (32 * MB, 2)], [8 * KB, 128 * KB, 4 * MB]),
        (2, [(32 * KB, 2), (512 * KB, 2), (32 * MB, 64)], [4 * KB, 64 * KB, 4 * MB]),
        # a last cache that leaves each of many workers less than its own L2
        (22, [(32 * KB, 2), (1 * MB, 2), (30 * MB, 44)], [4 * KB, 128 * KB]),
        (1, [(32 * KB, 1)], [8 * KB]),
        (1, [(512, 1)], []),  # a quarter is less than the kernel takes at once
    ],
)
def test_a_quarter_of_each_share_then_memory(workers, caches, expected):
    *sizes, memory = working_sets(workers, caches)
    assert sizes == expected
    assert memory * workers >= min(4 * caches[-1][0], 256 * MB) * 0.99
    assert memory > WELL_INSIDE * max(sizes, default=0)
    assert not any(size % (2 * STREAM_BLOCK) for size in [*sizes, memory])


def test_sizes_grow():
    for workers in (1, 2, 64, 1024):
        for caches in ([(48 * KB, 1), (2 * MB, 1), (512 * MB, 64)], [(64 * KB, 1), (4 * MB, 4)], []):
            sizes = working_sets(workers, caches)
            assert sizes == sorted(set(sizes))
            assert sizes[0] > 0


def test_memory_is_bounded():
    assert working_sets(1, [(32 * KB, 1), (1 << 30, 1)])[-1] <= 512 * MB


# ---- of several workers


def at_once(*workers: list[tuple[int, int]]) -> float:
    spans = np.array(workers, np.int64)
    return _most_at_once(spans[..., 0], spans[..., 1])


def test_the_moment_when_the_workers_were_fastest():
    warm = (0, 1)
    assert at_once([warm, (10, 20), (20, 25)]) == pytest.approx(1 / 5)
    assert at_once([warm, (10, 20), (20, 25)], [warm, (10, 20), (20, 40)]) == pytest.approx(1 / 5 + 1 / 20)
    # one after the other: never at once
    assert at_once([warm, (10, 20), (30, 40)], [warm, (20, 30), (40, 50)]) == 0
    # kept from its core in between, and not counted as fast for that
    assert at_once([warm, (10, 20), (20, 30)], [warm, (5, 105), (105, 110)]) == pytest.approx(1 / 10 + 1 / 100)
    assert at_once([warm, (10, 10)]) == pytest.approx(1)  # no time that the clock can tell
    assert at_once([(0, 9)]) == 0  # nothing but the warm one


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system ties no threads to CPUs")
def test_threads_are_free_again():
    measure_roofs(2)
    threads = [threading.get_native_id(), *team.thread_ids()]
    before = [os.sched_getaffinity(thread) for thread in threads]
    measure_roofs(2)
    assert [os.sched_getaffinity(thread) for thread in threads] == before


def test_several_workers_count_for_one_at_least(measured):
    for dtype in DTYPES:
        assert measured.flops[dtype, 2] >= measured.flops[dtype, 1]
    assert measured.bandwidth[2][-1][1] >= measured.bandwidth[1][-1][1]
