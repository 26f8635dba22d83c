"""A tape on a device: rows in its memory, launched one by one or captured once as a graph and replayed with one call.

Kernels take the address of their row, so what is bound to a tape changes in the rows, and a captured graph stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.compiler.encode import Tape, encode
from tapeprop.compiler.interpret import array_type
from tapeprop.compiler.plan import Place, plan
from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir import Tensor
from tapeprop.ops.op import ArrayType
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import HEADER, Executable
from tapeprop.runtime.executor import Rounds, clock, decode
from tapeprop.runtime.mirror import DeviceInput, DeviceMirror, DeviceView, mirror_of

if TYPE_CHECKING:
    from tapeprop.targets.cuda.driver import Driver

STATUS_BYTES = 8
_LINE = 256


class DeviceExecutable(Executable):
    """An executable whose values, parameters and inputs lie on a device.

    What is read from it comes as copies on the host. Parameters stay there between runs: see `runtime.mirror`.
    """

    def __init__(self, *arguments: Any, driver: Driver, **options: Any):
        self.driver = driver
        super().__init__(*arguments, **options)

    def _encode(self, spans: Sequence[str], arena: str) -> Tape:
        return encode(self.plan, spans, arena, self.driver.limits)

    def _reserve(self, workers: int) -> None:
        self._mirrors: dict[str, DeviceMirror] = {}
        self._fed: dict[Tensor, Any] = {}  # what the inputs are bound to
        self._own: dict[Tensor, DeviceInput] = {}  # memory for arrays of the host
        self._handles: dict[Any, Any] = {}
        self._graphs: dict[tuple[int, int], Any] = {}
        self._rows: Any = None  # the rows on the device
        self._control: Any = None  # the status word there
        self._rows_changed = True
        self._status_unread = False  # an interrupt may come before what a run has reported is read
        self._scratch_at = -(-self.tape.arena_bytes // _LINE) * _LINE
        self.arena.ensure(self._scratch_at + self.tape.scratch_bytes)
        stored = {self._locate(leaf).buffer for leaf in self._targets}
        self._stored = [name for name in self._fixed if name in stored]

    # ---- binding

    def _is_bound(self) -> bool:
        return (
            self._rows is not None
            and self._generations == tuple(arena.generation for arena in self.arenas.values())
            and all(self._fixed[name].mirror is mirror for name, mirror in self._mirrors.items())
        )

    def prepare(self) -> None:
        """Compiles the kernels and binds the rows where that has not been done, or memory has moved.

        DeviceMemoryError, which says what would fit, where the device has no room.
        """
        if not self.tape.rows or self._is_bound():
            return
        if not self._handles:
            self._handles = self.driver.load(self.tape.kernels)
        with ledger.lowering(), self._room():
            self._bind_rows()

    def _bind_rows(self) -> None:
        self._graphs.clear()
        self._rows = self._control = None  # given back before there is to be room for the new ones
        self.arena.ensure(self._scratch_at + self.tape.scratch_bytes)  # another plan may have given it back
        self._mirrors = {name: mirror_of(buffer, self.driver) for name, buffer in self._fixed.items()}
        address = {name: arena.address for name, arena in self.arenas.items()}
        address |= {name: mirror.address for name, mirror in self._mirrors.items()}
        address["scratch"] = self.arena.address + self._scratch_at
        self._write_rows(address, [(0, 0, 0, number) for number in range(len(self.tape.rows))])
        self._row_bytes = self._flat.nbytes // len(self.tape.rows)
        self._control = self.driver.allocate(STATUS_BYTES)
        self._rows = self.driver.allocate(self._flat.nbytes)
        self._rows_changed = True

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Where the device has no room for what is made inside, gives back all that this plan has, and says what would fit."""
        try:
            yield
        except DeviceMemoryError as error:
            self._rows = self._control = None
            for tensor in self._own:
                self._fed.pop(tensor, None)
                self._inputs.pop(tensor, None)
            self._own.clear()
            self.arena.forget()  # type: ignore[attr-defined]  # a device's
            raise DeviceMemoryError(f"{error}; {self._what_fits()}") from None

    def _what_fits(self) -> str:
        """How much memory the plan takes, and how large a batch there would be room for."""
        needed = self._scratch_at + self.tape.scratch_bytes
        text = f"the plan of {self.name!r} needs {needed:,} bytes for values"
        free = self.driver.memory()[0]
        gathered = [s.call.results[0].shape[0] for s in self.plan.steps if s.instruction.op.name == "take_rows"]
        if gathered:  # a step of fit: its sizes are fixed, and nearly all it needs grows with the batch
            return text + f"; a batch of about {gathered[0] * free // max(needed, 1)} fits"
        if len(self.sizes) != 1 or self._lender is not None:
            return text + "; a smaller batch needs less"
        ((symbol, batch),) = self.sizes.items()
        low, high = 0, batch
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._bytes_for({symbol: middle}) <= free else (low, middle)
        return text + (f"; the largest batch that fits is {low}" if low else "; not even one sample fits")

    def _bytes_for(self, sizes: Mapping[str, int]) -> int:
        """What this plan would take for other sizes, beside what it has already; every piece on a boundary of its own."""
        places = self.plan.places  # for a constant `_locate` would make another copy
        found = plan(self.program, sizes, lambda tensor: places.get(tensor) or self._locate(tensor))
        tape = encode(found, [span.name for span in self.program.spans], self.tape.arena, self.driver.limits)
        inputs = [array_type(tensor, sizes).nbytes for tensor in self.program.inputs]
        buffers = [buffer.nbytes for buffer in self._fixed.values() if buffer.mirror is None]
        rows = 8 * len(tape.rows) * max(8 + HEADER + len(row.fields) for row in tape.rows)
        pieces = [tape.arena_bytes, tape.scratch_bytes, rows, STATUS_BYTES, *inputs, *buffers]
        return sum(-(-nbytes // _LINE) * _LINE for nbytes in pieces)

    def make_input(self, shape: Sequence[int], dtype: Any) -> DeviceInput:
        """Memory for an input, which a caller's array is copied to. DeviceMemoryError where the device has no room."""
        with self._room():
            return DeviceInput(self.driver, shape, dtype)

    def bind(self, tensor: Tensor, array: Any) -> None:
        """Lets an input read `array`: one of the host, which is taken over now, or one that lies on the device.

        Of the input's dtype and shape, C-contiguous.
        """
        if isinstance(array, np.ndarray):
            own = self._own.get(tensor)
            if own is None:
                own = self._own[tensor] = self.make_input(array.shape, array.dtype)
            own.write(array)
            array = own
        self._fed[tensor] = array
        if self._inputs.get(tensor) != array.address:
            self._inputs[tensor] = array.address
            if self._rows is not None:
                self._patch(tensor, array.address)
                self._rows_changed = True

    def release(self) -> None:
        """Lets go of the arrays on the device that a caller gave: they are bound anew before the next run."""
        for tensor in [tensor for tensor, fed in self._fed.items() if isinstance(fed, DeviceView)]:
            del self._fed[tensor]

    # ---- running

    def where(self) -> dict[str, Any]:
        """The device."""
        return {"gpu": self.driver.describe()}

    def _before_run(self) -> None:
        for mirror in self._mirrors.values():
            mirror.bring()
        if self._rows_changed:
            self.driver.upload(self._rows.address, self._flat)
            self._rows_changed = False
        if self._status_unread:
            self.driver.upload(self._control.address, np.zeros(1, np.int64))
        self._count_writes()

    def _after_run(self) -> None:
        stored = [self._mirrors[name] for name in self._stored]
        for mirror in stored:
            mirror.written()
        self._count_writes()
        for mirror in stored:
            mirror.follow()

    def run_native(
        self, start: int, count: int, steps: int = 1, timing: np.ndarray | None = None, rounds: Rounds | None = None
    ) -> None:
        """Runs a stretch without rows of Python, on a prepared tape, and waits for its end."""
        self._status_unread = True
        pieces = [(start, count)]
        if rounds is not None:
            pieces = [(start, rounds.rows)] * rounds.repeats + [(start + rounds.rows, count - rounds.rows)]
        if timing is not None:
            self._run_timed(pieces, steps, timing)
        else:
            launches = [self._launch_of(first, length) for first, length in pieces if length]
            for _ in range(steps):
                for launch in launches:
                    launch()
        self._raise_reported()

    def _launch_of(self, first: int, count: int) -> Any:
        """What launches rows first to first + count with one call: a captured graph, where there can be one."""
        rows = range(first, first + count)
        if count == 1 or not self.driver.captures or self.driver.capture_failure is not None:
            return partial(self._launch_rows, rows)
        graph = self._graphs.get((first, count))
        if graph is None:
            try:
                with self.driver.capture() as capture:
                    self._launch_rows(rows)
            except DeviceError as error:
                self.driver.synchronize()  # raises where the device is lost
                if not isinstance(error, DeviceMemoryError):  # there may be room the next time
                    self.driver.capture_failure = str(error)
                return partial(self._launch_rows, rows)
            graph = self._graphs[first, count] = capture.graph
        return graph.launch

    def _launch_rows(self, numbers: Sequence[int]) -> None:
        rows, address = self.tape.rows, self._rows.address
        for number in numbers:
            launched = rows[number].launch
            self.driver.launch(
                self._handles[launched.kernel],
                launched.grid,
                launched.block,
                address + number * self._row_bytes,
                self._control.address,
            )

    def _raise_reported(self) -> None:
        status = np.zeros(1, np.int64)
        self.driver.download(status, self._control.address)
        self._status_unread = False
        failed = decode(int(status[0]))
        if failed is not None:
            self.driver.upload(self._control.address, np.zeros(1, np.int64))
            self.raise_failure(*failed)

    def _run_timed(self, pieces: Sequence[tuple[int, int]], steps: int, timing: np.ndarray) -> None:
        """Launches row by row and notes what the device took for each, laid end to end from the begin of the step on."""
        order = [number for first, count in pieces for number in range(first, first + count)]
        launches = [partial(self._launch_rows, (number,)) for number in order]
        now = clock()
        for step in range(steps):
            begin, begin_seconds = now(), time.perf_counter()
            taken = np.array(self.driver.timed(launches))
            scale = (now() - begin) / (time.perf_counter() - begin_seconds)
            ends = begin + np.rint(np.cumsum(taken) * scale).astype(np.int64)
            timing[step, 0, :, 0] = [begin, *ends[:-1]]
            timing[step, 0, :, 1] = ends

    # ---- reading

    def _address(self, place: Place) -> int:
        if place.buffer in self.arenas:
            return self.arenas[place.buffer].address + place.offset
        if place.buffer in self._fixed:
            return mirror_of(self._fixed[place.buffer], self.driver).address + place.offset
        return self._feed(place).address + place.offset

    def _feed(self, place: Place) -> Any:
        (found,) = [fed for t, fed in self._fed.items() if f"input{t.source.index}" == place.buffer]  # type: ignore[union-attr]
        return found

    def array_at(self, place: Place, kind: ArrayType) -> np.ndarray:
        """A copy on the host of an array of this kind at a place."""
        if place.buffer in self._fixed:
            host = self._fixed[place.buffer].read().view(np.uint8)[place.offset : place.offset + kind.nbytes]
            return host.view(kind.dtype).reshape(kind.shape).copy()
        if place.buffer not in self.arenas:
            fed = self._feed(place).read().reshape(-1).view(np.uint8)[place.offset : place.offset + kind.nbytes]
            return fed.view(kind.dtype).reshape(kind.shape)
        found = np.empty(kind.shape, kind.dtype)
        self.driver.download(found, self._address(place))
        return found

    def set_at(self, place: Place, kind: ArrayType, values: Any) -> None:
        """Copies `values` to a place."""
        array = np.ascontiguousarray(np.broadcast_to(values, kind.shape), kind.dtype)
        if place.buffer in self._fixed:
            buffer = self._fixed[place.buffer]
            buffer.array[place.offset // buffer.dtype.itemsize :][: array.size] = array.reshape(-1)
        else:
            self.driver.upload(self._address(place), array)

    def export(self, tensor: Tensor) -> Any:
        """A fresh array on the device with what a run has left of a tensor that the plan keeps."""
        kind = self.plan.types[tensor]
        allocation = self.driver.allocate(max(kind.nbytes, 1))
        self.driver.copy(allocation.address, self._address(self.plan.places[tensor]), kind.nbytes)
        if self.is_input(tensor) is not None:
            self.driver.synchronize()  # its owner may write to it from now on, on a stream that does not wait for this one
        return self.driver.export(allocation, kind.shape, kind.dtype)
