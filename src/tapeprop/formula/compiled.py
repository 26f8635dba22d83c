"""A formula as a tape: `function` makes a `Function` of it, which runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapeprop.compiler.replay import Element, Replay
from tapeprop.errors import DTypeError, GraphError, StateError
from tapeprop.formula.feeds import Exchange, quoted
from tapeprop.formula.leaves import FLOATS, Variable
from tapeprop.graph.node import configured
from tapeprop.ir import Constant, Parameter, Placeholder, Size, Tensor, current, reachable
from tapeprop.ir.dims import Dim
from tapeprop.layers import arguments
from tapeprop.ops import as_tensor
from tapeprop.profiler.collect import profile_trial
from tapeprop.profiler.profile import Profile
from tapeprop.runtime.listing import Listing
from tapeprop.runtime.lowering import InputKind
from tapeprop.runtime.network import Network
from tapeprop.runtime.plans import CacheInfo, Options, Trial
from tapeprop.runtime.snapshot import restored
from tapeprop.runtime.state import pack, zero_gradients
from tapeprop.runtime.training import Trainer
from tapeprop.runtime.update import OptimizerState, require_optimizer, set_lr


def function(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    watch: Iterable[Tensor] = (),
    *,
    seed: int | None = None,
    workers: int | None = None,
) -> Function:
    """A compiled function from placeholders to outputs: see `Function`.

    outputs, inputs: a tensor or a list of them; calls give one value or a list accordingly. watch: tensors of the formula whose value and
    gradient can be read after forward() and backward(). seed: of dropout. workers: threads; by default the usable CPUs.
    GraphError for a placeholder that the formula reads and `inputs` lacks, and for an input that is no placeholder; DTypeError where
    placeholders and variables have different floating dtypes.
    """
    return Function(outputs, inputs, watch, seed=seed, workers=workers)


class Function:
    """A formula as a tape, like any graph, with its own run state: two functions of one formula do not disturb each other.

    f(*arrays) gives the outputs. value_and_grad(*arrays) gives them and the gradient of their sum by each input, in one native call.
    forward(feed) and backward(d) do so one by one, as a graph's do. Results are fresh arrays; those of shape () are NumPy scalars.
    Other sizes of open axes are accepted from call to call. Variables are trained by set_optimizer() and update().
    """

    def __init__(self, outputs: Any, inputs: Any, watch: Iterable[Tensor], *, seed: int | None, workers: int | None):
        if current() is not None:
            raise GraphError("function: expected to be called outside a layer's trace(); there, call ops directly")
        self.outputs = _tensors("outputs", outputs)
        self.inputs = _tensors("inputs", inputs)
        self.watched = _tensors("watch", watch if isinstance(watch, Tensor) else list(watch))
        if not self.outputs:
            raise GraphError("function: expected at least one output, got none")
        self._check_inputs()
        leaves = self._leaves()
        self.variables = [t for t in leaves if isinstance(t.source, Parameter)]
        dtype = _one_dtype([*self.inputs, *self.variables], self.outputs)
        self._exchange = Exchange(self.inputs, self.outputs, not _listed(inputs), not _listed(outputs), dtype)
        self._network = self._make_network(dtype, seed, workers)
        self._optimizers = OptimizerState()
        self._trainer = Trainer(self._network, self._optimizers)
        self._last: dict[Tensor, np.ndarray] = {}
        self._last_gradient: dict[Tensor, np.ndarray] = {}

    def _make_network(self, dtype: str, seed: int | None, workers: int | None) -> Network:
        if workers is not None:
            workers = arguments.whole("function", "workers", workers)
        key = arguments.seed("function", "seed", seed)
        word = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        start = np.array([word, 0], np.int64)
        random = Parameter((2,), start, trainable=False, dtype="int64", name="random state")
        pack([random, *self._parameters()], dtype)
        kinds = [InputKind(None, False)] * bool(self._exchange.together)
        kinds += [InputKind(t.dtype, bool(t.shape) and isinstance(t.shape[0], Dim)) for t in self._exchange.alone]
        network = Network(self._trace, Options(dtype, workers), random, kinds=kinds)
        network.watch(self.watched)
        return network

    # ---- what the formula reads

    def _check_inputs(self) -> None:
        for tensor in self.inputs:
            if not isinstance(tensor.source, Placeholder):
                raise GraphError(
                    f"function: expected placeholders as inputs, got {tensor!r}; a variable is read where it lies, a constant "
                    "never changes"
                )
        if len(set(self.inputs)) < len(self.inputs):
            raise GraphError("function: expected each placeholder once among the inputs")

    def _leaves(self) -> list[Tensor]:
        """What the formula reads. GraphError for a placeholder that is no input."""
        calls = reachable([*self.outputs, *self.watched])
        leaves = dict.fromkeys([t for call in calls for t in call.operands if t.producer is None])
        leaves.update(dict.fromkeys(t for t in (*self.outputs, *self.watched) if t.producer is None))
        known = set(self.inputs)
        missing = [t.name for t in leaves if isinstance(t.source, Placeholder) and t not in known]
        if missing:
            raise GraphError(
                f"function: expected every placeholder of the formula as an input, {quoted(missing)} is none"
            )
        return list(leaves)

    def _parameters(self) -> list[Parameter]:
        return [t.source for t in self.variables if isinstance(t.source, Parameter)]

    def _trace(self, inputs: list[Tensor]) -> tuple[list[Tensor], dict[Any, Tensor]]:
        trace, exchange = current(), self._exchange
        assert trace is not None
        leaves: dict[Tensor, Tensor | Element] = {}
        given = iter(inputs)
        if exchange.together:
            vector = next(given)
            leaves.update((t, Element(vector, k)) for k, t in enumerate(exchange.together))
        sizes: dict[str, Size] = {}
        for tensor, now in zip(exchange.alone, given, strict=True):
            leaves[tensor] = now
            for declared, size in zip(tensor.shape, now.shape, strict=True):
                if isinstance(declared, Dim):
                    sizes[str(declared)] = size
        watched = [t for t in self.watched if t in trace.watched]
        replay = Replay([*exchange.scalars, *self.outputs], leaves, sizes, watched)
        found = [replay.vector(exchange.scalars)] if len(exchange.scalars) > 1 else []
        found += [replay.tensor(t) for t in exchange.separate]
        return found, {t: replay.tensor(t) for t in watched}

    # ---- running

    def __call__(self, *feed: Any) -> Any:
        """The outputs, dropout off. feed: one value per input, or one {placeholder or its name: value}."""
        return self._exchange.outputs_of(self._network.predict(self._exchange.fed(feed)))

    def value_and_grad(self, *feed: Any, is_train: bool = False) -> tuple[Any, Any]:
        """(the outputs, the gradient of the sum of all outputs by each input), in one native call.

        Gradients of variables are added to those not yet consumed, as by backward().
        """
        values, gradients = self._network.value_and_gradient(self._exchange.fed(feed), is_train)
        return self._exchange.outputs_of(values), self._exchange.inputs_of(gradients)

    def forward(self, *feed: Any, is_train: bool = False) -> Any:
        """The outputs, kept for backward(), value() and gradient(). is_train: whether dropout draws."""
        arrays = self._exchange.fed(feed)
        with self._network.lock:  # what is noted here belongs to the forward that backward() would continue
            results = self._network.forward(arrays, is_train)
            self._last = dict(zip(self.outputs, self._exchange.by_output(results), strict=True))
            self._last_gradient = {}
        return self._exchange.outputs_of(results)

    def backward(self, d_out: Any = None) -> Any:
        """The gradient by each input, given that of each output of the last forward(); None means ones.

        d_out: as the outputs come: one value, or a list with None where no gradient comes from an output. Gradients of variables are
        added to those not yet consumed by update() or dropped by zero_grad(). StateError without a forward().
        """
        with self._network.lock:
            kinds = self._network.outputs_of_last_forward("backward()")
            found = self._network.backward(self._exchange.seeds(d_out, kinds))
            self._last_gradient = dict(zip(self.inputs, self._exchange.by_input(found), strict=True))
        return self._exchange.inputs_of(found)

    # ---- looking inside

    def value(self, tensor: Tensor) -> Any:
        """The value of a watched tensor or an output in the last forward(). StateError where it is neither."""
        with self._network.lock:
            if tensor in self._last:
                self._network.live("value()")
                return self._last[tensor].copy()
        self._expect_watched(tensor, "value()")
        return self._network.value(tensor)[()]

    def gradient(self, tensor: Tensor) -> Any:
        """The gradient by a watched tensor, an input or a variable in the last backward(); zeros where none reached it.

        GraphError for a constant; StateError for a tensor that is not watched.
        """
        if isinstance(tensor, Tensor) and isinstance(tensor.source, Constant):
            raise GraphError(f"gradient(): a constant has none, got {tensor!r}; make it a placeholder or a variable")
        if isinstance(tensor, Variable) and tensor in self.variables:
            return tensor.grad.copy()[()]
        with self._network.lock:
            if tensor in self._last_gradient:
                self._network.live("gradient()")
                return self._last_gradient[tensor].copy()
        if tensor in self.inputs:
            raise StateError("gradient() needs a backward() before it; call forward() and backward() first")
        self._expect_watched(tensor, "gradient()")
        return self._network.gradient(tensor)[()]

    def _expect_watched(self, tensor: Any, what: str) -> None:
        if not isinstance(tensor, Tensor):
            raise GraphError(f"{what}: expected a tensor of the formula, got {tensor!r}")
        if tensor not in self.watched:
            raise StateError(f"{what}: {tensor!r} is not watched; name it in function(..., watch=[...])")

    @property
    def tape(self) -> Listing:
        """The instructions of forward and backward, for the sizes of the last forward() or as far as sizes are known; print it."""
        shapes: list[Any] = [(len(self._exchange.together),)] * bool(self._exchange.together)
        return self._network.listing([*shapes, *(t.shape for t in self._exchange.alone)])

    def profile(self, *feed: Any, repeats: int = 20) -> Profile:
        """The time of each instruction of value_and_grad(), and its memory; see `tapeprop.profiler.profile.Profile`.

        repeats: runs that are measured, after one that is not. Gradients of variables are as before afterwards.
        """
        return profile_trial(self._trial(self._exchange.fed(feed)), repeats)

    @contextmanager
    def _trial(self, arrays: Sequence[np.ndarray]) -> Iterator[Trial]:
        network = self._network
        with network.lock:
            found, executable = network.value_and_gradient_plan(arrays, False)
            for tensor, array in zip(found.inputs, arrays, strict=True):
                executable.bind(tensor, array)
            with restored(found.reached, self._optimizers):
                yield Trial(network, executable)

    def cache_info(self) -> CacheInfo:
        """How often forward() found its plan (hits), had to make one (misses), and how many plans are kept (size)."""
        return self._network.cache_info()

    # ---- variables

    def set_optimizer(self, optimizer: Any, **params: Any) -> None:
        """The optimizer of all trainable variables, with fresh state; None takes it away."""
        made = configured(optimizer, params)
        trained = [p for p in self._parameters() if p.trainable]
        if made is not None and not trained:
            raise GraphError(
                "set_optimizer: the formula reads no trainable variable; make one by tapeprop.variable(...)"
            )
        self._optimizers.assign([] if made is None else [(made, trained)])

    def update(self) -> None:
        """Lets the optimizer advance the variables whose gradients are not yet consumed. StateError without an optimizer."""
        self._trainer.update()

    def update_lr(self, lr: float) -> None:
        """Sets the learning rate. ValueError unless finite and >= 0; StateError without an optimizer."""
        require_optimizer(self._optimizers)
        set_lr(self._optimizers.units, lr)

    def zero_grad(self) -> None:
        """Drops the gradients of all variables."""
        zero_gradients([p for p in self._parameters() if p.trainable])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Function is bound to its variables and to compiled code, and cannot be copied or pickled; make another one by "
            "tapeprop.function(), and keep the variables' values"
        )

    def __repr__(self) -> str:
        return f"<Function: {quoted([t.name for t in self.inputs])} -> {len(self.outputs)} outputs>"


# ---- checks


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _tensors(what: str, value: Any) -> list[Tensor]:
    found = list(value) if _listed(value) else [value]
    for tensor in found:
        if not isinstance(tensor, Tensor):
            if what == "outputs" and isinstance(tensor, int | float):
                continue
            raise GraphError(f"function: expected tensors as {what}, got {tensor!r:.80}")
    return [as_tensor(tensor) for tensor in found]


def _one_dtype(leaves: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """The floating dtype of the formula."""
    computed = [t for t in outputs if not isinstance(t.source, Constant)]
    for tensors in (leaves, computed, outputs[:1]):  # numbers take the dtype around them
        found = {t.dtype: t for t in reversed(tensors) if t.dtype in FLOATS}
        if len(found) > 1:
            named = " and ".join(f"{t.name!r} of {dtype}" for dtype, t in reversed(found.items()))
            raise DTypeError(f"function: expected placeholders and variables of one floating dtype, got {named}")
        if found:
            return next(iter(found))
    return "float32"
