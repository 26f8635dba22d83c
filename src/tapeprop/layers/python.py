"""`PythonLayer`: a layer whose forward and backward are NumPy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Dim, Shape, Tensor
from tapeprop.ir.dims import text
from tapeprop.layers.layer import Identity, Layer, tracing
from tapeprop.ops.python import call_python


class PythonLayer(Layer):
    """A layer written in NumPy: an opaque instruction of the tape, between two stretches of native code.

    A subclass defines `forward(x)` and `backward(d_out)`; where the result has another shape than the input, also
    `out_shape(in_shape)`.

        class Clip(PythonLayer):
            def __init__(self, in_features, limit=1.0):
                self.limit = limit
                self.scale = self.parameter((in_features,), "ones", name="scale")

            def forward(self, x):
                self.x = x
                return np.clip(x, -self.limit, self.limit) * self.scale.value

            def backward(self, d_out):
                inside = np.abs(self.x) <= self.limit
                d_scale = (d_out * np.clip(self.x, -self.limit, self.limit)).sum(axis=0)
                return d_out * self.scale.value * inside, {"scale": d_scale}

    *Arrays*: x and d_out are copies, of the graph's dtype, yours to keep or to change. Results are copied in; they must
    have the expected shape and dtype (ShapeError, DTypeError).
    *From forward to backward*: what forward assigns to attributes of `self` is what backward finds there, for each
    place of the layer in a graph by itself: a layer may stand in several nodes. Arrays that forward changes in place
    are one for all places.
    *Parameters* are read as `self.scale.value`; backward returns `(dx, {name: gradient})`, a gradient for each
    trainable parameter (None for zeros), or dx alone where there is none. dx may be None as well. It is called where anything
    before it, or a parameter, needs a gradient.
    *Training*: `self.is_train` tells forward and backward which behaviour is wanted.
    *Errors* raised inside reach the caller, with a note that names the node. The call that so fails changes nothing of the
    graph's: weights, running statistics and random state are as before.

    In a node with checkpoint=True forward is not called again: its result is kept. Gradients of gradients do not go
    through it. `graph.diagnose()` lists where a graph leaves native code.
    """

    _is_train = False
    #: The names that forward or backward has assigned while one of them runs, else None.
    _assigned: set[str] | None = None

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The result for x: an array of x's dtype and of the shape that `out_shape` gives."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(self, x): write it in NumPy")

    def backward(self, d_out: np.ndarray) -> Any:
        """The gradient of forward's x, given that of its result; with trainable parameters (dx, {name: gradient})."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward(self, d_out): write it in NumPy")

    def out_shape(self, in_shape: Any) -> Any:
        """The shape of the result for an input of `in_shape`; the same, unless a subclass says otherwise.

        in_shape: a tuple of ints. While a graph is built sizes may be open; they can be added, multiplied and divided (`//`) like
        ints. None in the result stands for the open size on that axis of the input.
        """
        return in_shape

    @property
    def is_train(self) -> bool:
        """Whether the call of forward or backward that runs belongs to training."""
        return self._is_train

    def trace(self, x: Tensor) -> Tensor:
        """Records the call. ShapeError where out_shape() gives no shape."""
        trace = tracing()
        trainable = [(name, p) for name, p in self.named_parameters() if p.trainable]
        site = _Site(self, trace.node, trace.training, [name for name, _ in trainable])
        return call_python(x, [p for _, p in trainable], site, self._result_shape(x))

    def _result_shape(self, x: Tensor) -> Shape:
        found = self.out_shape(x.shape)
        what = f"{type(self).__name__}: expected out_shape({text(x.shape)}) to give a tuple of sizes >= 1"
        if not isinstance(found, tuple | list):
            raise ShapeError(f"{what}, got {found!r}; mend its out_shape()")
        sizes = []
        for axis, size in enumerate(found):
            given = x.shape[axis] if size is None and axis < x.ndim else size
            if not isinstance(given, Dim) and (not isinstance(given, int | np.integer) or given < 1):
                raise ShapeError(f"{what}, got {tuple(found)}; mend its out_shape()")
            sizes.append(given if isinstance(given, Dim) else int(given))
        return tuple(sizes)

    def structure_key(self) -> tuple:
        """What trace() depends on. Other attributes may change at any time, in forward itself too: it reads them as they are."""
        held = tuple((name, Identity(member)) for name, member in self.members())
        return (Identity(self), held, tuple(child.structure_key() for _, child in self.children()))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._assigned is None or name in vars(PythonLayer):
            super().__setattr__(name, value)
        else:
            self._assigned.add(name)
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._assigned is None:
            super().__delattr__(name)
        else:
            object.__delattr__(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_assigned", "_is_train")}

    @contextlib.contextmanager
    def _at_work(self, training: bool) -> Iterator[set[str]]:
        """Lets one call in; gives the names of the attributes that it assigns."""
        # graphs in several threads may share the layer
        with vars(self).setdefault("_lock", threading.RLock()):
            before = self._assigned, self._is_train
            assigned: set[str] = set()
            vars(self).update(_assigned=assigned, _is_train=training)
            try:
                yield assigned
            finally:
                vars(self).update(_assigned=before[0], _is_train=before[1])


class _Site:
    """A place where a layer is called, and what its forward left there for backward."""

    def __init__(self, layer: PythonLayer, node: str, training: bool, trainable: list[str]):
        self.layer = layer
        self.node = node
        self.label = type(layer).__name__
        self.training = training
        self.trainable = trainable
        self.kept: dict[str, Any] = {}

    def forward(self, x: np.ndarray) -> Any:
        with self.layer._at_work(self.training) as assigned:
            y = self._noted("forward", self.layer.forward, x)
            self.kept = {name: vars(self.layer)[name] for name in assigned if name in vars(self.layer)}
        return y

    def backward(self, d_out: np.ndarray) -> list[Any]:
        with self.layer._at_work(self.training):
            attributes = vars(self.layer)
            others = {name: attributes[name] for name in self.kept if name in attributes}
            attributes.update(self.kept)
            try:
                found = self._noted("backward", self.layer.backward, d_out)
            finally:
                # another place may have left its own there; what backward itself has assigned stays
                attributes.update(
                    {name: value for name, value in others.items() if attributes.get(name) is self.kept[name]}
                )
        return self._gradients(found)

    def _noted(self, what: str, function: Callable[[np.ndarray], Any], array: np.ndarray) -> Any:
        try:
            return function(array)
        except Exception as error:
            error.add_note(f"raised in {what}() of node {self.node!r} ({self.label})")
            raise

    def _gradients(self, found: Any) -> list[Any]:
        """[dx, the gradient of each trainable parameter]. GraphError where one is missing or unknown."""
        dx, given = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
        if isinstance(dx, tuple) or not isinstance(given, Mapping) or set(given) != set(self.trainable):
            expected = (
                f"(dx, {{{', '.join(f'{name!r}: gradient' for name in self.trainable)}}})" if self.trainable else "dx"
            )
            got = f"(dx, {dict.fromkeys(given, '...')})" if isinstance(given, Mapping) and given else _form(found)
            raise GraphError(
                f"node {self.node!r} ({self.label}): expected backward() to return {expected}, got {got}; give a "
                "gradient for each trainable parameter, None for zeros"
            )
        return [dx, *(given[name] for name in self.trainable)]


def _form(found: Any) -> str:
    if isinstance(found, tuple):
        return f"a tuple of {len(found)}: {', '.join(type(item).__name__ for item in found)}"
    return f"{type(found).__name__} alone"
