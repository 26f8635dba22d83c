"""Losses: one formula of ops each, and the check that turns a caller's labels into what the formula reads.

A loss is used in three ways: `trace` puts it into a tape, `loss(y_true, y_pred)` and `loss.grad(y_true, y_pred)` run
the same formula on arrays. A new loss is a subclass that gives `trace`, and `labels` where its labels are no real
numbers of the prediction's shape.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tapeprop.errors import DTypeError, LabelError, ShapeError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import product
from tapeprop.ops import losses as formulas
from tapeprop.ops.shape import reshape, transpose

if TYPE_CHECKING:
    from tapeprop.runtime.formula import Formula

__all__ = [
    "MAE",
    "MSE",
    "NLL",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Hinge",
    "Huber",
    "KLDivergence",
    "Loss",
]


class Loss:
    """The base of all losses."""

    #: What a right answer is. "argmax": the largest prediction along axis 1 is the label; "sign": a prediction > 0
    #: stands where the label is > `threshold`, element by element; None: there is no such thing.
    accuracy: ClassVar[Literal["argmax", "sign"] | None] = None
    #: Labels above it are of the positive class (accuracy = "sign").
    threshold: ClassVar[float] = 0.5
    #: The class id of samples that do not count (accuracy = "argmax"); None: all do.
    ignore_index: int | None = None

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """The loss, a tensor of shape (), of predictions and of labels as `labels` gives them."""
        raise NotImplementedError(f"{type(self).__name__} has no trace(); give it one, written in ops")

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        """The labels as `trace` takes them, checked; `y` itself where dtype and layout fit.

        y: array-like of real numbers. prediction_shape: all of it, batch included. dtype: the prediction's.
        LabelError, telling what was expected and received, where dtype, shape or values do not fit.
        """
        return targets(self._name, y, prediction_shape, dtype)

    def __call__(self, y_true: Any, y_pred: Any) -> float:
        """The loss of an array of predictions, computed in their dtype (float64 where they are no float32)."""
        values, _ = self._evaluate(y_true, y_pred, ())
        return float(values[0])

    def grad(self, y_true: Any, y_pred: Any) -> np.ndarray:
        """The gradient with respect to the predictions, of their shape and dtype."""
        _, gradients = self._evaluate(y_true, y_pred, (0,))
        return gradients[0]

    def key(self) -> Hashable:
        """Equal for losses that compile to the same instructions: those of one class with equal public attributes."""
        settings = tuple(sorted((name, value) for name, value in vars(self).items() if not name.startswith("_")))
        try:
            hash(settings)
        except TypeError:
            return type(self), id(self)
        return type(self), settings

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_compiled"}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _evaluate(self, y_true: Any, y_pred: Any, wanted: tuple[int, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        predictions = np.asarray(y_pred)
        if predictions.dtype.kind not in "fiu":
            raise DTypeError(f"{self._name}: expected real predictions, received dtype {predictions.dtype}")
        dtype = "float32" if predictions.dtype == np.float32 else "float64"
        if predictions.ndim == 0 or predictions.size == 0:
            raise ShapeError(f"{self._name}: expected at least one prediction, received shape {predictions.shape}")
        predictions = np.ascontiguousarray(predictions, dtype)
        labels = self.labels(y_true, predictions.shape, dtype)
        return self._formula().value_and_gradient([predictions, labels], dtype, wanted)

    def _formula(self) -> Formula:
        """The compiled formula, made when it is first needed; kept, so that every later call is one native run."""
        from tapeprop.runtime.formula import Formula

        kept = vars(self).get("_compiled")
        if kept is None or kept[0] != self.key():
            kept = vars(self)["_compiled"] = (self.key(), Formula(self.trace, type(self).__name__))
        return kept[1]


def _rows(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions (N, C, ...) as (N * ..., C), and their labels accordingly: every place of a map is a sample."""
    if y_pred.ndim <= 2:
        return y_pred, y_true
    axes = (0, *range(2, y_pred.ndim), 1)
    rows, classes = product((y_pred.shape[0], *y_pred.shape[2:])), y_pred.shape[1]
    if y_true.ndim == y_pred.ndim:
        y_true = reshape(transpose(y_true, axes), (rows, classes))
    else:
        y_true = reshape(y_true, (rows,))
    return reshape(transpose(y_pred, axes), (rows, classes)), y_true


