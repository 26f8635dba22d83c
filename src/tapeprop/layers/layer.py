"""The base of all layers: named parameters and `trace(x) -> Tensor`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Parameter, Tensor, Trace, UndecidedError, at_node, current, recording
from tapeprop.layers import initializers
from tapeprop.layers.edits import edited
from tapeprop.layers.sizes import open_shape, plain_shape

Member = tuple[str, "Parameter | Layer"]

#: What a norm that a graph puts behind a layer is called, behind the name of that layer: see `tapeprop.graph.auto_norm`.
BEHIND = "auto_norm"


@dataclass(frozen=True)
class _Stream:
    """Where a layer's draws come from: a graph's seed, and the layer's place in that graph."""

    entropy: int
    key: tuple[int, ...]


class Layer:
    """A function of one tensor with parameters of its own.

    A subclass keeps its `Parameter`s and its layers as attributes (also in lists, tuples and dicts), keeps every
    constructor argument under its own name, and defines `trace(x)`, which calls `tapeprop.ops` on tensors. Parameters
    are operands like any other; state is read with `tracing().latest(parameter)` and written with
    `tracing().store(parameter, tensor)`.

        class Scale(Layer):
            def __init__(self, in_features):
                self.in_features = in_features
                self.weight = self.parameter((in_features,), "ones", name="weight")

            def trace(self, x):
                return x * self.weight
    """

    #: The seed of this layer's own draws; None: the graph's seed decides, or chance.
    random_state: int | None = None
    _stream: _Stream | None = None
    _parameters_drawn = 0

    def trace(self, x: Tensor) -> Tensor:
        """The layer's result for x, recorded in the current trace. ShapeError where x does not fit."""
        raise NotImplementedError(f"{type(self).__name__} defines no trace(self, x): write it with tapeprop.ops")

    def __call__(self, x: Tensor) -> Tensor:
        """trace(x), for layers that use other layers."""
        return self.trace(x)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not name.startswith("_"):  # private attributes hold what runs and caches leave behind
            edited()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        edited()

    # ---- parameters and layers inside

    def members(self) -> Iterator[Member]:
        """(name, parameter or layer) held directly, in the order in which they were defined."""
        for name, value in vars(self).items():
            # Every build asks every layer several times, so what most attributes are is passed over first.
            if type(value) not in _PLAIN:
                if isinstance(value, _MEMBERS):
                    yield name, value
                elif isinstance(value, _HOLDERS):
                    yield from _held(name, value)

    def children(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) held directly."""
        for name, member in self.members():
            if isinstance(member, Layer):
                yield name, member

    def walk(self, prefix: str = "", seen: set[int] | None = None) -> Iterator[Member]:
        """(dotted name, parameter or layer): this layer and all inside, each object once, in definition order."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, member in self.members():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(member, Layer):
                yield from member.walk(path, seen)
            elif id(member) not in seen:
                seen.add(id(member))
                yield path, member

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter) of all inside, trained or not; a shared one comes once, under its first name."""
        for name, member in self.walk(prefix):
            if isinstance(member, Parameter):
                yield name, member

    def frozen_parameters(self) -> set[Parameter]:
        """The parameters that frozen nodes of graphs inside keep from being trained."""
        found: set[Parameter] = set()
        for _, child in self.children():
            found |= child.frozen_parameters()
        return found

    def checkpoints(self, prefix: str = "") -> Iterator[str]:
        """The dotted names of the nodes of graphs inside that are recomputed in backward."""
        for name, child in self.children():
            yield from child.checkpoints(f"{prefix}.{name}" if prefix else name)

    def assigned_optimizers(self, default: Any) -> Iterator[tuple[Parameter, Any]]:
        """(parameter, its optimizer) of all inside: that of the innermost node or graph with one, else `default`."""
        for _, member in self.members():
            if isinstance(member, Layer):
                yield from member.assigned_optimizers(default)
            else:
                yield member, default

    @property
    def param_size(self) -> tuple[int, int]:
        """(weights, biases): the numbers of trainable elements; shared ones count once."""
        sizes, seen = [0, 0], set()
        for _, layer in self.walk():
            if not isinstance(layer, Layer):
                continue
            for name, member in layer.members():
                if isinstance(member, Parameter) and member.trainable and member not in seen:
                    seen.add(member)
                    sizes[layer.is_bias(name)] += member.size
        return sizes[0], sizes[1]

    def is_bias(self, name: str) -> bool:
        """Whether `param_size` counts this layer's parameter `name` among the biases."""
        return "bias" in name

    @property
    def layer_count(self) -> int:
        """1, or the number of layers inside; a layer used twice counts twice."""
        return self.count_layers({})

    def count_layers(self, counts: Mapping[int, int]) -> int:
        """`layer_count` where layers count 1, or what `counts` says under their id."""
        inside = [child.count_layers(counts) for _, child in self.children()]
        return sum(inside) if inside else counts.get(id(self), 1)

    # ---- shapes

    #: Whether the result always has the shape of the input.
    keeps_shape: ClassVar[bool] = False

    def expected_input(self) -> tuple[int | None, ...] | None:
        """The shape of the input as far as the layer itself knows it, None for open sizes; None where it knows nothing."""
        return None

    def out_shape(self, in_shape: Any) -> Any:
        """The shape of the result for an input of `in_shape`; None stands for an open size.

        ShapeError where it does not fit.
        """
        with recording(Trace(variables_dtype(self), training=False)) as trace:
            try:
                return plain_shape(self.trace(trace.input(0, open_shape(in_shape))).shape)
            except UndecidedError as question:
                raise ShapeError(
                    f"{type(self).__name__}: expected the sizes of {tuple(in_shape)} that decide {question}, got None: "
                    "give them"
                ) from None

    # ---- drawing

    def parameter(
        self,
        shape: tuple[int, ...],
        initializer: str | initializers.Initializer = "zeros",
        *,
        name: str = "weight",
        trainable: bool = True,
    ) -> Parameter:
        """A new parameter whose value is drawn when it is first needed, from this layer's stream.

        Streams differ from layer to layer and from parameter to parameter, so that no draw depends on what was drawn
        before.
        """
        shape = tuple(int(n) for n in shape)
        index = self._parameters_drawn
        self._parameters_drawn = index + 1
        initial = functools.partial(self._draw, initializers.find(initializer), shape, index)
        return Parameter(shape, initial, trainable=trainable, name=f"{type(self).__name__}.{name}")

    def seed_streams(self, entropy: int, key: tuple[int, ...]) -> None:
        """Gives the layers in here, where they have neither random_state nor a stream, streams of a graph's seed.

        key: where the layer stands in the graph; the stream follows from (entropy, key) alone.
        """
        if self._stream is None:
            self._stream = _Stream(entropy, key)
        for i, (_, child) in enumerate(self.children()):
            child.seed_streams(entropy, (*key, 1, i))

    def _draw(self, initializer: initializers.Initializer, shape: tuple[int, ...], index: int) -> np.ndarray:
        if self.random_state is not None:
            # the first parameter gets PCG64(random_state) itself, as anyone would draw it by hand
            sequence = np.random.SeedSequence(self.random_state, spawn_key=(index,) if index else ())
        elif self._stream is not None:
            sequence = np.random.SeedSequence(self._stream.entropy, spawn_key=(*self._stream.key, 0, index))
        else:
            sequence = np.random.SeedSequence()
        return initializers.draw(initializer, shape, np.random.Generator(np.random.PCG64(sequence)))

    # ---- description

    def constructor_arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as far as they are attributes; passed on, they make an equal layer."""
        found: dict[str, Any] = {}
        for name, argument in _arguments(type(self)).items():
            value = getattr(self, name, inspect.Parameter.empty)
            if value is inspect.Parameter.empty:
                continue
            if isinstance(value, Parameter) or (value is None and argument.default is True):
                value = value is not None  # bias=True keeps the bias itself under that name, bias=False keeps None
            found[name] = value
        return found

    def structure_key(self) -> tuple:
        """What trace() depends on besides the parameters' numbers: the same until something is edited."""
        plain = [
            (name, value if type(value) in _PLAIN or _is_plain(value) else Identity(value))
            for name, value in vars(self).items()
            if name[0] != "_"
        ]
        return (Identity(self), *plain, *[child.structure_key() for _, child in self.children()])

    def __repr__(self) -> str:
        return self.written()

    def written(self, **changes: Any) -> str:
        """The call that makes an equal layer, or one with other values for some arguments: Dense(4, 8)."""
        arguments, shown = _arguments(type(self)), []
        for name, value in {**self.constructor_arguments(), **changes}.items():
            default = arguments[name].default
            if default is inspect.Parameter.empty:
                shown.append(repr(value))
            elif repr(value) != repr(default):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def variables_dtype(layer: Layer) -> str:
    """The floating dtype of the variables that a layer reads; float32 where it reads none."""
    dtypes = (parameter.dtype for _, parameter in layer.named_parameters())
    return next((dtype for dtype in dtypes if dtype in ("float32", "float64")), "float32")


