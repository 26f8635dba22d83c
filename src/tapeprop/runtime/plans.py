"""The plans of a network by key, and how one is run: `PlannedNetwork`, on which `runtime.network` and `runtime.training` stand.

A plan is what a run needs that depends on shapes: programs lowered, memory placed, rows bound. A few are kept; parameters belong to none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError, StateError
from tapeprop.ir import Parameter
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.lowering import InputKind, Lowering, TraceFunction
from tapeprop.runtime.machine import machine_of
from tapeprop.runtime.memory import Arena
from tapeprop.runtime.watchful import Names, run_watchfully

PLANS_KEPT = 8


@dataclass(frozen=True)
class CacheInfo:
    """hits, misses: calls of forward that found their plan, and that had to make it. size: plans held now."""

    hits: int
    misses: int
    size: int


@dataclass(frozen=True)
class Options:
    """How a network is compiled. dtype: of inputs, weights and results. workers: None takes the usable CPUs. device: "cpu" or "cuda".

    share_memory: the planner's switch. debug_nan: every row's results are looked at; nothing is
    fused then, so that a row is one op of one node. clip_norm: see `runtime.update`. math_mode: "fp32" or "winograd".
    """

    dtype: str = "float32"
    workers: int | None = None
    clip_norm: float | None = None
    debug_nan: bool = False
    share_memory: bool = True
    math_mode: str = "fp32"
    device: str = "cpu"


class PlannedNetwork:
    """A structure of a graph on a machine, with its options: makes its plans, keeps them and runs them.

    function: records the network (see `lowering.TraceFunction`). random: the RNG state, an int64 parameter of shape (2,), packed.
    kinds: of the inputs, where they are not all arrays of the network's dtype with a batch on axis 0. names: gives what errors call the
    parameters. outline: gives what a drawing of the graph needs, for profiles.
    """

    def __init__(
        self,
        function: TraceFunction,
        options: Options,
        random: Parameter | None,
        kinds: Sequence[InputKind],
        names: Names,
        outline: Callable[[], Any],
    ):
        self.options = options
        self.machine = machine_of(options.device, options.workers)
        self.workers = self.machine.workers
        self.lowering = Lowering(
            function,
            options.dtype,
            random,
            not options.debug_nan,
            options.math_mode == "winograd",
            kinds,
            self.machine.lanes,
        )
        self.names = names
        self.outline = outline
        self.lock = threading.RLock()
        self.plans: OrderedDict[Hashable, object] = OrderedDict()
        self.hits = self.misses = 0
        self._executing = False  # a tape with rows of Python, which could call the network again

    def plan(self, key: Hashable, make: Callable[[], object], *, count: bool = False):
        """The plan under `key`, made where it is not there; the least recently used goes when there are too many.

        StateError while the network runs: its memory is in use.
        """
        self.expect_idle()
        found = self.plans.get(key)
        ledger.count("plans" if found is None else "plan_hits")
        if count:
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        if found is None:
            with ledger.lowering():
                found = self.plans[key] = make()
            while len(self.plans) > PLANS_KEPT:
                self.plans.popitem(last=False)
        self.plans.move_to_end(key)
        return found

    def expect_idle(self) -> None:
        if self._executing:
            raise StateError(
                "a PythonLayer called the graph that it runs in, whose memory is in use; call another graph, or this one when "
                "its call has ended"
            )

    def cache_info(self) -> CacheInfo:
        """How calls of forward met the plan cache."""
        return CacheInfo(self.hits, self.misses, len(self.plans))

    def make_executable(self, name: str, program, sizes: Mapping[str, int], arena: Arena, **more) -> Executable:
        """An executable with this network's options."""
        return self.machine.executable(
            program,
            sizes,
            arena,
            name=name,
            outline=self.outline,
            share=self.options.share_memory,
            workers=self.workers,
            **self.machine.options,
            **more,
        )

    def take(self, array: object, dtype: str, what: str) -> Any:
        """A caller's array as the network reads it: where it lies on the device, else as `as_input` has it."""
        given = self.machine.given(array, (dtype,), what)
        return as_input(array, dtype, what) if given is None else given

    def execute(
        self, executable: Executable, first: str | None = None, last: str | None = None, steps: int = 1
    ) -> None:
        """Runs an executable; row by row, looking at every result, where `debug_nan` is set.

        A step that an error ends changes nothing that outlives it; those before it stand.
        """
        if not self._may_fail(executable):
            executable.run(first, last, steps)
            return
        self._executing = True
        try:
            for _ in range(steps):
                with self.undone_on_failure(executable):
                    if self.options.debug_nan:
                        run_watchfully(executable, first, last, self.names)
                    else:
                        executable.run(first, last)
        finally:
            self._executing = False

    def _may_fail(self, executable: Executable) -> bool:
        return bool(self.options.debug_nan or executable.python_rows)

    @contextmanager
    def undone_on_failure(self, *executables: Executable) -> Iterator[None]:
        """Puts back what runs of these have stored where an error ends one of them."""
        with ExitStack() as stack:
            for executable in executables:
                if self._may_fail(executable):
                    rows = executable.python_rows
                    last = len(executable.tape.rows) if self.options.debug_nan else rows[-1]
                    stack.enter_context(executable.undone_on_failure(last))
            yield


@dataclass(frozen=True)
class Trial:
    """An executable that is bound and may be run, by the network's rules, as often as one likes."""

    network: PlannedNetwork
    executable: Executable

    def run(self, steps: int) -> None:
        """Runs the whole tape so often."""
        self.network.execute(self.executable, steps=steps)


def is_input(array: object, dtype: str) -> bool:
    """Whether `as_input` would give `array` itself, as it stands: a plain array of NumPy, C-contiguous, of `dtype`, not empty."""
    return type(array) is np.ndarray and array.dtype == dtype and array.flags.c_contiguous and array.size > 0


def as_input(array: object, dtype: str, what: str) -> np.ndarray:
    """`array` as a C-contiguous array of `dtype`; itself where it is one already.

    DTypeError for complex, object, string and other arrays that are no real numbers, ShapeError for one with an empty axis.
    """
    try:
        given = np.asarray(array)
    except ValueError as error:
        raise DTypeError(f"{what}: expected an array of real numbers, got rows of unequal length ({error})") from None
    if given.dtype.kind not in "fiub":
        raise DTypeError(f"{what}: expected real numbers, got dtype {given.dtype}; convert the array to {dtype} first")
    if given.size == 0:
        raise ShapeError(f"{what}: expected at least one sample and no empty axis, got shape {given.shape}")
    return np.ascontiguousarray(given, dtype=dtype).reshape(given.shape)
