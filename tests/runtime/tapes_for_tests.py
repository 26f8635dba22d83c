"""Small bound tapes for the runtime's tests, and fresh interpreters to run programs in."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from patience import HANG_SECONDS

from tapeprop.ir.kernels import FIRST_FIELD, Kernel, row_words
from tapeprop.runtime.executor import aligned_words, control_block
from tapeprop.runtime.linker import load

TESTS = Path(__file__).parent.parent
SOURCE = TESTS.parent / "src"
WORKERS = (1, 2, 3, 5, 8)


def field(array: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """(address, shape) of an array, as `row_words` takes it."""
    return array.ctypes.data, array.shape


def make_tape(
    rows: Sequence[tuple[Kernel, Sequence[np.ndarray], Sequence[int]]], barriers: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(tape, control block) of rows (kernel, arrays, integers), with a barrier after every row or none."""
    addresses = load(kernel for kernel, _, _ in rows)
    fields = [row_words([field(a) for a in arrays], integers) for _, arrays, integers in rows]
    width = -(-(FIRST_FIELD + max(map(len, fields), default=0)) // 8) * 8
    tape = aligned_words(len(rows) * width).reshape(len(rows), width)
    control = control_block()
    for number, ((kernel, _, _), words) in enumerate(zip(rows, fields)):
        tape[number, :FIRST_FIELD] = addresses[kernel], int(barriers), control.ctypes.data, number
        tape[number, FIRST_FIELD : FIRST_FIELD + len(words)] = words
    return tape, control


def environment(**variables: str | None) -> dict[str, str]:
    """This process's environment for a child that finds the sources and the tests; None removes a variable."""
    path = os.pathsep.join([str(SOURCE), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    merged: dict[str, str | None] = {**os.environ, "PYTHONPATH": path, "TAPEPROP_QUIET": None, **variables}
    return {name: value for name, value in merged.items() if value is not None}


def start(program: str, **variables: str | None) -> subprocess.Popen:
    """A fresh interpreter that runs `program`, its output kept."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen) -> tuple[str, str]:
    """(standard output, standard error) of a child that must end, and well."""
    try:
        out, err = child.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        raise AssertionError(f"still running after {HANG_SECONDS:.0f} s: {child.communicate()}") from None
    assert child.returncode == 0, err
    return out, err


def run_program(program: str, **variables: str | None) -> tuple[str, str]:
    """(standard output, standard error) of `program` in a fresh interpreter."""
    return finish(start(program, **variables))
