"""A program made ready to run: planned for given sizes, encoded, verified, its kernels linked, its rows bound to addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapeprop.compiler.encode import Row, Tape, encode
from tapeprop.compiler.interpret import array_type
from tapeprop.compiler.plan import Place, plan
from tapeprop.compiler.verify import verify
from tapeprop.errors import CompileError, GraphError, LabelError, NumericsError
from tapeprop.ir import Constant, Gradient, Input, Parameter, Program, Region, Tensor
from tapeprop.ir.kernels import Kernel
from tapeprop.ops.op import ArrayType, failure_text
from tapeprop.runtime import ledger
from tapeprop.runtime.executor import BoundTape, Rounds
from tapeprop.runtime.memory import Arena, Buffer, address_of, aligned, memory_at
from tapeprop.runtime.mirror import HostInput
from tapeprop.runtime.recorder import listeners, run_recorded
from tapeprop.runtime.state import cell
from tapeprop.runtime.stretches import run_in_stretches
from tapeprop.runtime.team import run_bound

HEADER = 4  # words of a row before its fields: kernel, barrier, control block, row number
CONTROL_WORDS = 64


class Executable:
    """One tape over one set of sizes, on the host; `runtime.device_executable` has its twin for a device.

    name: what it does, as "train_step". outline: gives what a drawing of the graph needs, for profiles.
    program: its inputs are leaves with an `Input` source, whose arrays `bind` gives. lender, borrowed: the executable of a
    forward tape and {tensor as this program knows it: tensor as the lender does}, for a backward tape that reads what the
    forward tape left.
    """

    def __init__(
        self,
        program: Program,
        sizes: Mapping[str, int],
        arena: Arena,
        *,
        arena_name: str = "arena",
        lender: Executable | None = None,
        borrowed: Mapping[Tensor, Tensor] | None = None,
        share: bool = True,
        workers: int = 1,
        name: str = "",
        outline: Callable[[], Any] = lambda: None,
    ):
        self.name = name
        self.sizes = dict(sizes)
        self.outline = outline
        self.program = program
        self.arena = arena
        self.arenas: dict[str, Arena] = {**(lender.arenas if lender else {}), arena_name: arena}
        self._fixed: dict[str, Buffer] = {}  # those that never move: storage and constants
        self._lender = lender
        self._borrowed = dict(borrowed or {})
        self.plan = plan(program, sizes, self._locate, arena=arena_name, share=share)
        self.tape: Tape = self._encode([span.name for span in program.spans], arena_name)
        self._check_buffers(sizes)
        #: Each leaf that a run stores to, and the number of the first row of the span that does.
        self._targets = {
            store.target: self.tape.spans[span.name][0] for span in reversed(program.spans) for store in span.stores
        }
        #: The parameters, optimizer state and the like that a run stores to; no gradients.
        self.written = list(dict.fromkeys(found for leaf in self._targets if (found := values_of(leaf)) is not None))
        self.rounds: Rounds | None = None
        #: The rows that Python computes.
        self.python_rows = [number for number, row in enumerate(self.tape.rows) if row.kernel is None]
        self.workers = 1
        self._generations: tuple[int, ...] = ()
        self._patches: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._stretches: dict[tuple[str | None, str | None], tuple[int, int]] = {}
        self._inputs: dict[Tensor, int] = {}  # where the arrays of the inputs lie
        self._reserve(workers)

    # ---- what a device does in another way

    def _encode(self, spans: Sequence[str], arena: str) -> Tape:
        return encode(self.plan, spans, arena)

    def _reserve(self, workers: int) -> None:
        """Memory for the values, for scratch, and for the status of a run."""
        self.workers = worthwhile_workers(self.tape, workers)
        self.arena.ensure(self.tape.arena_bytes)
        self._scratch = aligned(self.tape.scratch_bytes * max(workers, 1))
        self._bound: BoundTape | None = None
        self.control = aligned(CONTROL_WORDS, "int64")

    # ---- places

    @property
    def roles(self) -> dict[str, str]:
        """{buffer that never moves: its role}; see `Buffer.role`."""
        return {name: buffer.role for name, buffer in self._fixed.items()}

    def _locate(self, tensor: Tensor) -> Place:
        if tensor in self._borrowed:
            assert self._lender is not None
            place = self._lender.plan.places[self._borrowed[tensor]]
            if place.buffer in self._lender._fixed:
                self._fixed[place.buffer] = self._lender._fixed[place.buffer]
            return place
        source = tensor.source
        if isinstance(source, Input):
            return Place(f"input{source.index}", 0)
        if isinstance(source, Parameter):
            home = cell(source)
            return self._storage(home.segment.values, home.start * home.dtype.itemsize)
        if isinstance(source, Gradient):
            home = cell(source.parameter)
            return self._storage(home.segment.gradients, home.start * home.dtype.itemsize)
        if isinstance(source, Region):
            return self._storage(source.array, source.start * source.array.dtype.itemsize)
        if isinstance(source, Constant):
            copy = Buffer("constant.", source.array.size, tensor.dtype)
            copy.array[:] = source.array.reshape(-1)
            return self._storage(copy, 0)
        raise CompileError(f"{tensor!r}: no place is known for it; this is a bug of the compiler")

    def _storage(self, buffer: Buffer, offset: int) -> Place:
        self._fixed[buffer.name] = buffer
        return Place(buffer.name, offset)

    def _check_buffers(self, sizes: Mapping[str, int]) -> None:
        known = {name: buffer.nbytes for name, buffer in self._fixed.items()}
        for name, arena in self.arenas.items():
            known[name] = max(arena.nbytes, self.tape.arena_bytes if arena is self.arena else 0)
        for tensor in self.program.inputs:
            name = self.plan.places[tensor].buffer if tensor in self.plan.places else f"input{tensor.source.index}"  # type: ignore[union-attr]
            known[name] = array_type(tensor, sizes).nbytes  # an alias of it may be read where it is not itself
        verify(self.tape, known)
        self.buffer_bytes = known

    # ---- binding

    def _bind_rows(self) -> None:
        """Writes the rows with addresses as they are now; inputs are patched in by `bind`."""
        kernels = _load(self.tape.kernels)
        address = {name: arena.address for name, arena in self.arenas.items()}
        address |= {name: buffer.address for name, buffer in self._fixed.items()}
        address["scratch"] = address_of(self._scratch)
        control = address_of(self.control)
        self._write_rows(
            address,
            [
                (kernels[row.kernel] if row.kernel else 0, int(row.barrier), control, number)
                for number, row in enumerate(self.tape.rows)
            ],
        )
        self._bound = BoundTape(self._flat.reshape(len(self.tape.rows), -1), self.control)

    def _write_rows(self, address: Mapping[str, int], headers: Sequence[tuple[int, ...]]) -> None:
        """Makes the words of all rows, int64, one row behind the other. headers: the first words of each."""
        self._generations = tuple(arena.generation for arena in self.arenas.values())
        width = max([HEADER + len(row.fields) for row in self.tape.rows], default=HEADER)
        width = -(-width // 8) * 8
        self._flat = aligned(len(self.tape.rows) * width, "int64")
        patches: dict[str, list[tuple[int, int]]] = {}
        words: list[int] = []
        for number, (row, header) in enumerate(zip(self.tape.rows, headers, strict=True)):
            words += header
            for field in row.fields:
                if type(field) is not int:
                    assert isinstance(field, Place)
                    base = address.get(field.buffer)
                    if base is None:
                        patches.setdefault(field.buffer, []).append((len(words), field.offset))
                        base = 0
                    words.append(base + field.offset)
                else:
                    words.append(field)
            words += [0] * ((number + 1) * width - len(words))
        self._flat[:] = words
        self._patches = {
            name: (np.array([w for w, _ in items]), np.array([o for _, o in items])) for name, items in patches.items()
        }
        for tensor, where in self._inputs.items():
            self._patch(tensor, where)

    def _patch(self, tensor: Tensor, address: int) -> None:
        name = f"input{tensor.source.index}"  # type: ignore[union-attr]
        if name in self._patches:
            positions, offsets = self._patches[name]
            self._flat[positions] = offsets + address

    def prepare(self) -> None:
        """Links the kernels and binds the rows where that has not been done, or the arena has moved."""
        if not self.tape.rows:
            return  # aliases only
        if not self._is_bound():
            _load(self.tape.kernels)  # compiles what has to be, which is told apart from binding
            with ledger.lowering():
                self._bind_rows()

    def _is_bound(self) -> bool:
        """Whether the rows say where everything lies now."""
        return self._bound is not None and self._generations == tuple([a.generation for a in self.arenas.values()])

    def make_input(self, shape: Sequence[int], dtype: str) -> Any:
        """Memory for an input, which a caller's array is copied to."""
        return HostInput(aligned(int(np.prod(shape, dtype=np.int64)), dtype).reshape(shape))

    def bind(self, tensor: Tensor, array: Any) -> None:
        """Lets an input read `array` (C-contiguous, of the input's dtype and shape). The caller keeps it alive during runs."""
        where = address_of(array.array if isinstance(array, HostInput) else array)
        if self._inputs.get(tensor) != where:
            self._inputs[tensor] = where
            if self._bound is not None:
                self._patch(tensor, where)

    def release(self) -> None:
        """Lets go of a caller's arrays: they are bound anew before the next run. What lies here the caller keeps alive anyway."""

    # ---- running

    def where(self) -> dict[str, Any]:
        """What it runs on beside the processor; nothing on the host."""
        return {}

    def rows_of(self, first: str | None = None, last: str | None = None) -> tuple[int, int]:
        """(first row, count) of the stretch from the span `first` to the span `last`, both included. Without them: from the first
        row on, to the last.
        """
        if first is None and last is None:
            return 0, len(self.tape.rows)
        found = self._stretches.get((first, last))  # asked for by every call
        if found is None:
            names = [span.name for span in self.program.spans]
            begin, end = names.index(first) if first else 0, names.index(last) + 1 if last else len(names)
            bounds = [self.tape.spans[name] for name in names[begin:end] if self.tape.spans[name][1]]
            found = (bounds[0][0], bounds[-1][1] - bounds[0][0]) if bounds else (0, 0)
            self._stretches[first, last] = found
        return found

    def repeat(self, last: str, count: int) -> None:
        """Lets a step of the whole tape run its spans up to `last` `count` times, and then those after it once."""
        rows = self.rows_of(self.program.spans[0].name, last)[1]
        self.rounds = Rounds(rows, count) if rows and count > 1 else None

    def parts(self, start: int, count: int) -> list[tuple[int, int]]:
        """(first row, number) of the stretches that a step over these rows runs, in order."""
        if self.rounds is None or (start, count) != (0, len(self.tape.rows)):
            return [(start, count)]
        front = self.rounds.rows
        return [(0, front)] * self.rounds.repeats + [(front, count - front)] * (front < count)

    def run(self, first: str | None = None, last: str | None = None, steps: int = 1) -> None:
        """Runs the spans from `first` to `last` (all by default) `steps` times in one native call.

        LabelError, GraphError: what a kernel reported, with the node's name; the rows after it did not run.
        """
        start, count = self.rows_of(first, last)
        self.run_rows(start, count, steps)

    def run_rows(self, start: int, count: int, steps: int = 1) -> None:
        """Runs rows start to start + count; see `run`."""
        if count == 0:
            return
        self.prepare()
        self._before_run()
        try:
            recorders = listeners()
            if recorders:
                run_recorded(self, start, count, steps, recorders)
            else:
                self.walk(start, count, steps)
        finally:
            self._after_run()

    def _before_run(self) -> None:
        if Buffer.mirrored:
            for buffer in self._fixed.values():
                if buffer.mirror is not None:
                    buffer.take_over()
        self._count_writes()

    def _after_run(self) -> None:
        self._count_writes()  # once more: another thread may have looked in between

    def walk(self, start: int, count: int, steps: int, timing: np.ndarray | None = None) -> None:
        """`run_rows` of a prepared tape. timing: a buffer from `times(steps, self.workers, slots)`."""
        if self.python_rows:
            run_in_stretches(self, self.python_rows, start, count, steps, timing)
        else:
            self.run_native(start, count, steps, timing, self.rounds if count == len(self.tape.rows) else None)

    def run_native(
        self, start: int, count: int, steps: int = 1, timing: np.ndarray | None = None, rounds: Rounds | None = None
    ) -> None:
        """Runs a stretch without rows of Python in one native call, on a prepared tape."""
        failed = run_bound(self._bound, start, count, steps, self.workers, timing, rounds)  # type: ignore[arg-type]
        if failed is not None:
            self.raise_failure(*failed)

    @contextmanager
    def undone_on_failure(self, last: int) -> Iterator[None]:
        """Puts back what runs inside have stored where an error ends them. last: the number of the last row that may fail."""
        targets = [leaf for leaf, first in self._targets.items() if first <= last]
        places = [(self._locate(leaf), array_type(leaf, {})) for leaf in targets]
        before = [self.array_at(place, kind).copy() for place, kind in places]
        try:
            yield
        except BaseException:
            for (place, kind), old in zip(places, before, strict=True):
                self.set_at(place, kind, old)
            self._count_writes()
            raise

    def _count_writes(self) -> None:
        for buffer in self.written:
            buffer.writes += 1

    def raise_failure(self, number: int, code: int) -> None:
        """Turns what a kernel reported into the error that the user sees."""
        row = self.tape.rows[number]
        instruction = row.step.instruction
        kind, message = failure_text(code)
        errors = {"label": LabelError, "numerics": NumericsError}
        where = f"node {instruction.node!r}: " if instruction.node else ""
        raise errors.get(kind, GraphError)(f"{where}{instruction.op.name}: {message}")

    # ---- reading

    def view(self, tensor: Tensor) -> np.ndarray:
        """A live view of a tensor that the plan keeps: an output, a retained value, or something in storage."""
        return self.array_at(self.plan.places[tensor], self.plan.types[tensor])

    def array_at(self, place: Place, kind: ArrayType) -> np.ndarray:
        """A live view of an array of this kind at a place, which may be one of a bound input."""
        if place.buffer in self.arenas or place.buffer in self._fixed:
            base = self.arenas[place.buffer].array if place.buffer in self.arenas else self._fixed[place.buffer].array
            return np.ndarray(kind.shape, kind.dtype, base, place.offset)
        (address,) = [a for t, a in self._inputs.items() if f"input{t.source.index}" == place.buffer]  # type: ignore[union-attr]
        return memory_at(address + place.offset, kind.nbytes).view(kind.dtype).reshape(kind.shape)

    def set_at(self, place: Place, kind: ArrayType, values: Any) -> None:
        """Copies `values` to a place."""
        self.array_at(place, kind)[...] = values

    def export(self, tensor: Tensor) -> Any:
        """A fresh array of what a run has left of a tensor that the plan keeps, on the device that ran it."""
        return self.view(tensor).copy()

    def is_input(self, tensor: Tensor) -> int | None:
        """The index of the input whose memory the tensor is, or None."""
        buffer = self.plan.places[tensor].buffer
        return int(buffer[5:]) if buffer.startswith("input") else None