def tracing() -> Trace:
    """The trace being recorded. GraphError outside of one."""
    trace = current()
    if trace is None:
        raise GraphError(
            "a layer was called outside a graph: put it into a LayerNode, or call out_shape() for its shape"
        )
    return trace


def traced(layer: Layer, x: Tensor) -> Tensor:
    """The layer's result for x, with what the graph puts behind that layer: how containers call what they hold."""
    y, trace = layer.trace(x), tracing()
    behind = trace.behind.get(id(layer))
    if behind is None:
        return y
    with at_node(f"{trace.node}.{BEHIND}"):
        return behind.trace(y)


def misfit(text: str) -> ShapeError:
    """A ShapeError that names the node at work."""
    trace = current()
    return ShapeError(f"node {trace.node!r}: {text}" if trace is not None and trace.node else text)


def check_layer(value: Any, where: str) -> Layer:
    """`value` if it is a layer, else a GraphError with the remedy."""
    if isinstance(value, Layer):
        return value
    if isinstance(value, type) and issubclass(value, Layer):
        raise GraphError(f"{where}: expected a layer, got the class {value.__name__}; write {value.__name__}(...)")
    if callable(value):
        raise GraphError(f"{where}: expected a layer, got {value!r}; wrap a function of tensors as Lambda(function)")
    raise GraphError(f"{where}: expected a layer, got {type(value).__name__} {value!r}")


class Identity:
    """An object that is equal to itself alone, whatever its own notion of equality is."""

    __slots__ = ("thing",)

    def __init__(self, thing: object):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


#: What is compared by value, and holds nothing.
_PLAIN = frozenset((int, float, str, bool, type(None)))


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else type(value) in _PLAIN


_MEMBERS = (Parameter, Layer)
_HOLDERS = (list, tuple, dict, Tensor)


def _held(name: str, value: Any) -> Iterator[Member]:
    if isinstance(value, Parameter | Layer):
        yield name, value
    elif isinstance(value, Tensor) and isinstance(value.source, Parameter):  # a variable
        yield name, value.source
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _held(f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _held(f"{name}.{key}", item)


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The named arguments of a class's constructor."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(cls).parameters
    return {name: argument for name, argument in found.items() if argument.kind in named}
