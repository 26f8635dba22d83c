"""A formula as a tape: `Function`, what it is fed and what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapeprop.compiler.replay import Element, Replay
from tapeprop.errors import DTypeError, GraphError, ShapeError, StateError
from tapeprop.formula.leaves import FLOATS, Variable
from tapeprop.graph.node import configured
from tapeprop.ir import Constant, Parameter, Placeholder, Size, Tensor, current, reachable
from tapeprop.ir.dims import Dim, text
from tapeprop.layers import arguments
from tapeprop.ops import as_tensor
from tapeprop.profiler.collect import profile_trial
from tapeprop.profiler.profile import Profile
from tapeprop.runtime.listing import Listing
from tapeprop.runtime.lowering import InputKind
from tapeprop.runtime.network import CacheInfo, Network, Options, Trial, as_input
from tapeprop.runtime.snapshot import restored
from tapeprop.runtime.state import pack
from tapeprop.runtime.training import Trainer, zero_gradients
from tapeprop.runtime.update import OptimizerState, require_optimizer, set_lr

#: Scalar inputs from which on they are fed as one vector.
FEWEST_TOGETHER = 64


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
        self._one_output, self._one_input = not _listed(outputs), not _listed(inputs)
        self.outputs = _tensors("outputs", outputs)
        self.inputs = _tensors("inputs", inputs)
        self.watched = _tensors("watch", watch if isinstance(watch, Tensor) else list(watch))
        if not self.outputs:
            raise GraphError("function: expected at least one output, got none")
        self._check_inputs()
        leaves = self._leaves()
        self.variables = [t for t in leaves if isinstance(t.source, Parameter)]
        dtype = _one_dtype([*self.inputs, *self.variables], self.outputs)
        packed = [t for t in self.inputs if t.shape == () and t.dtype == dtype]
        self._together = packed if len(packed) >= FEWEST_TOGETHER else []
        alone = set(self.inputs) - set(self._together)
        self._alone = [t for t in self.inputs if t in alone]
        self._scalars = [t for t in self.outputs if t.shape == () and t.dtype == dtype]
        self._network = self._make_network(dtype, seed, workers)
        self._optimizers = OptimizerState()
        self._trainer = Trainer(self._network, self._optimizers)
        self._accepted: tuple[Any, ...] | None = (
            None  # dtypes and shapes of inputs that were checked and taken as they were
        )
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
        kinds = [InputKind(None, False)] * bool(self._together)
        kinds += [InputKind(t.dtype, bool(t.shape) and isinstance(t.shape[0], Dim)) for t in self._alone]
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
                f"function: expected every placeholder of the formula as an input, {_names(missing)} is none"
            )
        return list(leaves)

    def _parameters(self) -> list[Parameter]:
        return [t.source for t in self.variables if isinstance(t.source, Parameter)]

    def _trace(self, inputs: list[Tensor]) -> tuple[list[Tensor], dict[Any, Tensor]]:
        trace = current()
        assert trace is not None
        leaves: dict[Tensor, Tensor | Element] = {}
        given = iter(inputs)
        if self._together:
            vector = next(given)
            leaves.update((t, Element(vector, k)) for k, t in enumerate(self._together))
        sizes: dict[str, Size] = {}
        for tensor, now in zip(self._alone, given, strict=True):
            leaves[tensor] = now
            for declared, size in zip(tensor.shape, now.shape, strict=True):
                if isinstance(declared, Dim):
                    sizes[str(declared)] = size
        watched = [t for t in self.watched if t in trace.watched]
        replay = Replay([*self._scalars, *self.outputs], leaves, sizes, watched)
        found = [replay.vector(self._scalars)] if len(self._scalars) > 1 else []
        found += [replay.tensor(t) for t in self._separate()]
        return found, {t: replay.tensor(t) for t in watched}

    def _separate(self) -> list[Tensor]:
        """The outputs that are not part of the one vector of scalars."""
        if len(self._scalars) < 2:
            return self.outputs
        together = set(self._scalars)
        return [t for t in self.outputs if t not in together]

    # ---- what callers give and get

    def _arrays(self, given: Sequence[Any]) -> list[np.ndarray]:
        """One array per input of the network, from one value per input of the function."""
        if len(given) != len(self.inputs):
            names = _names([t.name for t in self.inputs])
            raise GraphError(f"function: expected {len(self.inputs)} inputs, {names}, got {len(given)}")
        if not self._together:
            plain = all(type(value) is np.ndarray and value.flags.c_contiguous for value in given)
            kinds = tuple((value.dtype, value.shape) for value in given) if plain else None
            if kinds is not None and kinds == self._accepted:  # as the call before
                return list(given)
            found = self._checked(zip(self.inputs, given, strict=True))
            if plain and all(a.dtype == value.dtype for a, value in zip(found, given)):
                self._accepted = kinds
            return found
        if not self._alone:
            return [self._packed(given)]
        values = dict(zip(self.inputs, given, strict=True))
        packed = self._packed([values[t] for t in self._together])
        return [packed, *self._checked((t, values[t]) for t in self._alone)]

    def _packed(self, given: Sequence[Any]) -> np.ndarray:
        """The scalars that are fed as one vector."""
        try:
            packed = np.array(given)
        except ValueError:  # of several shapes
            packed = np.zeros(0)
        if packed.shape != (len(self._together),) or packed.dtype.kind not in "fiub":
            self._checked(zip(self._together, given, strict=True))  # which tells what is wrong
        return packed.astype(self._network.options.dtype, copy=False)

    def _checked(self, pairs: Iterable[tuple[Tensor, Any]]) -> list[np.ndarray]:
        found, sizes = [], dict[str, tuple[int, str]]()
        for tensor, value in pairs:
            array = as_input(value, tensor.dtype, f"placeholder {tensor.name!r}")
            if tensor.dtype not in FLOATS:
                _check_whole(tensor, np.asarray(value), array)
            _check_shape(tensor, array.shape, sizes)
            found.append(array)
        return found

    def _fed(self, feed: tuple[Any, ...]) -> list[np.ndarray]:
        """The network's arrays from positional values, or from one {placeholder or its name: value}."""
        if len(feed) != 1 or not isinstance(feed[0], Mapping):
            return self._arrays(feed)
        by_name: dict[Any, list[Tensor]] = {}
        for t in self.inputs:
            by_name.setdefault(t.name, []).append(t)
        known = set(self.inputs)
        values: dict[Tensor, Any] = {}
        for key, value in feed[0].items():
            found = [key] if isinstance(key, Tensor) and key in known else by_name.get(key, ())
            if not found:
                name = key.name if isinstance(key, Tensor) else key
                raise GraphError(f"feed: expected the inputs {_names(by_name)} alone, got {name!r}")
            if len(found) > 1:
                raise GraphError(
                    f"feed: expected a name of one input, {key!r} is that of {len(found)}; give the placeholder"
                )
            if found[0] in values:
                raise GraphError(f"feed: expected one value for each input, got two for {found[0].name!r}")
            values[found[0]] = value
        missing = [t.name for t in self.inputs if t not in values]
        if missing:
            raise GraphError(f"feed: expected a value for each input, {_names(missing)} is missing")
        return self._arrays([values[t] for t in self.inputs])

    def _outputs_of(self, arrays: Sequence[np.ndarray]) -> Any:
        values = self._by_output(arrays)
        return values[0] if self._one_output else values

    def _by_output(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        separate = self._separate()
        if len(separate) == len(self.outputs):
            return [a[()] for a in arrays]
        together = iter(arrays[0])
        rest = iter([a[()] for a in arrays[1:]])
        alone = set(separate)
        return [next(rest) if t in alone else next(together) for t in self.outputs]

    def _inputs_of(self, arrays: Sequence[np.ndarray]) -> Any:
        """The gradient by each input from that by each input of the network."""
        values = self._by_input(arrays)
        return values[0] if self._one_input else values

    def _by_input(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        if not self._together:
            return [a[()] for a in arrays]
        if not self._alone:
            return list(arrays[0])
        together = dict(zip(self._together, arrays[0], strict=True))
        alone = dict(zip(self._alone, [a[()] for a in arrays[1:]], strict=True))
        return [together[t] if t in together else alone[t] for t in self.inputs]

    # ---- running

    def __call__(self, *feed: Any) -> Any:
        """The outputs, dropout off. feed: one value per input, or one {placeholder or its name: value}."""
        return self._outputs_of(self._network.predict(self._fed(feed)))

    def value_and_grad(self, *feed: Any, is_train: bool = False) -> tuple[Any, Any]:
        """(the outputs, the gradient of the sum of all outputs by each input), in one native call.

        Gradients of variables are added to those not yet consumed, as by backward().
        """
        values, gradients = self._network.value_and_gradient(self._fed(feed), is_train)
        return self._outputs_of(values), self._inputs_of(gradients)

    def forward(self, *feed: Any, is_train: bool = False) -> Any:
        """The outputs, kept for backward(), value() and gradient(). is_train: whether dropout draws."""
        arrays = self._fed(feed)
        with self._network.lock:  # what is noted here belongs to the forward that backward() would continue
            results = self._network.forward(arrays, is_train)
            self._last = dict(zip(self.outputs, self._by_output(results), strict=True))
            self._last_gradient = {}
        return self._outputs_of(results)

    def backward(self, d_out: Any = None) -> Any:
        """The gradient by each input, given that of each output of the last forward(); None means ones.

        d_out: as the outputs come: one value, or a list with None where no gradient comes from an output. Gradients of variables are
        added to those not yet consumed by update() or dropped by zero_grad(). StateError without a forward().
        """
        with self._network.lock:
            kinds = self._network.outputs_of_last_forward("backward()")
            found = self._network.backward(self._seeds(d_out, kinds))
            self._last_gradient = dict(zip(self.inputs, self._by_input(found), strict=True))
        return self._inputs_of(found)

    def _seeds(self, d_out: Any, kinds: Sequence[tuple[tuple[int, ...], str]]) -> list[np.ndarray | None]:
        if d_out is None:
            return [np.ones(shape, dtype) for shape, dtype in kinds]
        given = [d_out] if self._one_output else d_out
        if not isinstance(given, list | tuple) or len(given) != len(self.outputs):
            raise GraphError(f"backward: expected a list of {len(self.outputs)} gradients, got {d_out!r:.80}")
        separate = self._separate()
        alone, dtype = set(separate), self._network.options.dtype
        found: list[np.ndarray | None] = []
        if len(separate) < len(self.outputs):
            scalars = [0.0 if d is None else d for t, d in zip(self.outputs, given, strict=True) if t not in alone]
            found.append(_seed("an output of shape ()", scalars, (len(scalars),), dtype))
        values = [d for t, d in zip(self.outputs, given, strict=True) if t in alone]
        for value, (shape, kind) in zip(values, kinds[len(found) :], strict=True):
            found.append(None if value is None else _seed("an output", value, shape, kind))
        return found

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
        shapes: list[Any] = [(len(self._together),)] * bool(self._together)
        return self._network.listing([*shapes, *(t.shape for t in self._alone)])

    def profile(self, *feed: Any, repeats: int = 20) -> Profile:
        """The time of each instruction of value_and_grad(), and its memory; see `tapeprop.profiler.profile.Profile`.

        repeats: runs that are measured, after one that is not. Gradients of variables are as before afterwards.
        """
        return profile_trial(self._trial(self._fed(feed)), repeats)

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
        return f"<Function: {_names([t.name for t in self.inputs])} -> {len(self.outputs)} outputs>"


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


def _check_shape(tensor: Tensor, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    """ShapeError where a fed array does not fit its placeholder. sizes: {symbol: (its size, who gave it)}, filled in."""
    fits = len(shape) == tensor.ndim
    for declared, size in zip(tensor.shape, shape) if fits else ():
        if isinstance(declared, Dim):
            known, name = sizes.setdefault(str(declared), (size, str(tensor.name)))
            if known != size:
                raise ShapeError(
                    f"placeholder {tensor.name!r}: expected the batch of {known} that {name!r} has, got {size} in {shape}"
                )
        else:
            fits = fits and declared == size
    if not fits:
        raise ShapeError(f"placeholder {tensor.name!r}: expected shape {text(tensor.shape)}, got {shape}")


def _check_whole(tensor: Tensor, given: np.ndarray, array: np.ndarray) -> None:
    """DTypeError where numbers do not fit the integers of a placeholder. array: what they become."""
    if given.dtype.kind == "f":
        raise DTypeError(f"placeholder {tensor.name!r}: expected whole numbers, got {given.dtype}")
    if not np.can_cast(given.dtype, array.dtype) and (given != array).any():
        wrong = given[given != array][0]
        raise DTypeError(f"placeholder {tensor.name!r}: expected whole numbers that {tensor.dtype} holds, got {wrong}")


def _seed(what: str, value: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = as_input(value, dtype, f"gradient of {what}")
    if array.shape != shape:
        raise ShapeError(f"backward: expected a gradient of the output's shape {shape}, got {array.shape}")
    return array


def _names(names: Iterable[Any], most: int = 6) -> str:
    found = [repr(name) for name in names]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
