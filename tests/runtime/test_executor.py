import ctypes
import gc
import re
import threading

import numpy as np
import pytest
from patience import HANG_SECONDS, wait_until
from runtime.kernels_for_tests import kernel
from runtime.tapes_for_tests import WORKERS, make_tape

from tapeprop.runtime import executor
from tapeprop.runtime.executor import STEP, BoundTape, aligned_words, control_block, run, times
from tapeprop.runtime.linker import load_text
from tapeprop.runtime.native_loop import loop_text
from tapeprop.targets.cpu.kernel import run_body
from tapeprop.targets.cpu.machine import is_x86, target_machine

SIZE, ROUNDS = 37, 40


def ring_tape(barriers: bool = True):
    """(a, b, tape, control) of rows from a to b and back, each needing what all workers wrote in the one before."""
    a, b = np.arange(SIZE), np.zeros(SIZE, np.int64)
    rows = [(kernel("neighbours"), (a, b) if i % 2 == 0 else (b, a), (i, 200)) for i in range(ROUNDS)]
    return a, b, *make_tape(rows, barriers)


def ring_expected(steps: int) -> np.ndarray:
    """What `a` holds after `steps` walks, by NumPy."""
    x = np.arange(SIZE)
    for _ in range(steps):
        for shift in range(ROUNDS):
            x = (3 * np.roll(x, -1) + np.roll(x, -7) + shift) & 0xFFFF
    return x


# ---- order


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_barriers_keep_rows_apart(workers, steps):
    a, _, tape, control = ring_tape()
    assert run(tape, control, steps=steps, workers=workers) is None
    np.testing.assert_array_equal(a, ring_expected(steps))
    assert control[STEP] == steps


@pytest.mark.parametrize("workers", WORKERS)
def test_a_step_ends_in_a_barrier_though_no_row_asks_for_one(workers):
    x, y = np.arange(SIZE), np.zeros(SIZE, np.int64)
    tape, control = make_tape([(kernel("neighbours"), (x, y), (3, 200))], barriers=False)
    back, other = make_tape([(kernel("neighbours"), (y, x), (3, 200))], barriers=False)
    for _ in range(20):
        assert run(tape, control, workers=workers) is None
        assert run(back, other, workers=workers) is None
    expected = np.arange(SIZE)
    for _ in range(40):
        expected = (3 * np.roll(expected, -1) + np.roll(expected, -7) + 3) & 0xFFFF
    np.testing.assert_array_equal(x, expected)


def test_plain_python_does_the_same():
    a, b = np.arange(SIZE), np.zeros(SIZE, np.int64)
    for shift in range(ROUNDS):
        source, target = (a, b) if shift % 2 == 0 else (b, a)
        for worker in range(3):
            run_body(kernel("neighbours"), (source, target), (shift, 1), worker, 3)
    np.testing.assert_array_equal(a, ring_expected(1))


@pytest.mark.parametrize("workers", [1, 2])
def test_part_of_a_tape(workers):
    counts = np.zeros((4, 2), np.int64)
    tape, control = make_tape([(kernel("count_up"), (x,), ()) for x in counts])
    assert run(tape, control, first=1, count=2, steps=3, workers=workers) is None
    assert counts[:, 0].tolist() == [0, 3, 3, 0]
    assert counts[:, 1].tolist() == [0, 2, 2, 0]  # the step that the last visit saw
    assert run(tape, control, first=3, workers=workers) is None
    assert counts[:, 0].tolist() == [0, 3, 3, 1]
    assert run(tape, control, count=0, workers=workers) is None
    assert run(tape, control, steps=0, workers=workers) is None
    assert counts[:, 0].tolist() == [0, 3, 3, 1]
    assert control[STEP] == 0