class CrossEntropy(Loss):
    """-log softmax(y_pred)[label], mean over samples, as torch.nn.CrossEntropyLoss.

    y_pred: logits (N, C), or (N, C, ...), where every place of the map counts as a sample. Labels: class ids (N, ...),
    or one-hot of the shape of y_pred; rows of any distribution do.

    label_smoothing: the part of each label, in [0, 1], that is spread evenly over all classes. class_weights: a finite
    number >= 0 for each class, by which its share of the loss is multiplied. ignore_index: the id of samples that count
    for nothing, in loss, gradient and accuracy; for class ids only. With class ids the mean is weighted: it is divided
    by the sum of the weights of the labels that count, and NaN (its gradient 0) where none does; with one-hot labels it
    is divided by N. In a fit the loss of an epoch is the mean over its batches. ValueError, TypeError; ShapeError where
    there are more or fewer weights than classes.
    """

    accuracy = "argmax"

    def __init__(self, label_smoothing: float = 0.0, class_weights: Any = None, ignore_index: int | None = None):
        self.label_smoothing = _number("CrossEntropy: label_smoothing", label_smoothing, most=1.0)
        self.class_weights = _weights("CrossEntropy: class_weights", class_weights)
        self.ignore_index = _class_id("CrossEntropy: ignore_index", ignore_index)

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.softmax_cross_entropy(
            *_rows(y_pred, y_true), self.class_weights, self.label_smoothing, self.ignore_index
        )

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        return _counted_classes(self._name, y, prediction_shape, dtype, self.class_weights, self.ignore_index)


class NLL(Loss):
    """-y_pred[label], mean over samples, as torch.nn.NLLLoss.

    y_pred: log-probabilities; shapes, labels, class_weights and ignore_index as for CrossEntropy.
    """

    accuracy = "argmax"

    def __init__(self, class_weights: Any = None, ignore_index: int | None = None):
        self.class_weights = _weights("NLL: class_weights", class_weights)
        self.ignore_index = _class_id("NLL: ignore_index", ignore_index)

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.nll(*_rows(y_pred, y_true), self.class_weights, self.ignore_index)

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        return _counted_classes(self._name, y, prediction_shape, dtype, self.class_weights, self.ignore_index)


class KLDivergence(Loss):
    """KL(y_true || y_pred) = y_true log(y_true / y_pred), summed over classes, mean over samples.

    y_pred: probabilities, as a softmax gives them; log-probabilities with log_predictions=True, which is what torch's
    KLDivLoss(reduction="batchmean") takes. Shapes as for CrossEntropy. Labels: distributions, or class ids, which stand
    for one-hot ones. A class that has no share in y_true adds 0.
    """

    accuracy = "argmax"

    def __init__(self, log_predictions: bool = False):
        self.log_predictions = bool(log_predictions)

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.kl_divergence(*_rows(y_pred, y_true), log_predictions=self.log_predictions)

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        found = classes(self._name, y, prediction_shape, dtype)
        if found.dtype.kind == "f":
            return found
        one_hot = np.zeros(tuple(prediction_shape), dtype)
        np.put_along_axis(one_hot, np.expand_dims(found, 1), 1, axis=1)
        return one_hot