def values_of(leaf: Tensor) -> Buffer | None:
    """The buffer in which a leaf lies that holds parameters or the like; None for gradients, inputs and constants."""
    if isinstance(leaf.source, Parameter):
        return cell(leaf.source).segment.values
    return leaf.source.array if isinstance(leaf.source, Region) else None


def _load(kernels: Iterable[Kernel]) -> dict[Kernel, int]:
    # Not at the top: subprocess, tempfile and what they load would slow down every import.
    from tapeprop.runtime.linker import load

    return load(kernels)


def link_together(executables: Sequence[Executable]) -> None:
    """Links and binds several tapes, their kernels compiled side by side where they are not there yet."""
    _load(kernel for executable in executables for kernel in executable.tape.kernels)
    for executable in executables:
        executable.prepare()


BARRIER_SECONDS, WAKE_SECONDS = 1e-6, 30e-6  # with room for a worker that was parked
CORE_FLOPS, CORE_BYTES = 5e10, 3e10  # per second, of a core with vectors of 256 bits, in rows that fit its caches


def row_seconds(row: Row) -> float:
    """An estimate of what a row takes one worker."""
    return max(row.flops / CORE_FLOPS, row.traffic / CORE_BYTES)


def worthwhile_workers(tape: Tape, workers: int) -> int:
    """How many of `workers` a tape is worth: one, where waking them and meeting at barriers costs more than they save.

    Any number gives the same bits, so this is a matter of time alone.
    """
    if workers == 1:
        return 1
    seconds = sum(row_seconds(row) for row in tape.rows if row.kernel is not None)
    barriers = sum(row.barrier for row in tape.rows)
    stretches = 1 + sum(row.kernel is None for row in tape.rows)
    return workers if seconds > 2 * (barriers * BARRIER_SECONDS + stretches * WAKE_SECONDS) else 1