# ---- failures


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("step", [0, 2])
def test_a_failure_stops_every_worker_at_the_same_barrier(workers, step):
    """Row 2 fails on the last worker, in the given step; rows 0 to 2 count, row 3 must not run again."""
    counts = np.zeros((4, 2), np.int64)
    fails = np.array([workers - 1, 42, step])
    rows = [(kernel("count_up"), (x,), ()) for x in counts]
    rows.insert(2, (kernel("fail_if"), (fails,), ()))
    tape, control = make_tape(rows)
    failure = run(tape, control, steps=5, workers=workers)
    assert failure == (2, 42)
    assert (failure.row, failure.code) == (2, 42)
    assert counts[:, 0].tolist() == [step + 1, step + 1, step, step]
    assert control[STEP] == step
    fails[0] = -1  # the next run starts afresh
    assert run(tape, control, steps=2, workers=workers) is None
    assert control[STEP] == 2
    assert control[0] == 0


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_failures_at_random_places_never_hang(workers):
    rng = np.random.default_rng(workers)
    _, _, tape, control = ring_tape()
    fails = np.array([-1, 7, 0])
    row, _ = make_tape([(kernel("fail_if"), (fails,), ())])
    for _ in range(30):
        place = int(rng.integers(len(tape)))
        changed = aligned_words(tape.size).reshape(tape.shape)
        changed[:] = tape
        changed[place, 0], changed[place, 4:] = row[0, 0], 0
        changed[place, 4:6] = row[0, 4:6]
        changed[:, 1] = rng.integers(0, 2, len(tape))
        fails[:] = rng.integers(workers), 7, rng.integers(3)
        assert run(changed, control, steps=3, workers=workers) == (place, 7)
        assert control[STEP] == fails[2]


def test_first_report_of_a_run_stands():
    fails = np.array([[0, 5, 0], [0, 6, 0]])
    tape, control = make_tape([(kernel("fail_if"), (x,), ()) for x in fails], barriers=False)
    assert run(tape, control) == (0, 5)
    plain = control_block()
    for number, x in enumerate(fails):
        run_body(kernel("fail_if"), (x,), control=plain, number=number)
    assert plain[0] == control[0] == (1 << 16) | 5


# ---- time


@pytest.mark.parametrize("workers", [1, 3])
def test_timed_runs(workers):
    a, _, tape, control = ring_tape()
    buffer = times(2, workers, ROUNDS)
    assert run(tape, control, steps=2, workers=workers, timing=buffer) is None
    np.testing.assert_array_equal(a, ring_expected(2))
    start, stop = buffer[..., 0], buffer[..., 1]
    assert (start > 0).all()
    assert (stop >= start).all()
    in_order = start.transpose(1, 0, 2).reshape(workers, -1)
    assert (np.diff(in_order) > 0).all()
    assert run(tape, control, workers=workers) is None  # and without the buffer again
    np.testing.assert_array_equal(a, ring_expected(3))