class BinaryCrossEntropy(Loss):
    """-(y log s + (1 - y) log(1 - s)) with s = sigmoid(y_pred), mean over all elements.

    y_pred: logits. Labels: of the same shape, in [0, 1]; (N,) does for (N, 1). pos_weight: what y log s is multiplied
    by, a finite number >= 0 or one for each place along axis 1, as torch.nn.BCEWithLogitsLoss has it. ShapeError where
    these are not as many.
    """

    accuracy = "sign"

    def __init__(self, pos_weight: Any = None):
        one = pos_weight is None or isinstance(pos_weight, numbers.Real)
        what = "BinaryCrossEntropy: pos_weight"
        self.pos_weight = (
            pos_weight if pos_weight is None else _number(what, pos_weight) if one else _weights(what, pos_weight)
        )

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.binary_cross_entropy(y_pred, y_true, self.pos_weight)

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        found = targets(self._name, y, prediction_shape, dtype)
        if found.min() < 0 or found.max() > 1:
            raise LabelError(f"{self._name}: expected labels in [0, 1], received {_range(found)}")
        return found


class MSE(Loss):
    """(y_pred - y_true)^2, mean over all elements."""

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.mse(y_pred, y_true)


class MAE(Loss):
    """|y_pred - y_true|, mean over all elements; its derivative where they are equal is 0."""

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.mae(y_pred, y_true)


