"""Winograd convolution of images in batch lanes: 3 x 3 filters, stride 1, at 16 products for four results instead of 36.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section 4.1, F(2 x 2, 3 x 3): the filters G g G^T and
tiles of 4 x 4 pixels B^T d B meet in 16 points, summed over the channels, and A^T m A gives 2 x 2 results. The input's gradient
is the same with the filters turned round, which exchanges the first and the last point of each axis and nothing else.

Accuracy. The rows of B^T, G and A^T have absolute sums of at most 2, 3/2 and 3, so points are at most 4 max|d| and 9/4 max|g|, and a
result adds 9 of their products. With C channels such a product is rounded C times in its sum and 11 times in the three
transforms: the error is at most 81 C (C + 11) / 2 in units of eps max|d| max|g|. Summing the 9 C products directly it is at most
81 C^2 / 2. The worst cases are alike; on random numbers sums of C terms instead of 9 C win: measured with 16 to 256 channels, the
error is 0.6 to 0.8 of that of the direct sum. It is larger where a tile holds numbers of very different size, for they meet in its
points. A NaN or an infinity spoils all the results of the tiles that see it, and what is infinite may become NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.lanes.layout import batch_lanes, check_lanes, images
from tapeprop.ops.op import Call, Launch, Op, Sample, check_rank, record, register, same_dtype

__all__ = ["conv2d_winograd", "winograd_filters"]

Sides = tuple[tuple[int, int], tuple[int, int]]

#: B^T, G and A^T.
TILE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


@register
class WinogradFilters(Op):
    """w (O, C, 3, 3) -> u (16, O, C), the points of each filter."""

    name = "winograd_filters"
    cpu_only = True

    def infer(self, operands, attributes):
        (w,) = operands
        check_rank(self.name, w, 4, "(O, C, 3, 3)")
        if not (same(w.shape[2], 3) and same(w.shape[3], 3)):
            raise ShapeError(f"{self.name}: expected filters of 3 x 3, got shape {text(w.shape)}")
        return [((16, *w.shape[:2]), same_dtype(self.name, operands))]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (w,) = arrays
        points = np.einsum("ir,ocrk,jk->ijoc", FILTER, w.astype(np.float64), FILTER)
        return [points.reshape(16, *w.shape[:2]).astype(w.dtype)]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.winograd import filters_launch

        return filters_launch(call)

    def flops(self, call: Call) -> int:
        return 28 * call.results[0].size // 16

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r, s=shape: [r.standard_normal(s)], depth=9, gradient=())
            for shape in [(1, 1, 3, 3), (6, 3, 3, 3), (13, 17, 3, 3)]
        ]


@register
class Conv2DWinograd(Op):
    """(x (G, C, H, W, L), u (16, O, C)[, b (O,)]) -> activation(convolution + b), (G, O, OH, OW, L).

    turned: the filters are turned round and their channels exchanged: from x (G, O, H, W, L) and the same u to (G, C, OH, OW, L).
    """

    name = "conv2d_winograd"
    cpu_only = True

    def infer(self, operands, attributes):
        x, u = operands[:2]
        dtype = same_dtype(self.name, operands)
        check_rank(self.name, x, 5, "(N / lanes, C, H, W, lanes)")
        check_lanes(self.name, x.shape[4])
        check_rank(self.name, u, 3, "(16, O, C)")
        outs, channels = u.shape[1:] if not attributes["turned"] else u.shape[:0:-1]
        if not same(x.shape[1], channels):
            raise ShapeError(
                f"{self.name}: expected x of {channels} channels for points {text(u.shape)}, got {text(x.shape)}"
            )
        if len(operands) == 3 and (operands[2].ndim != 1 or not same(operands[2].shape[0], outs)):
            raise ShapeError(f"{self.name}: expected a bias of shape ({outs},), got {text(operands[2].shape)}")
        if attributes["activation"] not in (None, "relu"):
            raise GraphError(f"{self.name}: expected activation None or 'relu', got {attributes['activation']!r}")
        size = [n + sum(sides) - 2 for n, sides in zip(x.shape[2:4], attributes["padding"])]
        if any(isinstance(n, int) and n < 1 for n in size):
            raise ShapeError(f"{self.name}: expected a padded image of 3 x 3 or more, got {text(x.shape)}")
        return [((x.shape[0], outs, *size, x.shape[4]), dtype)]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, u = images(arrays[0]), arrays[1].reshape(4, 4, *arrays[1].shape[1:])
        if call["turned"]:
            u = u[np.ix_([3, 1, 2, 0], [3, 1, 2, 0])].swapaxes(2, 3)
        (top, bottom), (left, right) = call["padding"]
        height, width = call.results[0].shape[2:4]
        # the last tiles may reach one row or column further than the padding does
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom + height % 2), (left, right + width % 2)))
        tiles = np.lib.stride_tricks.sliding_window_view(x, (4, 4), (2, 3))[:, :, ::2, ::2]
        points = np.einsum("ir,nchwrk,jk->nchwij", TILE.astype(x.dtype), tiles, TILE.astype(x.dtype))
        products = np.einsum("nchwij,ijoc->nohwij", points, u)
        made = np.einsum("ri,nohwij,kj->nohrwk", RESULT.astype(x.dtype), products, RESULT.astype(x.dtype))
        n, o, h, _, w, _ = made.shape
        y = made.reshape(n, o, 2 * h, 2 * w)[:, :, :height, :width]
        if len(arrays) == 3:
            y = y + arrays[2][:, None, None]
        y = np.where(y < 0, 0, y) if call["activation"] == "relu" else y
        return [batch_lanes(y, call.results[0].shape[4])]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.winograd import correlation_launch

        if min(call.results[0].shape[2:4]) < 1:
            raise ShapeError(f"{self.name}: expected a padded image of 3 x 3 or more, got {call.operands[0].shape}")
        return correlation_launch(call)

    def flops(self, call: Call) -> int:
        """What summing directly would take, so that rates compare."""
        return 18 * call.results[0].size * call.operands[0].shape[1]

    def samples(self) -> list[Sample]:
        samples = []
        for x, outs, padding, activation, turned, bias in (
            ((1, 1, 3, 3, 16), 1, ((0, 0), (0, 0)), None, False, False),
            ((2, 3, 8, 8, 16), 6, ((1, 1), (1, 1)), None, False, True),
            ((1, 7, 5, 9, 8), 13, ((1, 1), (1, 1)), "relu", False, True),
            ((1, 5, 6, 4, 16), 9, ((2, 0), (1, 2)), None, False, False),
            ((2, 6, 7, 8, 8), 4, ((1, 1), (1, 1)), None, True, False),
            ((1, 17, 4, 11, 16), 3, ((0, 2), (2, 1)), None, True, False),
        ):
            points = (16, outs, x[1]) if not turned else (16, x[1], outs)
            shapes = [x, points, (outs,)][: 2 + bias]
            attributes = {"padding": padding, "activation": activation, "turned": turned}
            samples.append(
                # a point sums over the channels, and a result over nine points of values up to four times as large
                Sample(lambda r, s=shapes: [r.standard_normal(a) for a in s], attributes, depth=36 * x[1], gradient=())
            )
        return samples


def winograd_filters(w: Any) -> Tensor:
    """The points G g G^T (16, O, C) of filters w (O, C, 3, 3)."""
    return record("winograd_filters", [w])[0]


def conv2d_winograd(
    x: Any, u: Any, b: Any = None, *, padding: Sides, activation: str | None = None, turned: bool = False
) -> Tensor:
    """The convolution of x (G, C, H, W, L) with 3 x 3 filters of stride 1 by their points u (16, O, C), plus b (O,) or None.

    padding: ((top, bottom), (left, right)). activation: "relu" or None. turned: with the filters turned round and their
    channels exchanged, as for the input's gradient. ShapeError, DTypeError, GraphError as `conv2d`.
    """
    attributes = {"padding": padding, "activation": activation, "turned": bool(turned)}
    return record("conv2d_winograd", [x, u] if b is None else [x, u, b], attributes)[0]
