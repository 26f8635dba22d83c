"""The compiled side of a graph: plans by shape, forward, backward from any outputs, prediction, and what lies between two calls.

Two memory layouts. *Retained* (`forward`, `backward`): saved values live until the next forward, the inputs are copied. *Tight*
(`predict`, and the training steps of `runtime.training`): lifetimes end to end, inputs bound where they lie.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.compiler.encode import Tape
from tapeprop.compiler.gradient import FLOATS
from tapeprop.compiler.interpret import array_type
from tapeprop.errors import DTypeError, ShapeError, StateError
from tapeprop.ir import Dim, Parameter, Program, Shape, Tensor, UndecidedError
from tapeprop.ir.dims import text
from tapeprop.runtime import ledger
from tapeprop.runtime.diagnosis import Diagnosis, Setting, diagnose_program, diagnose_tape
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.listing import Listing, list_program, list_tape
from tapeprop.runtime.lowering import Forward, InputKind, Lowering, TraceFunction, ValueAndGradient
from tapeprop.runtime.machine import machine_of
from tapeprop.runtime.memory import Arena
from tapeprop.runtime.mirror import DeviceInput, HostInput
from tapeprop.runtime.state import cell
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
    fused then, so that a row is one op of one node. clip_norm: see `runtime.training`. math_mode: "fp32" or "winograd".
    """

    dtype: str = "float32"
    workers: int | None = None
    clip_norm: float | None = None
    debug_nan: bool = False
    share_memory: bool = True
    math_mode: str = "fp32"
    device: str = "cpu"


@dataclass
class Retained:
    """A forward tape that keeps what backward needs, and the backward tapes made so far by subset of outputs."""

    forward: Forward
    sizes: dict[str, int]
    executable: Executable
    inputs: list[HostInput | DeviceInput]
    backward: dict[Hashable, tuple[Executable, dict[Tensor, Tensor], list[Parameter]]] = field(default_factory=dict)


