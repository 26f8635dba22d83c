"""The compiled side of a graph: forward, backward from any outputs, prediction, and what lies between two calls.

Two memory layouts. *Retained* (`forward`, `backward`): saved values live until the next forward, the inputs are copied. *Tight*
(`predict`, and the training steps of `runtime.training`): lifetimes end to end, inputs bound where they lie.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.compiler.encode import Tape
from tapeprop.compiler.gradient import FLOATS
from tapeprop.compiler.interpret import array_type
from tapeprop.errors import StateError
from tapeprop.ir import Dim, Parameter, Program, Shape, Tensor, UndecidedError
from tapeprop.ir.dims import text
from tapeprop.runtime import ledger
from tapeprop.runtime.diagnosis import Diagnosis, Setting, diagnose_program, diagnose_tape
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.listing import Listing, list_program, list_tape
from tapeprop.runtime.lowering import Forward, InputKind, TraceFunction, ValueAndGradient
from tapeprop.runtime.mirror import DeviceInput, HostInput
from tapeprop.runtime.plans import PLANS_KEPT, Options, PlannedNetwork
from tapeprop.runtime.state import cell
from tapeprop.runtime.watchful import Names


@dataclass
class Retained:
    """A forward tape that keeps what backward needs, and the backward tapes made so far by subset of outputs."""

    forward: Forward
    sizes: dict[str, int]
    executable: Executable
    inputs: list[HostInput | DeviceInput]
    backward: dict[Hashable, tuple[Executable, dict[Tensor, Tensor], list[Parameter]]] = field(default_factory=dict)


class Network(PlannedNetwork):
    """Runs the programs of one structure of a graph.

    frozen: tells which parameters get no gradient. The others: see `PlannedNetwork`. The caller packs every parameter before it makes
    the network.
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
        super().__init__(function, options, random, kinds, names, outline)
        self.frozen = frozen
        self.retained_arena, self.backward_arena, self.tight_arena = (self.machine.arena() for _ in range(3))
        self._output_shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
        self.watching: tuple[Hashable, ...] = ()
        self._live: tuple[Retained, int, int] | None = None  # the plan, its arena's generation, the forward's number
        self._forwards = 0
        self._own = threading.local()  # .forward: the number of this thread's last forward
        self._gradients: dict[Hashable, np.ndarray] | None = None  # of what is watched

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
            shapes = tuple([a.shape for a in arrays])
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
            self.expect_idle()
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

    def watch(self, keys: Sequence[Hashable]) -> None:
        """From the next forward on, the tensors under these keys can be read, and their gradients after backward."""
        if tuple(keys) != self.watching:
            self.watching = tuple(keys)
            self._live = self._gradients = None

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