class Hinge(Loss):
    """max(0, 1 - y_true y_pred), mean over all elements. Labels: -1 and 1; or 0 and 1, where 0 stands for -1."""

    accuracy = "sign"
    threshold = 0.0

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.hinge(y_pred, y_true)

    def labels(self, y: Any, prediction_shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        found = targets(self._name, y, prediction_shape, dtype)
        ones = found == 1
        if (ones | (found == -1)).all():
            return found
        if (ones | (found == 0)).all():
            return np.where(ones, found, -1).astype(dtype)
        raise LabelError(f"{self._name}: expected labels -1 and 1, or 0 and 1, received {_range(found)}")


class Huber(Loss):
    """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), for e = y_pred - y_true; mean over all elements.

    Huber 1964. delta: finite and above 0 (ValueError).
    """

    def __init__(self, delta: float = 1.0):
        if not 0 < delta < np.inf:
            raise ValueError(f"Huber: delta must be finite and above 0; received {delta!r}")
        self.delta = float(delta)

    def trace(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return formulas.huber(y_pred, y_true, self.delta)


def targets(name: str, y: Any, prediction_shape: Sequence[int], dtype: str) -> np.ndarray:
    """`y` as real numbers of the prediction's shape in `dtype`; (N,) does for (N, 1). LabelError, which `name`
    begins.
    """
    given, shape = _array(name, y), tuple(prediction_shape)
    if given.shape != shape:
        if (*given.shape, 1) != shape:
            raise LabelError(f"{name}: expected labels of the prediction's shape {shape}, received shape {given.shape}")
        given = given.reshape(shape)
    return _cast(name, given, dtype)


def classes(
    name: str, y: Any, prediction_shape: Sequence[int], dtype: str, ignore_index: int | None = None
) -> np.ndarray:
    """Class ids (N, ...) as int64, or one-hot labels (N, C, ...) in `dtype`, for predictions (N, C, ...).

    Ids may come as (N, 1). Floating one-hot labels may be soft: any distribution. Whole-number ones have one 1 per
    sample. ignore_index: an id that is no class but fits; only for ids. LabelError, which `name` begins.
    """
    given, shape = _array(name, y), tuple(prediction_shape)
    if len(shape) < 2:
        raise LabelError(f"{name}: expected predictions of shape (N, C), received shape {shape}")
    count, ids_shape = shape[1], (shape[0], *shape[2:])
    whole = given.dtype.kind in "iub"
    if whole and given.shape == (*ids_shape, 1):
        given = given.reshape(ids_shape)
    if given.shape == shape and not (whole and shape == ids_shape):
        if ignore_index is not None:
            raise LabelError(
                f"{name}: ignore_index={ignore_index} is a class id, received one-hot labels of shape {given.shape}; "
                "give class ids, or rows of zeros for samples to leave out"
            )
        return _one_hot(name, given, dtype)
    if given.shape != ids_shape or not whole:
        expected = f"class ids of shape {ids_shape} or one-hot labels of shape {shape}"
        if given.shape != ids_shape:
            raise LabelError(f"{name}: expected {expected}, received shape {given.shape}")
        raise LabelError(
            f"{name}: expected {expected}, received {given.dtype} of shape {given.shape}; class ids are integers, "
            f'so convert them with y.astype("int64")'
        )
    found = np.ascontiguousarray(given, np.int64)
    counted = found if ignore_index is None else found[found != ignore_index]
    # a negative id is a huge number as uint64: one pass instead of two
    if counted.size and counted.view(np.uint64).max() >= count:
        also = "" if ignore_index is None else f", or {ignore_index}"
        raise LabelError(f"{name}: expected class ids from 0 to {count - 1}{also}, received {_range(given)}")
    return found


def _counted_classes(
    name: str,
    y: Any,
    prediction_shape: Sequence[int],
    dtype: str,
    class_weights: tuple[float, ...] | None,
    ignore_index: int | None,
) -> np.ndarray:
    """As `classes`. ShapeError where there are more or fewer weights than classes."""
    found = classes(name, y, prediction_shape, dtype, ignore_index)
    if class_weights is not None and len(class_weights) != prediction_shape[1]:
        raise ShapeError(
            f"{name}: expected class_weights for each of {prediction_shape[1]} classes, received {len(class_weights)}; "
            f"predictions are of shape {tuple(prediction_shape)}"
        )
    return found


def _one_hot(name: str, given: np.ndarray, dtype: str) -> np.ndarray:
    found = _cast(name, given, dtype)
    if found.min() < 0 or found.max() > 1:
        raise LabelError(f"{name}: expected one-hot labels in [0, 1], received {_range(found)}")
    if given.dtype.kind != "f" and not (found.sum(axis=1) == 1).all():
        raise LabelError(
            f"{name}: expected one-hot labels with a single 1 for each sample, received another number of them"
        )
    return found


def _array(name: str, y: Any) -> np.ndarray:
    """`y` as an array of real numbers without NaN, at least one."""
    try:
        given = np.asarray(y)
    except ValueError as error:
        raise LabelError(f"{name}: expected an array of labels, received rows of unequal length ({error})") from None
    if given.dtype.kind not in "fiub":
        raise LabelError(f"{name}: expected integer or floating labels, received dtype {given.dtype}")
    if given.size == 0:
        raise LabelError(f"{name}: expected at least one label, received shape {given.shape}")
    if given.dtype.kind == "f" and np.isnan(given).any():
        raise LabelError(f"{name}: expected labels without NaN, received {int(np.isnan(given).sum())} of them")
    return given


def _cast(name: str, given: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(given, dtype)
    if found is not given and np.isinf(found).any() and not np.isinf(given).any():
        raise LabelError(f"{name}: expected labels that fit {dtype}, received {_range(given)}")
    return found


def _number(name: str, value: Any, most: float = math.inf) -> float:
    """`value` as a float. ValueError unless it is finite and in [0, most]; TypeError where it is no real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, received {value!r}")
    if not (0 <= float(value) <= most and float(value) < math.inf):
        expected = "a finite number >= 0" if most == math.inf else f"a number from 0 to {most:g}"
        raise ValueError(f"{name}: expected {expected}, received {value!r}")
    return float(value)


def _weights(name: str, values: Any) -> tuple[float, ...] | None:
    """One weight for each class, or None. ValueError, TypeError."""
    if values is None:
        return None
    given = np.asarray(values)
    if given.dtype.kind not in "fiu" or given.ndim != 1 or not given.size:
        raise TypeError(f"{name}: expected a list of real numbers, one for each class, received {values!r}")
    found = given.astype(np.float64)
    if not (np.isfinite(found).all() and (found >= 0).all() and found.any()):
        raise ValueError(f"{name}: expected finite numbers >= 0, not all of them 0, received {values!r}")
    return tuple(found.tolist())


def _class_id(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer or None, received {value!r}")
    return int(value)


def _range(values: np.ndarray) -> str:
    return f"values from {values.min()} to {values.max()}"