class Network:
    """Runs the programs of one structure of a graph.

    function: records the network (see `lowering.TraceFunction`). random: the RNG state, an int64 parameter of shape (2,), packed.
    frozen: tells which parameters get no gradient. kinds: of the inputs, where they are not all arrays of the network's dtype with a
    batch on axis 0. names: gives what errors call the parameters. outline: gives what a drawing of the graph needs, for profiles.
    The caller packs every parameter before it makes the network.
    """

    def __init__(
        self,
        function: TraceFunction,
        options: Options,
        random: Parameter | None,
        frozen: Callable[[], frozenset[Parameter]] = frozenset,
        kinds: Sequence[InputKind] = (),
        names: Names = dict,
        outline: Callable[[], Any] = lambda: None,
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
        self.frozen = frozen
        self.names = names
        self.outline = outline
        self.lock = threading.RLock()
        self.retained_arena, self.backward_arena, self.tight_arena = (self.machine.arena() for _ in range(3))
        self.plans: OrderedDict[Hashable, object] = OrderedDict()
        self.hits = self.misses = 0
        self._output_shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
        self.watching: tuple[Hashable, ...] = ()
        self._live: tuple[Retained, int, int] | None = None  # the plan, its arena's generation, the forward's number
        self._forwards = 0
        self._executing = False  # a tape with rows of Python, which could call the network again
        self._own = threading.local()  # .forward: the number of this thread's last forward
        self._gradients: dict[Hashable, np.ndarray] | None = None  # of what is watched

    # ---- plans

    def plan(self, key: Hashable, make: Callable[[], object], *, count: bool = False):
        """The plan under `key`, made where it is not there; the least recently used goes when there are too many.

        StateError while the network runs: its memory is in use.
        """
        self._expect_idle()
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

    def _expect_idle(self) -> None:
        if self._executing:
            raise StateError(
                "a PythonLayer called the graph that it runs in, whose memory is in use; call another graph, or this one when "
                "its call has ended"
            )

    def cache_info(self) -> CacheInfo:
        """How calls of forward met the plan cache."""
        return CacheInfo(self.hits, self.misses, len(self.plans))

    def watch(self, keys: Sequence[Hashable]) -> None:
        """From the next forward on, the tensors under these keys can be read, and their gradients after backward."""
        if tuple(keys) != self.watching:
            self.watching = tuple(keys)
            self._live = self._gradients = None

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

    # ---- forward

    def forward(self, arrays: Sequence[np.ndarray], training: bool) -> list[np.ndarray]:
        """Fresh arrays of the outputs. The inputs, already of the network's dtype, are copied and kept for backward."""
        with self.lock:
            shapes = tuple(a.shape for a in arrays)
            key = ("retained", training, shapes, self.watching)
            plan = self.plan(key, lambda: self._make_retained(shapes, training), count=True)
            self._live = self._gradients = None
            for own, given in zip(plan.inputs, arrays, strict=True):
                own.write(given)
            self.execute(plan.executable)
            self._forwards += 1
            self._own.forward = self._forwards
            self._live = (plan, self.retained_arena.generation, self._forwards)
            places = [plan.forward.places[t] for t in plan.forward.outputs]
            if _on_device(arrays):
                return [plan.executable.export(place) for place in places]
            return [self._read(plan, plan.executable, place) for place in places]

    def _make_retained(self, shapes: tuple[tuple[int, ...], ...], training: bool) -> Retained:
        found, sizes = self.lowering.once(
            ("retained", training, self.watching),
            shapes,
            lambda opened, batch: self.lowering.forward(
                opened, batch, training, differentiable=True, keep=self.watching
            ),
        )
        executable = self.make_executable("forward", found.program, sizes, self.retained_arena, arena_name="retained")
        inputs = []
        for tensor, shape in zip(found.inputs, shapes, strict=True):
            inputs.append(executable.make_input(shape, tensor.dtype))
            executable.bind(tensor, inputs[-1])
        return Retained(found, sizes, executable, inputs)

    def _read(self, plan: Retained, executable: Executable, tensor: Tensor) -> np.ndarray:
        index = executable.is_input(tensor)
        if index is not None:
            return plan.inputs[index].read().reshape(executable.plan.types[tensor].shape)
        return executable.view(tensor).copy()

    def predict(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Fresh arrays of the outputs in evaluation mode. Nothing is kept; a forward that waits for its backward is not disturbed."""
        with self.lock:
            shapes = tuple(a.shape for a in arrays)
            found, executable = self.predict_plan(shapes)
            assert found.folding is not None
            versions = found.folding.versions()
            try:
                self._run_on(executable, found.inputs, arrays, "forward" if found.folding.stands(versions) else None)
                found.folding.made_of = versions
                places = [found.places[tensor] for tensor in found.outputs]
                if _on_device(arrays):
                    return [executable.export(place) for place in places]
                return [_result(executable, place, arrays) for place in places]
            finally:
                executable.release()

    def predict_plan(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Forward, Executable]:
        """What predict() runs on arrays of these shapes."""
        return self.plan(("predict", shapes), lambda: self._make_predict(shapes))

    def _run_on(
        self,
        executable: Executable,
        inputs: Sequence[Tensor],
        arrays: Sequence[np.ndarray],
        first: str | None = None,
    ) -> None:
        for tensor, array in zip(inputs, arrays, strict=True):
            executable.bind(tensor, array)
        self.execute(executable, first)

    def value_and_gradient(
        self, arrays: Sequence[np.ndarray], training: bool
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(the outputs, the gradient of their sum by each input) by one tape, fresh arrays.

        Parameter gradients are treated as by backward(). Nothing is kept for a backward() later.
        """
        with self.lock:
            found, executable = self.value_and_gradient_plan(arrays, training)
            try:
                self._run_on(executable, found.inputs, arrays)
                for parameter in found.reached:
                    cell(parameter).pending = True
                values = [_result(executable, t, arrays) for t in found.values]
                return values, [
                    _result(executable, found.gradients[t], arrays) if t in found.gradients else np.zeros_like(a)
                    for t, a in zip(found.inputs, arrays, strict=True)
                ]
            finally:
                executable.release()

    def value_and_gradient_plan(
        self, arrays: Sequence[np.ndarray], training: bool
    ) -> tuple[ValueAndGradient, Executable]:
        """What value_and_gradient() runs on arrays of these shapes."""
        shapes, frozen = tuple(a.shape for a in arrays), self.frozen()
        key = ("value_and_gradient", training, shapes, frozen)
        return self.plan(key, lambda: self._make_value_and_gradient(shapes, training, frozen))

    def _make_value_and_gradient(
        self, shapes: tuple[tuple[int, ...], ...], training: bool, frozen: frozenset[Parameter]
    ) -> tuple[ValueAndGradient, Executable]:
        found, sizes = self.lowering.once(
            ("value_and_gradient", training, frozen),
            shapes,
            lambda opened, batch: self.lowering.value_and_gradient(
                opened, batch, training, lambda p: p.trainable and p not in frozen
            ),
        )
        return found, self.make_executable("value_and_gradient", found.program, sizes, self.tight_arena)

    def _make_predict(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Forward, Executable]:
        found, sizes = self.lowering.once(
            "predict", shapes, lambda opened, batch: self.lowering.forward(opened, batch, False, differentiable=False)
        )
        return found, self.make_executable("predict", found.program, sizes, self.tight_arena)

    # ---- backward

    def live(self, what: str) -> Retained:
        """The forward that backward belongs to. StateError where there is none."""
        if self._live is None or self._live[1] != self.retained_arena.generation:
            raise StateError(f"{what} needs a forward() before it whose values still stand; call forward() first")
        if getattr(self._own, "forward", self._live[2]) != self._live[2]:
            raise StateError(
                f"{what}: another thread called forward() since this one did, so the values of this thread's are gone; "
                f"let one thread run the graph, or guard forward() and backward() by one lock"
            )
        return self._live[0]

    def forget(self) -> None:
        """Weights have changed: a backward of the last forward would mix old values with new weights."""
        self._live = None

    def outputs_of_last_forward(self, what: str) -> list[tuple[tuple[int, ...], str]]:
        """(shape, dtype) of each output of the last forward. StateError where there is none."""
        plan = self.live(what)
        types = plan.executable.plan.types
        return [(types[plan.forward.places[t]].shape, t.dtype) for t in plan.forward.outputs]

    def backward(self, gradients: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """The gradient of each input, given that of each output (None: no gradient flows from that one).

        Parameter gradients are added to those that are pending and written where none is; afterwards they are pending.
        """
        with self.lock:
            self._expect_idle()
            plan = self.live("backward()")
            subset = tuple(i for i, g in enumerate(gradients) if g is not None)
            frozen = self.frozen()
            key = (subset, frozen)
            ledger.count("plan_hits" if key in plan.backward else "plans")
            if key not in plan.backward:
                ledger.count("lowerings")
                with ledger.lowering():
                    plan.backward[key] = self._make_backward(plan, subset, frozen)
            try:
                return self._run_backward(plan, subset, gradients, *plan.backward[key])
            finally:
                plan.backward[key][0].release()

    def _run_backward(
        self, plan: Retained, subset: Sequence[int], gradients, executable, results, reached
    ) -> list[Any]:
        seeds = [_seed(gradients[i], plan.forward.outputs[i].dtype) for i in subset]
        wanted = dict(enumerate(executable.program.inputs[len(plan.inputs) :]))
        for i, array in zip(subset, seeds, strict=True):
            if i in wanted:
                executable.bind(wanted[i], array)
        self.execute(executable)
        for parameter in reached:
            cell(parameter).pending = True

        def read(tensor: Tensor) -> np.ndarray | None:
            if tensor not in results:
                return None
            return self._read_gradient(executable, results[tensor], seeds, subset, len(plan.inputs))

        watched = {key: read(plan.forward.watched[key]) for key in self.watching}
        self._gradients = {key: gradient for key, gradient in watched.items() if gradient is not None}
        if _on_device(seeds):
            return [
                executable.export(results[t]) if t in results else self._zeros(own)
                for own, t in zip(plan.inputs, plan.forward.inputs, strict=True)
            ]
        pairs = zip(plan.inputs, map(read, plan.forward.inputs), strict=True)
        return [np.zeros(own.shape, own.dtype) if gradient is None else gradient for own, gradient in pairs]

    def _zeros(self, like: HostInput | DeviceInput) -> Any:
        """An array of the device without a gradient in it."""
        driver = self.machine.driver  # type: ignore[union-attr]
        return driver.export(driver.allocate(like.nbytes), like.shape, str(like.dtype))

    @staticmethod
    def _read_gradient(executable, tensor, seeds, subset, inputs: int) -> np.ndarray:
        index = executable.is_input(tensor)
        if index is None:
            return executable.view(tensor).copy()
        shape = executable.plan.types[tensor].shape
        return np.array(seeds[subset.index(index - inputs)].reshape(shape))  # one on a device comes to the host

    def _make_backward(self, plan: Retained, subset: tuple[int, ...], frozen: frozenset[Parameter]):
        found = plan.forward
        parameters = [s for s in found.trace.leaves if isinstance(s, Parameter) and s.trainable and s not in frozen]
        watched = [found.watched[key] for key in self.watching if found.watched[key].dtype in FLOATS]
        program, results, reached = self.lowering.backward(found, subset, parameters, watched)
        executable = self.make_executable(
            "backward",
            program,
            plan.sizes,
            self.backward_arena,
            arena_name="backward",
            lender=plan.executable,
            borrowed=found.places | {form: form for form in found.lane_forms.values()},
        )
        for tensor, array in zip(found.inputs, plan.inputs, strict=True):
            executable.bind(tensor, array)
        return executable, results, reached

    # ---- shapes and text

    def output_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """The shape of each output for inputs of these shapes."""
        with self.lock:
            known = self._output_shapes.get(shapes)
            if known is None:
                found, sizes = self.lowering.once(
                    "shapes", shapes, lambda opened, _: self.lowering.trace(opened, False)
                )
                if len(self._output_shapes) >= PLANS_KEPT:
                    self._output_shapes.clear()
                known = self._output_shapes[shapes] = [array_type(t, sizes).shape for t in found.outputs]
            return list(known)

    def listing(self, shapes: Sequence[Shape] | None) -> Listing:
        """The tape of forward and backward in training: of the last forward's sizes, else of `shapes`, which may be open."""
        title, _, found = self._training_tape(shapes)
        return list_program(found, title) if isinstance(found, Program) else list_tape(found, title)

    def diagnosis(self, shapes: Sequence[Shape] | None) -> Diagnosis:
        """What makes that tape slow, as far as it can be told before it runs."""
        title, batch, found = self._training_tape(shapes)
        options = self.options
        setting = Setting(
            options.dtype,
            batch,
            self.workers,
            options.workers,
            options.debug_nan,
            self.machine.name,
            self.machine.why_plain(),
        )
        if isinstance(found, Program):
            return diagnose_program(found, title, setting)
        return diagnose_tape(found, title, setting)

    def _training_tape(self, shapes: Sequence[Shape] | None) -> tuple[str, int | None, Program | Tape]:
        """(title, batch where it is known, the tape; its program where sizes are open)."""
        if self._live is not None:
            shapes = [a.shape for a in self._live[0].inputs]
        if shapes is None:
            raise StateError("tape: no sizes are known yet; give build() an input_shape, or call forward() first")
        title = f"training tape, input {', '.join(map(text, shapes))}"
        first = shapes[0][0] if shapes and shapes[0] else None
        batch = first if isinstance(first, int) else None
        try:
            program = self.lowering.joint(
                shapes, None if batch is None else self.machine.lanes(self.options.dtype, batch)
            )
        except UndecidedError as question:
            raise StateError(
                f"tape: whether {question} follows from sizes that are open; give build() an input_shape, or call forward() first"
            ) from None
        if any(isinstance(n, Dim) for shape in shapes for n in shape):
            return title, batch, program
        return title, batch, self.make_executable("training", program, {}, self.machine.arena()).tape

    # ---- watching

    def value(self, key: Hashable) -> np.ndarray:
        """A copy of a watched tensor after the last forward. StateError, KeyError."""
        plan = self.live("value()")
        tensor = plan.forward.watched[key]
        return self._read(plan, plan.executable, plan.forward.places.get(tensor, tensor))

    def gradient(self, key: Hashable) -> np.ndarray:
        """A copy of the gradient of a watched tensor after the last backward; zeros where none reached it."""
        self.live("gradient()")
        if self._gradients is None:
            raise StateError("gradient() needs a backward() before it; call backward() first")
        found = self._gradients.get(key)
        return np.zeros_like(self.value(key)) if found is None else found.copy()


@dataclass(frozen=True)
class Trial:
    """An executable that is bound and may be run, by the network's rules, as often as one likes."""

    network: Network
    executable: Executable

    def run(self, steps: int) -> None:
        """Runs the whole tape so often."""
        self.network.execute(self.executable, steps=steps)


def _on_device(arrays: Sequence[Any]) -> bool:
    """Whether a caller's arrays lie on a device, so that results are to stay there."""
    return any(not isinstance(array, np.ndarray) for array in arrays)


def _seed(gradient: Any, dtype: str) -> Any:
    return np.ascontiguousarray(gradient, dtype) if isinstance(gradient, np.ndarray) else gradient


def _result(executable: Executable, tensor: Tensor, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A copy of a tensor that a run has left, or that is one of its inputs."""
    index = executable.is_input(tensor)
    if index is None:
        return executable.view(tensor).copy()
    return arrays[index].reshape(executable.plan.types[tensor].shape).copy()


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


def pending_of(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Those whose gradient waits to be consumed."""
    return [p for p in parameters if cell(p).pending]