@pytest.mark.parametrize(("system", "architecture"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_the_untimed_loops_read_no_clock_nor_call_what_does(system, architecture):
    functions = dict(re.findall(r"define [^@\n]*@([\w.]+)\((.*?)\n}\n", loop_text(system, architecture), re.DOTALL))
    reads = {name for name, body in functions.items() if re.search(r"readcyclecounter|@clock_gettime", body)}
    assert reads == {"clock"}
    for _ in functions:  # and so does whoever calls one that does
        reads |= {name for name, body in functions.items() if reads & set(re.findall(r"call [^@\n]*@([\w.]+)\(", body))}
    walks = {name for name in functions if name.startswith("walk")}
    assert walks == {"walk_alone", "walk_alone_timed", "walk_together", "walk_together_timed"}
    assert reads & walks == {"walk_alone_timed", "walk_together_timed"}
    assert "barrier" not in reads


@pytest.mark.skipif(not is_x86(), reason="looks for an instruction of x86")
def test_the_machine_code_of_the_untimed_loops_reads_no_clock():
    import llvmlite.binding as llvm

    machine = target_machine()
    module = llvm.parse_assembly(loop_text())
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    code = re.split(r"^([\w.]+):", machine.emit_assembly(module), flags=re.MULTILINE)
    reads = {name: body.count("rdtsc") for name, body in zip(code[1::2], code[2::2], strict=True) if "rdtsc" in body}
    assert sum(reads.values()) == 4  # before and after the kernel, alone and together
    assert not {"walk_alone", "walk_together", "barrier", "await_change"} & set(reads)


# ---- arithmetic


@pytest.mark.skipif(not is_x86(), reason="sets the mode as x86 does")
@pytest.mark.parametrize("workers", [1, 2])
def test_subnormals_survive_a_library_that_flushes_them(workers):
    text = """
        declare void @llvm.x86.sse.stmxcsr(ptr)
        declare void @llvm.x86.sse.ldmxcsr(ptr)
        define i64 @swap(i64 %mode) {
          %place = alloca i32
          call void @llvm.x86.sse.stmxcsr(ptr %place)
          %old = load i32, ptr %place
          %new = trunc i64 %mode to i32
          store i32 %new, ptr %place
          call void @llvm.x86.sse.ldmxcsr(ptr %place)
          %result = zext i32 %old to i64
          ret i64 %result
        }
    """
    swap = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(load_text(text, ["swap"], "a test")["swap"])
    x, y = np.full(8, 1e-39, np.float32), np.zeros(8, np.float32)
    expected = x * np.float32(0.5)
    tape, control = make_tape([(kernel("halve"), (x, y), ())])
    flushing = 0x9FC0  # FTZ and DAZ
    usual = swap(flushing)
    try:
        run(tape, control, workers=workers)
    finally:
        after = swap(usual)
    assert after & 0xFFC0 == flushing  # the library's choice is its own again
    assert (y != 0).all()
    np.testing.assert_array_equal(y, expected)


# ---- what is refused


def test_arrays_are_checked():
    tape, control = make_tape([(kernel("nothing"), (), ())])
    with pytest.raises(TypeError, match="tape: expected an int64 array"):
        BoundTape(tape.astype(np.int32), control)
    with pytest.raises(ValueError, match="rank 2"):
        BoundTape(tape[0], control)
    with pytest.raises(ValueError, match="64-byte boundary"):
        BoundTape(aligned_words(24)[1:17].reshape(2, 8), control)
    with pytest.raises(ValueError, match="C-contiguous"):
        BoundTape(aligned_words(32).reshape(2, 16)[:, :8], control)
    with pytest.raises(ValueError, match="at least 64"):
        BoundTape(tape, control[:32])
    bound = BoundTape(tape, control)
    for first, count, steps in ((0, 2, 1), (2, None, 1), (-1, 1, 1), (0, -1, 1), (0, 1, -1)):
        with pytest.raises(ValueError, match="expected rows within"):
            bound.run(first, count, steps)
    with pytest.raises(ValueError, match="timing"):
        bound.run(timing=np.zeros((1, 1, 2, 2), np.int64))
    assert bound.run() is None


def test_a_bound_tape_keeps_its_arrays_and_plain_runs_keep_none():
    x = np.zeros(2, np.int64)
    bound = BoundTape(*make_tape([(kernel("count_up"), (x,), ())]))
    gc.collect()
    assert bound.run(steps=3) is None
    assert x[0] == 3
    before = len(executor._bound)
    tape, control = make_tape([(kernel("count_up"), (x,), ())])
    run(tape, control)
    run(tape, control)
    assert len(executor._bound) == before + 1
    run(tape, other := control_block(), steps=2)  # another block is bound anew
    assert other[STEP] == 2
    assert control[STEP] == 1
    del tape
    gc.collect()
    assert len(executor._bound) == before


def test_addresses_may_change_between_runs():
    x, y = np.zeros(2, np.int64), np.zeros(2, np.int64)
    tape, control = make_tape([(kernel("count_up"), (x,), ())])
    bound = BoundTape(tape, control)
    bound.run()
    tape[0, 4] = y.ctypes.data
    bound.run()
    assert (x[0], y[0]) == (1, 1)


def test_the_gil_is_released():
    """A run gets its answer from another thread while it lasts."""
    x, y = np.zeros(1, np.int64), np.zeros(2, np.int64)
    bound = BoundTape(*make_tape([(kernel("ask"), (x, y), (2**30,))]))  # up to a minute
    thread = threading.Thread(target=bound.run, daemon=True)
    thread.start()
    wait_until(lambda: y[0], "the run begins")
    x[0] = 1
    thread.join(HANG_SECONDS)
    assert y[1] == 1
