"""Products of matrices: `matmul` over any leading axes, and `dense`, the product of a dense layer with its bias.

On the CPU every element is a sum over k in rising order, cut into blocks of about 256 terms that are added one after another; the
cut depends on K alone, and a bias is added to the first block's sum. (Up to four rows times a transposed matrix are dot products, whose
order depends on K alone as well; a GPU's depends on the shapes.) So an element has the same bits wherever it stands in its matrix and
however many workers there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Tensor
from tapeprop.ir.dims import broadcast, product, same, text
from tapeprop.ops.op import Call, Device, Launch, Op, Sample, as_tensor, check_rank, record, register, same_dtype
from tapeprop.ops.reduce import sum as sum_over
from tapeprop.ops.reduce import sum_to
from tapeprop.ops.shape import reshape

__all__ = ["dense", "matmul"]


def _turned(shape: Shape, transpose: bool) -> Shape:
    """A shape with its last two axes exchanged, if `transpose`."""
    return (*shape[:-2], shape[-1], shape[-2]) if transpose else shape


def _random(*shapes: tuple[int, ...]):
    return lambda rng: [rng.standard_normal(shape) for shape in shapes]


@register
class MatMul(Op):
    """y = op(a) op(b), op(m) being m or its transpose in the last two axes; leading axes broadcast."""

    name = "matmul"
    onnx = ("MatMul", "Gemm")

    def infer(self, operands, attributes):
        a, b = operands
        dtype = same_dtype("matmul", operands)
        for operand, which in ((a, "left"), (b, "right")):
            if operand.ndim < 2:
                raise ShapeError(
                    f"matmul: expected matrices, of rank 2 or more, got {text(operand.shape)} as the {which} operand; "
                    "reshape a vector to one row or one column"
                )
        left, right = _turned(a.shape, attributes["transpose_a"]), _turned(b.shape, attributes["transpose_b"])
        if not same(left[-1], right[-2]):
            turned = attributes["transpose_a"] or attributes["transpose_b"]
            raise ShapeError(
                f"matmul: expected as many columns on the left as rows on the right, got {text(left)} and {text(right)}"
                f"{' after transposition' if turned else ''}; transpose or reshape one of them"
            )
        try:
            leading = broadcast(a.shape[:-2], b.shape[:-2])
        except ValueError as error:
            raise ShapeError(
                f"matmul: expected leading axes that broadcast, got {text(a.shape)} and {text(b.shape)}; reshape one of them"
            ) from error
        return [((*leading, left[-2], right[-1]), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (a, b) = gradients, call.operands
        if g is None:
            return [None, None]
        ta, tb = call.attributes["transpose_a"], call.attributes["transpose_b"]
        da = db = None
        if wanted[0]:  # of a^T where it is transposed: (g op(b)^T)^T
            da = sum_to(matmul(b, g, tb, True) if ta else matmul(g, b, False, not tb), a.shape)
        if wanted[1]:
            db = sum_to(matmul(g, a, True, ta) if tb else matmul(a, g, not ta, False), b.shape)
        return [da, db]

    def reference(self, call: Call, *arrays: np.ndarray):
        a, b = arrays
        a = a.swapaxes(-1, -2) if call["transpose_a"] else a
        b = b.swapaxes(-1, -2) if call["transpose_b"] else b
        return [np.matmul(a, b)]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.matmul.cpu import product_launch

        return product_launch(call, call["transpose_a"], call["transpose_b"])

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.matmul.launches import product_launches

        return product_launches(call, device, call["transpose_a"], call["transpose_b"])

    def flops(self, call: Call) -> int:
        return 2 * call.results[0].size * call.operands[0].shape[-2 if call["transpose_a"] else -1]

    def samples(self):
        cases = [
            ((1, 1), (1, 1), False, False),
            ((5, 7), (7, 3), False, False),
            ((8, 16), (16, 16), False, False),
            ((29, 37), (37, 45), False, False),
            ((37, 29), (37, 45), True, False),
            ((29, 37), (45, 37), False, True),
            ((19, 13), (33, 19), True, True),
            ((1, 40), (40, 1), False, False),
            ((1, 300), (9, 300), False, True),  # few rows
            ((3, 77), (6, 77), False, True),
            ((75, 400), (17, 400), False, True),  # two blocks of rows, two of terms
            ((2, 3, 4), (2, 4, 5), False, False),
            ((3, 1, 2, 4), (5, 4, 3), False, False),
            ((2, 4, 6), (4, 3), True, False),
            ((4, 3), (2, 1, 3, 2), False, False),
        ]
        samples = []
        for a, b, ta, tb in cases:
            depth = a[-2] if ta else a[-1]
            attributes = {"transpose_a": ta, "transpose_b": tb}
            samples.append(Sample(_random(a, b), attributes, depth=depth, gradient=(0, 1)))
        return samples


def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """op(a) op(b) for a (..., M, K), b (..., K, N) -> (..., M, N); leading axes broadcast as in NumPy.

    transpose_a: a is (..., K, M); transpose_b: b is (..., N, K). a, b: tensors, parameters or arrays of one floating dtype.
    ShapeError where they do not fit, or for a vector; DTypeError for other dtypes.
    """
    a, b = as_tensor(a), as_tensor(b)
    attributes = {"transpose_a": bool(transpose_a), "transpose_b": bool(transpose_b)}
    if a.ndim > 2 and b.ndim == 2 and not transpose_a:
        # One matrix on the right: all rows on the left form one matrix, and so b's gradient needs no sum afterwards.
        rows = product(a.shape[:-1])
        result = record("matmul", [reshape(a, (rows, a.shape[-1])), b], attributes)[0]
        return reshape(result, (*a.shape[:-1], result.shape[-1]))
    return record("matmul", [a, b], attributes)[0]


@register
class Dense(Op):
    """y = x w^T + b."""

    name = "dense"
    onnx = ("Gemm",)

    def infer(self, operands, attributes):
        x, w = operands[:2]
        dtype = same_dtype("dense", operands)
        check_rank("dense", x, 2, "(N, in)")
        check_rank("dense", w, 2, "(out, in)")
        if not same(x.shape[1], w.shape[1]):
            raise ShapeError(
                f"dense: expected x of shape (N, {w.shape[1]}) for weights {text(w.shape)}, got {text(x.shape)}; "
                "flatten x, or change the number of input features"
            )
        if len(operands) == 3:
            b = operands[2]
            if b.ndim != 1 or not same(b.shape[0], w.shape[0]):
                raise ShapeError(f"dense: expected a bias of shape ({w.shape[0]},), got {text(b.shape)}; reshape it")
        return [((x.shape[0], w.shape[0]), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, w) = gradients, call.operands[:2]
        if g is None:
            return [None] * len(call.operands)
        found = [matmul(g, w) if wanted[0] else None, matmul(g, x, transpose_a=True) if wanted[1] else None]
        if len(call.operands) == 3:
            found.append(sum_over(g, 0) if wanted[2] else None)
        return found

    def reference(self, call: Call, *arrays: np.ndarray):
        x, w = arrays[:2]
        y = x @ w.T
        return [y + arrays[2] if len(arrays) == 3 else y]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.matmul.cpu import product_launch

        return product_launch(call, False, True, 2 if len(call.operands) == 3 else None)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.matmul.launches import product_launches

        return product_launches(call, device, False, True, 2 if len(call.operands) == 3 else None)

    def flops(self, call: Call) -> int:
        return 2 * call.results[0].size * call.operands[0].shape[1]

    def samples(self):
        samples = []
        for n, inputs, outputs, bias in (
            (1, 1, 1, True),
            (8, 16, 16, True),
            (5, 50, 33, True),
            (64, 30, 10, False),
            (1, 131, 7, True),  # few rows
            (4, 64, 12, False),
            (3, 700, 40, True),  # three blocks of terms
            (100, 9, 70, True),
        ):
            shapes = [(n, inputs), (outputs, inputs), (outputs,)][: 2 + bias]
            samples.append(Sample(_random(*shapes), depth=inputs + bias, gradient=tuple(range(2 + bias))))
        return samples


def dense(x: Any, w: Any, b: Any = None) -> Tensor:
    """x w^T + b for x (N, in), w (out, in), b (out,) or None -> (N, out).

    Tensors, parameters or arrays of one floating dtype. ShapeError where they do not fit; DTypeError for other dtypes.
    """
    return record("dense", [x, w] if b is None else [x, w, b])[0]
