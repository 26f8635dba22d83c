"""A device that does nothing but write down what it is asked: for checks of order and of ranges, without Numba or a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda.driver import Allocation, Dim3, Graph
from tapeprop.targets.cuda.host import HostDriver, HostGraph, memory_at

__all__ = [
    "Allocated",
    "CaptureBegun",
    "CaptureEnded",
    "Copied",
    "Downloaded",
    "DryDriver",
    "Freed",
    "GraphLaunched",
    "Launched",
    "Uploaded",
]


class Allocated(NamedTuple):
    """Memory of the device."""

    address: int
    nbytes: int


class Freed(NamedTuple):
    """An allocation's end."""

    address: int


class Uploaded(NamedTuple):
    """From the host to the device."""

    address: int
    nbytes: int


class Downloaded(NamedTuple):
    """From the device to the host."""

    address: int
    nbytes: int


class Copied(NamedTuple):
    """On the device."""

    destination: int
    source: int
    nbytes: int


class Launched(NamedTuple):
    """A kernel, by the addresses of its row and of its control word."""

    kernel: Kernel
    grid: Dim3
    block: Dim3
    row: int
    control: int


class CaptureBegun(NamedTuple):
    """What follows is recorded, not done. number: of the graph, from 0."""

    number: int


class CaptureEnded(NamedTuple):
    """nodes: of the graph, or None where the block raised."""

    number: int
    nodes: int | None


class GraphLaunched(NamedTuple):
    """A captured graph; `graphs[number]` holds its work."""

    number: int


class DryDriver(HostDriver):
    """Memory is there and copies are done; kernels are not run, so results are whatever lay there.

    log: all that was asked, in order. graphs: the work of each captured graph, as records.
    """

    name = "no device (dry run)"
    capability = (9, 0)
    simulated = True
    captures = True
    limits = Device()

    def __init__(self, capacity: int | None = None, limits: Device | None = None):
        super().__init__(capacity)
        self.limits = limits or Device()
        self.log: list[tuple] = []
        self.graphs: list[list[tuple]] = []
        self._begun = 0

    def allocate(self, nbytes: int) -> Allocation:
        """Zeroed memory of the host, written down."""
        made = super().allocate(nbytes)
        self.log.append(Allocated(made.address, nbytes))
        return made

    def _release(self, address: int) -> None:
        self.log.append(Freed(address))
        super()._release(address)

    def words(self, address: int, count: int) -> np.ndarray:
        """A copy of int64 words of the device's memory, as those of a row. ValueError outside every allocation."""
        found = self.allocation_of(address)
        if found is None or address + 8 * count > sum(found):
            raise ValueError(f"{count} words at {address:#x}: not inside one allocation")
        return memory_at(address, 8 * count).view(np.int64).copy()

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies, and writes it down."""
        super().upload(address, array)
        self.log.append(Uploaded(address, array.nbytes))

    def download(self, array: np.ndarray, address: int) -> None:
        """Copies, and writes it down."""
        super().download(array, address)
        self.log.append(Downloaded(address, array.nbytes))

    def load(self, kernels: Iterable[Kernel]) -> dict[Kernel, Any]:
        """The kernels themselves; nothing is built."""
        self._refuse_in_capture("load")
        return {kernel: kernel for kernel in kernels}

    def _do(self, work: tuple) -> None:
        self.log.append(_record(work))
        super()._do(work)

    def _run(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        pass

    def _begin_capture(self) -> None:
        super()._begin_capture()
        self.log.append(CaptureBegun(self._begun))

    def _end_capture(self, keep: bool) -> Graph | None:
        number, self._begun = self._begun, self._begun + 1
        work = list(self._recording or [])
        self.graphs.append([_record(item) for item in work])
        self.log.append(CaptureEnded(number, len(work) if keep else None))
        graph = super()._end_capture(keep)
        return _DryGraph(self, work, number) if graph is not None else None

    def _launch_graph(self, graph: HostGraph) -> None:
        self._refuse_in_capture("launch of a graph")
        assert isinstance(graph, _DryGraph)
        with self._lock:
            self.log.append(GraphLaunched(graph.number))
            for work in graph.work:
                HostDriver._do(self, work)


class _DryGraph(HostGraph):
    def __init__(self, driver: HostDriver, work: list[tuple], number: int):
        super().__init__(driver, work)
        self.number = number


def _record(work: tuple) -> tuple:
    kind, *rest = work
    return Copied(*rest) if kind == "copy" else Launched(*rest)
