"""Builders of the kernels that the runtime's tests run; child processes import it as `runtime.kernels_for_tests`."""

import os
import pathlib
import sys
import time

import numpy as np
from patience import HANG_SECONDS

from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cpu.kernel import AssemblyKernel, NumbaKernel

HERE = "runtime.kernels_for_tests"
#: A builder that finds this variable set makes a file named like its process in the folder it names, and then hangs.
HOLD = "TAPEPROP_TEST_HOLD"


def kernel(name: str, **parameters: object) -> Kernel:
    """A kernel of this module."""
    return Kernel.of(f"{HERE}:{name}", **parameters)


def scaled_sum(scale: float) -> NumbaKernel:
    """z = x + scale * y, cut in grains of 64 elements."""

    def body(x, y, z, worker, workers):
        for start in range(64 * worker, z.size, 64 * workers):
            for i in range(start, min(start + 64, z.size)):
                z[i] = x[i] + np.float32(scale) * y[i]

    return NumbaKernel(body, arrays=(("x", "float32", 1), ("y", "float32", 1), ("z", "float32", 1)))


def constant(value: int) -> AssemblyKernel:
    """Stores `value` into the first element of its int64 array."""
    text = f"""
define internal i64 @value() {{
  ret i64 {value}
}}
define void @store(i64 %row, i64 %worker, i64 %workers) {{
  %value = call i64 @value()
  %words = inttoptr i64 %row to ptr
  %place = getelementptr i64, ptr %words, i64 4
  %target = load ptr, ptr %place
  store i64 %value, ptr %target
  ret void
}}
"""
    return AssemblyKernel(text, "store")


def nothing() -> AssemblyKernel:
    """Does nothing."""
    return AssemblyKernel("define void @nothing(i64 %row, i64 %worker, i64 %workers) {\n  ret void\n}", "nothing")


def neighbours() -> NumbaKernel:
    """y[i] = (3 x[i + 1] + x[i + 7] + shift) mod 2^16, indices modulo n; worker w takes i = w, w + workers, ...

    So each element needs what other workers have written. Workers dawdle, each at another element.
    """
    from tapeprop.targets.cpu.intrinsics import pause

    def body(x, y, shift, dawdle, worker, workers):
        n = x.size
        for i in range(worker, n, workers):
            if (i + shift) % 5 == worker:
                for _ in range(dawdle):
                    pause()
            y[i] = (3 * x[(i + 1) % n] + x[(i + 7) % n] + shift) & 0xFFFF

    return NumbaKernel(body, arrays=(("int64", 1), ("int64", 1)), integers=("shift", "dawdle"))


def count_up() -> NumbaKernel:
    """Worker 0 adds 1 to x[0] and writes the step of the run into x[1]."""

    def body(x, control, number, worker, workers):
        if worker == 0:
            x[0] += 1
            x[1] = control[32]

    return NumbaKernel(body, arrays=(("x", "int64", 1),), reports=True)


def ask() -> NumbaKernel:
    """Worker 0 writes 1 into y[0], waits for `patience` pauses at most until x[0] is no more 0, and tells in y[1] whether it saw that."""
    from tapeprop.targets.cpu.intrinsics import address_of, load_acquire, pause, store_release

    def body(x, y, patience, worker, workers):
        if worker == 0:
            answer = address_of(x)
            store_release(address_of(y), 1)
            while load_acquire(answer) == 0 and patience > 0:
                pause()
                patience -= 1
            y[1] = load_acquire(answer) != 0

    return NumbaKernel(body, arrays=(("x", "int64", 1), ("y", "int64", 1)), integers=("patience",))


def fail_if() -> NumbaKernel:
    """The worker whose number is x[0] reports x[1] in the step x[2]."""
    from tapeprop.targets.cpu.intrinsics import report

    def body(x, control, number, worker, workers):
        if x[0] == worker and x[2] == control[32]:
            report(control, number, x[1])

    return NumbaKernel(body, arrays=(("x", "int64", 1),), reports=True)


def halve() -> NumbaKernel:
    """y = x / 2, element i by worker i modulo their number."""

    def body(x, y, worker, workers):
        for i in range(worker, x.size, workers):
            y[i] = x[i] * np.float32(0.5)

    return NumbaKernel(body, arrays=(("float32", 1), ("float32", 1)))


def raising() -> NumbaKernel:
    """Raises where x[0] is negative."""

    def body(x, worker, workers):
        if x[0] < 0:
            raise ValueError("negative")

    return NumbaKernel(body, arrays=(("float64", 1),))


def every_argument() -> NumbaKernel:
    """Sums of all it is given, into `total`: matrix, single element, bytes, int32, integers, scratch."""

    def body(total, matrix, single, pixels, labels, scratch, first, second, worker, workers):
        mine = scratch[worker]
        for i in range(matrix.shape[0]):
            mine[i] = 0.0
            for j in range(matrix.shape[1]):
                mine[i] += matrix[i, j]
        sum_of_all = 0.0
        for i in range(matrix.shape[0]):
            sum_of_all += mine[i]
        for i in range(pixels.size):
            sum_of_all += pixels[i]
        for i in range(labels.size):
            sum_of_all += labels[i]
        total[0] = sum_of_all + single[0] + 10 * first + 100 * second

    return NumbaKernel(
        body,
        arrays=(("float64", 1), ("float64", 2), ("float32", 0), ("uint8", 1), ("int32", 1)),
        integers=("first", "second"),
        scratch="float64",
    )


def allocating() -> NumbaKernel:
    """Refused: takes memory while it runs."""

    def body(x, worker, workers):
        copy = np.empty(x.size)
        for i in range(x.size):
            copy[i] = x[i]
        for i in range(x.size):
            x[i] = copy[x.size - 1 - i]

    return NumbaKernel(body, arrays=(("float64", 1),))


LARGE = np.arange(200_000, dtype=np.float64)


def capturing() -> NumbaKernel:
    """Refused: Numba puts the address of a large array into the code."""

    def body(x, worker, workers):
        x[0] = LARGE[workers]

    return NumbaKernel(body, arrays=(("float64", 1),))


def broken() -> NumbaKernel:
    """Refused by Numba: unknown names."""

    def body(x, worker, workers):
        x[0] = unknown_function(x)  # type: ignore[name-defined]  # noqa: F821

    return NumbaKernel(body, arrays=(("float64", 1),))


def unknown_symbol() -> AssemblyKernel:
    """Refused: calls a function that no library has."""
    text = "declare void @tapeprop_no_such_function()\n" + nothing().text.replace(
        "ret void", "call void @tapeprop_no_such_function()\n  ret void"
    )
    return AssemblyKernel(text, "nothing")


def no_ir() -> AssemblyKernel:
    """Refused by LLVM: not IR."""
    return AssemblyKernel("define something", "something")


def failing_builder(reason: str) -> NumbaKernel:
    """Raises."""
    raise RuntimeError(reason)


def dying(value: int) -> AssemblyKernel:
    """`constant(value)`, where the process that compiles is not a child; a child ends here."""
    if "compile_worker" in sys.argv[0]:
        os._exit(3)
    return constant(value)


def no_kernel() -> object:
    """Returns something else."""
    return 3


def held(value: int) -> AssemblyKernel:
    """`constant(value)`, after hanging where the environment asks for it."""
    if os.environ.get(HOLD):
        pathlib.Path(os.environ[HOLD], str(os.getpid())).touch()
        time.sleep(2 * HANG_SECONDS)
    return constant(value)
