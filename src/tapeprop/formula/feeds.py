"""What callers of a formula give and get, and what its network reads and gives: `Exchange` turns one into the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.formula.leaves import FLOATS
from tapeprop.ir import Tensor
from tapeprop.ir.dims import Dim, text
from tapeprop.runtime.plans import as_input

#: Scalar inputs from which on they are fed as one vector.
FEWEST_TOGETHER = 64


class Exchange:
    """Values of a formula's inputs and outputs, as callers have them, and arrays of its network.

    Scalars of the formula's dtype go together where there are many: inputs as one vector, the first input of the network, outputs
    as its first output. inputs, outputs: of the formula; one_input, one_output: whether callers give and get one value or a list.
    together, alone: inputs in that vector and the others; scalars, separate: outputs of shape () and those outside of the vector.
    """

    def __init__(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], one_input: bool, one_output: bool, dtype: str
    ):
        self.inputs, self.outputs, self.dtype = inputs, outputs, dtype
        self.one_input, self.one_output = one_input, one_output
        packed = [t for t in inputs if t.shape == () and t.dtype == dtype]
        self.together = packed if len(packed) >= FEWEST_TOGETHER else []
        alone = set(inputs) - set(self.together)
        self.alone = [t for t in inputs if t in alone]
        self.scalars = [t for t in outputs if t.shape == () and t.dtype == dtype]
        inside = set(self.scalars) if len(self.scalars) > 1 else set()
        self.separate = [t for t in outputs if t not in inside]
        # dtypes and shapes of inputs that were checked and taken as they were
        self._accepted: tuple[Any, ...] | None = None

    def _arrays(self, given: Sequence[Any]) -> list[np.ndarray]:
        """One array per input of the network, from one value per input of the function."""
        if len(given) != len(self.inputs):
            names = quoted([t.name for t in self.inputs])
            raise GraphError(f"function: expected {len(self.inputs)} inputs, {names}, got {len(given)}")
        if not self.together:
            plain = all(type(value) is np.ndarray and value.flags.c_contiguous for value in given)
            kinds = tuple((value.dtype, value.shape) for value in given) if plain else None
            if kinds is not None and kinds == self._accepted:  # as the call before
                return list(given)
            found = self._checked(zip(self.inputs, given, strict=True))
            if plain and all(a.dtype == value.dtype for a, value in zip(found, given)):
                self._accepted = kinds
            return found
        if not self.alone:
            return [self._packed(given)]
        values = dict(zip(self.inputs, given, strict=True))
        packed = self._packed([values[t] for t in self.together])
        return [packed, *self._checked((t, values[t]) for t in self.alone)]

    def _packed(self, given: Sequence[Any]) -> np.ndarray:
        """The scalars that are fed as one vector."""
        try:
            packed = np.array(given)
        except ValueError:  # of several shapes
            packed = np.zeros(0)
        if packed.shape != (len(self.together),) or packed.dtype.kind not in "fiub":
            self._checked(zip(self.together, given, strict=True))  # which tells what is wrong
        return packed.astype(self.dtype, copy=False)

    def _checked(self, pairs: Iterable[tuple[Tensor, Any]]) -> list[np.ndarray]:
        found, sizes = [], dict[str, tuple[int, str]]()
        for tensor, value in pairs:
            array = as_input(value, tensor.dtype, f"placeholder {tensor.name!r}")
            if tensor.dtype not in FLOATS:
                _check_whole(tensor, np.asarray(value), array)
            _check_shape(tensor, array.shape, sizes)
            found.append(array)
        return found

    def fed(self, feed: tuple[Any, ...]) -> list[np.ndarray]:
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
                raise GraphError(f"feed: expected the inputs {quoted(by_name)} alone, got {name!r}")
            if len(found) > 1:
                raise GraphError(
                    f"feed: expected a name of one input, {key!r} is that of {len(found)}; give the placeholder"
                )
            if found[0] in values:
                raise GraphError(f"feed: expected one value for each input, got two for {found[0].name!r}")
            values[found[0]] = value
        missing = [t.name for t in self.inputs if t not in values]
        if missing:
            raise GraphError(f"feed: expected a value for each input, {quoted(missing)} is missing")
        return self._arrays([values[t] for t in self.inputs])

    def outputs_of(self, arrays: Sequence[np.ndarray]) -> Any:
        """What a caller gets for the outputs of the network."""
        values = self.by_output(arrays)
        return values[0] if self.one_output else values

    def by_output(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """One value per output of the formula."""
        if len(self.separate) == len(self.outputs):
            return [a[()] for a in arrays]
        together = iter(arrays[0])
        rest = iter([a[()] for a in arrays[1:]])
        alone = set(self.separate)
        return [next(rest) if t in alone else next(together) for t in self.outputs]

    def inputs_of(self, arrays: Sequence[np.ndarray]) -> Any:
        """What a caller gets for the gradients by the inputs of the network."""
        values = self.by_input(arrays)
        return values[0] if self.one_input else values

    def by_input(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """One gradient per input of the formula."""
        if not self.together:
            return [a[()] for a in arrays]
        if not self.alone:
            return list(arrays[0])
        together = dict(zip(self.together, arrays[0], strict=True))
        alone = dict(zip(self.alone, [a[()] for a in arrays[1:]], strict=True))
        return [together[t] if t in together else alone[t] for t in self.inputs]

    def seeds(self, d_out: Any, kinds: Sequence[tuple[tuple[int, ...], str]]) -> list[np.ndarray | None]:
        """The gradients of the network's outputs from what a caller gives for those of the formula's. kinds: (shape, dtype) of each."""
        if d_out is None:
            return [np.ones(shape, dtype) for shape, dtype in kinds]
        given = [d_out] if self.one_output else d_out
        if not isinstance(given, list | tuple) or len(given) != len(self.outputs):
            raise GraphError(f"backward: expected a list of {len(self.outputs)} gradients, got {d_out!r:.80}")
        alone = set(self.separate)
        found: list[np.ndarray | None] = []
        if len(self.separate) < len(self.outputs):
            scalars = [0.0 if d is None else d for t, d in zip(self.outputs, given, strict=True) if t not in alone]
            found.append(_seed("an output of shape ()", scalars, (len(scalars),), self.dtype))
        values = [d for t, d in zip(self.outputs, given, strict=True) if t in alone]
        for value, (shape, kind) in zip(values, kinds[len(found) :], strict=True):
            found.append(None if value is None else _seed("an output", value, shape, kind))
        return found


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


def quoted(names: Iterable[Any], most: int = 6) -> str:
    """The first names of a list, for errors."""
    found = [repr(name) for name in names]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
