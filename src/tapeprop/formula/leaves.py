"""What a formula is made from: placeholders, variables and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError
from tapeprop.ir import Constant, Parameter, Placeholder, Tensor
from tapeprop.layers.sizes import open_shape

FLOATS = ("float32", "float64")
DTYPES = (*FLOATS, "int64", "int32", "uint8")
_placeholders = iter(range(1 << 62))


def placeholder(shape: Sequence[int | None], name: str | None = None, dtype: str = "float32") -> Tensor:
    """What a function is fed. shape: (), or sizes, None for one that may differ from call to call.

    Open sizes on axis 0 are one size, the batch, for all placeholders; other open sizes are each their own. name: shown in errors.
    ShapeError, DTypeError.
    """
    number = next(_placeholders)
    _check_dtype("placeholder", dtype, DTYPES)
    label = f"placeholder{number}" if name is None else str(name)
    return Tensor(open_shape(shape, number + 1), dtype, source=Placeholder(label), name=label)


class Variable(Tensor):
    """A tensor that a formula reads and training changes; made by `variable`."""

    __slots__ = ()

    @property
    def parameter(self) -> Parameter:
        """What holds its numbers."""
        assert isinstance(self.source, Parameter)
        return self.source

    @property
    def value(self) -> np.ndarray:
        """The current value: a live NumPy view."""
        return self.parameter.value

    @property
    def grad(self) -> np.ndarray:
        """The gradient: a live NumPy view. NotBuiltError before a function reads it; DTypeError where it is not trainable."""
        return self.parameter.grad

    def assign(self, value: Any) -> None:
        """Copies `value`, of the same shape, into it. ShapeError, DTypeError."""
        self.parameter.assign(np.asarray(value))


def variable(value: Any, name: str | None = None, dtype: str = "float32", trainable: bool = True) -> Variable:
    """A tensor that starts as `value` (copied) and is changed by update() or assign(). DTypeError for what is no real array."""
    _check_dtype("variable", dtype, FLOATS)
    array = _real("variable", value).astype(dtype)
    label = "variable" if name is None else str(name)
    parameter = Parameter(array.shape, array, trainable=bool(trainable), dtype=dtype, name=label)
    return Variable(array.shape, dtype, source=parameter, name=label)


def constant(value: Any, name: str | None = None, dtype: str = "float32") -> Tensor:
    """A tensor that is always `value` (copied); integers stay integers. DTypeError for what is no real array."""
    _check_dtype("constant", dtype, DTYPES)
    array = _real("constant", value)
    array = array.astype("int64" if array.dtype.kind in "iub" and dtype not in FLOATS else dtype)
    array.setflags(write=False)
    return Tensor(array.shape, str(array.dtype), source=Constant(array), name=name or "constant")


# ---- checks


def _check_dtype(what: str, dtype: Any, allowed: Sequence[str]) -> None:
    if dtype not in allowed:
        raise DTypeError(f"{what}: expected dtype {', '.join(map(repr, allowed))}, got {dtype!r}")


def _real(what: str, value: Any) -> np.ndarray:
    try:
        array = np.array(value)
    except ValueError as error:
        raise DTypeError(f"{what}: expected an array of real numbers, got rows of unequal length ({error})") from None
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"{what}: expected real numbers, got {type(value).__name__} ({array.dtype})")
    return array
