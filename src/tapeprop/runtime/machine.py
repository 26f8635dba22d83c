"""Where a network's tapes run: the host, or a device. What differs between the two for a network stands here."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.compiler.layout import BatchLanes, batch_lanes
from tapeprop.errors import DeviceError, DeviceMemoryError, DTypeError, ShapeError
from tapeprop.runtime.executable import Executable, link_together
from tapeprop.runtime.memory import Arena, Buffer
from tapeprop.runtime.mirror import DeviceArena, DeviceInput, DeviceView, PinnedInput

if TYPE_CHECKING:
    from tapeprop.targets.cuda.driver import Driver

DEVICES = ("cpu", "cuda")


class Host:
    """The processor: kernels with vector lanes, arrays where the caller has them."""

    name = "cpu"

    def __init__(self, workers: int | None):
        from tapeprop.targets.cpu.machine import usable_cpus

        self.executable: type[Executable] = Executable
        self.options: dict[str, Any] = {}  # more arguments of an executable
        self.workers = workers or usable_cpus()

    def lanes(self, dtype: str, batch: Any) -> BatchLanes | None:
        """The vector lanes that a batch fills, if it does."""
        return batch_lanes(dtype, batch)

    def arena(self) -> Arena:
        """Memory for the values of a run."""
        return Arena()

    def hold(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Whole arrays that steps gather batches from."""
        return list(arrays)

    def given(self, array: Any, dtypes: Sequence[str], what: str) -> Any | None:
        """None for an array of the host. DeviceError for one that lies on a device."""
        try:
            on_cuda = hasattr(array, "__cuda_array_interface__")
        except RuntimeError:  # torch's, of a tensor there that requires a gradient
            on_cuda = True
        if on_cuda:
            raise DeviceError(
                f"{what}: got an array that lies on a CUDA device, and this graph is built for the CPU; copy it to the host, "
                "or use graph.to('cuda')"
            )
        return None

    def link(self, executables: Sequence[Executable]) -> None:
        """Readies tapes to run."""
        link_together(executables)

    def why_plain(self) -> str | None:
        """None: rows are called natively."""
        return None

    def take_home(self, buffers: Iterable[Buffer]) -> list[Buffer]:
        """Brings what a device has back to the host; those of which the device had something newer and was lost: RuntimeWarning."""
        missed = {buffer: why for buffer in buffers if (why := buffer.come_home()) is not None}
        if missed:
            what = next(iter(missed.values())).partition(";")[0]  # what follows is how to come here
            warnings.warn(
                f"{what}: weights and optimizer state are those that the host last saw, at the last epoch of fit() or when they were "
                "last read",
                RuntimeWarning,
                stacklevel=4,
            )
        return list(missed)


class Gpu:
    """A device, by its driver: values, parameters and data stay in its memory."""

    name = "cuda"
    workers = 1

    def __init__(self, driver: Driver):
        from tapeprop.runtime.device_executable import DeviceExecutable

        self.driver = driver
        self.executable: type[Executable] = DeviceExecutable
        self.options: dict[str, Any] = {"driver": driver}

    def lanes(self, dtype: str, batch: Any) -> None:
        """None: the layout of vector lanes is a CPU's."""

    def arena(self) -> Arena:
        """Memory for the values of a run."""
        return DeviceArena(self.driver)

    def hold(self, arrays: Sequence[Any]) -> list[Any]:
        """Whole arrays that steps gather batches from: on the device where there is room, else in page-locked memory.

        Half of what is free is left to the values of the steps.
        """
        room = self.driver.memory()[0] // 2
        found: list[Any] = []
        for array in arrays:
            if not isinstance(array, np.ndarray):
                found.append(array)  # lies on the device already
                continue
            held = self._held(array) if array.nbytes <= room else None
            room -= array.nbytes if held is not None else 0
            found.append(PinnedInput(self.driver, array) if held is None else held)
        return found

    def _held(self, array: np.ndarray) -> DeviceInput | None:
        """The array on the device; None where what is free there is in pieces too small for it."""
        try:
            made = DeviceInput(self.driver, array.shape, array.dtype)
        except DeviceMemoryError:
            return None
        made.write(array)
        return made

    def given(self, array: Any, dtypes: Sequence[str], what: str) -> DeviceView | None:
        """An array of the device that a caller gave, to be read where it lies; None for one of the host.

        DTypeError, ShapeError where it would have to be converted first; DeviceError where it lies on another device.
        """
        if isinstance(array, np.ndarray | DeviceView):
            return array if isinstance(array, DeviceView) else None
        found = self.driver.external(array)
        if found is None:
            return None
        if found.dtype not in dtypes:
            raise DTypeError(
                f"{what}: expected {' or '.join(dtypes)} of an array on the device, got {found.dtype}; convert it there first"
            )
        if found.strides is not None:
            raise ShapeError(
                f"{what}: expected a contiguous array on the device, got strides {found.strides}; copy it there first"
            )
        if 0 in found.shape:
            raise ShapeError(f"{what}: expected at least one sample and no empty axis, got shape {found.shape}")
        return DeviceView(self.driver, found.address, found.shape, found.dtype, found.owner)

    def link(self, executables: Sequence[Executable]) -> None:
        """Readies tapes to run, their kernels compiled together."""
        self.driver.load([kernel for executable in executables for kernel in executable.tape.kernels])
        for executable in executables:
            executable.prepare()

    def why_plain(self) -> str | None:
        """Why rows are single launches and no captured graph, or None where they are one."""
        if not self.driver.captures:
            return f"{self.driver.name} has no graphs"
        return self.driver.capture_failure

    def take_home(self, buffers: Iterable[Buffer]) -> list[Buffer]:
        """Nothing: what a tape uses is brought to the device when it is bound."""
        return []


Machine = Host | Gpu


def machine_of(device: str, workers: int | None, what: str = "build") -> Machine:
    """The machine of a name. DeviceError, which says what is missing, where there is no such device."""
    if device == "cpu":
        return Host(workers)
    if device != "cuda":
        raise DeviceError(f"{what}: expected device 'cpu' or 'cuda', got {device!r}")
    from tapeprop.runtime.cuda_cache import open_device

    return Gpu(open_device(what))
