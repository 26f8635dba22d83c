"""The CPU kernel of matrix products: one for every transposition, with or without a bias, for all leading axes."""

from __future__ import annotations

from tapeprop.ops.matmul.geometry import BATCH_AXES, batch_axes
from tapeprop.ops.op import Call, Launch, Ref, launch
from tapeprop.targets.cpu.kernel import NumbaKernel
from tapeprop.targets.cpu.tiles import microtile

ROW_BLOCK = 72  # rows of the result that one worker does at a time
FEW_ROWS = 4  # of a; up to so many are multiplied with the rows of b where they lie
COLUMNS = 4  # of the result that such a product makes side by side
IN_PLACE, COPIED, TRANSPOSED = 0, 1, 2  # a panel of b


def product_launch(call: Call, transpose_a: bool, transpose_b: bool, bias: int | None = None) -> Launch:
    """The row of op(a) op(b), plus operand `bias`, of shape (columns,), where one is named."""
    a, b, c = call.operands[0], call.operands[1], call.results[0]
    (m, n), k = c.shape[-2:], a.shape[-2 if transpose_a else -1]
    axes = batch_axes(c.shape[:-2], a.shape, b.shape)
    if len(axes) == 1 and axes[0][2] == 0 and axes[0][1] == a.shape[-1] * a.shape[-2] and not transpose_a:
        m, axes = m * axes[0][0], []  # one matrix b for all of a's: their rows form one matrix
    sizes = microtile(c.dtype)
    if transpose_b and not transpose_a and not axes and m <= FEW_ROWS and k >= 4 * sizes["lanes"]:
        return _dots_launch(call, m, n, k, bias, sizes["lanes"])
    width = 2 * sizes["lanes"]
    blocks = -(-m // ROW_BLOCK)
    # The rows of a panel lie where they drive each other out of the cache, unless b is one panel wide; several blocks pay for a copy.
    layout = TRANSPOSED if transpose_b else COPIED if blocks > 1 and n > width else IN_PLACE
    scratch = width * k if layout else width
    arrays = [
        (Ref("operand", 0), (a.size,)),
        (Ref("operand", 1), (b.size,)),
        (Ref("operand", 1 if bias is None else bias), (call.operands[1 if bias is None else bias].size,)),
        (Ref("result"), (c.size,)),
        (Ref("scratch"), (1, scratch)),
    ]
    axes = [(1, 0, 0)] * (BATCH_AXES - len(axes)) + axes
    integers = [
        *(size for size, _, _ in axes),
        *(step for _, step, _ in axes),
        *(step for _, _, step in axes),
        m,
        n,
        k,
        *((1, m) if transpose_a else (k, 1)),
        layout,
        -1 if bias is None else 0,
        -(-m // blocks),
    ]
    return launch(f"{__name__}:product", call, arrays, integers, scratch=(scratch, c.dtype), dtype=c.dtype, **sizes)


def _dots_launch(call: Call, m: int, n: int, k: int, bias: int | None, lanes: int) -> Launch:
    """The row of a b^T + bias for a few rows of a. Its sums have another order than those of many rows."""
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("operand", 1 if bias is None else bias), Ref("result")]
    types = [*(call.operands[ref.index] for ref in refs[:3]), call.results[0]]
    arrays = [(ref, (kind.size,)) for ref, kind in zip(refs, types)]
    return launch(f"{__name__}:dots", call, arrays, [m, n, k, int(bias is not None)], dtype=types[3].dtype, lanes=lanes)


def dots(dtype: str, lanes: int) -> NumbaKernel:
    """c = a b^T + bias, a and b row by row. A grain is a few columns of all rows."""
    from tapeprop.targets.cpu.dots import row_dots

    several, one = COLUMNS, 1

    def body(a, b, bias, c, m, n, k, has_bias, worker, workers):
        grains = (n + several - 1) // several
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            j = grain * several
            for i in range(m):
                if j + several <= n:
                    row_dots(lanes, several, a, i * k, b, j * k, k, bias, j, has_bias, c, i * n + j)
                else:
                    for last in range(j, n):
                        row_dots(lanes, one, a, i * k, b, last * k, k, bias, last, has_bias, c, i * n + last)

    return NumbaKernel(body, [(name, dtype, 1) for name in ("a", "b", "bias", "c")], ("m", "n", "k", "has_bias"))


def product(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """c = op(a) op(b) + bias over a batch of matrices; everything flat.

    A grain is a block of rows of one panel of columns. A panel of a transposed b, or one for several blocks, is laid out anew in the
    worker's scratch, one row after another.
    """
    from tapeprop.targets.cpu.gemm import ROWS, STRIDED, gemm_panel
    from tapeprop.targets.cpu.panels import stage_plane, transpose_panel

    width, strided, rows_kind, in_place, copied = 2 * lanes, STRIDED, ROWS, IN_PLACE, COPIED

    def body(
        a, b, bias, c, scratch, n0, n1, n2, n3, a0, a1, a2, a3, b0, b1, b2, b3,
        m, n, k, a_m, a_k, layout, bias_m, block, worker, workers,
    ):  # fmt: skip
        packed = scratch[worker]
        panels = (n + width - 1) // width
        blocks = (m + block - 1) // block
        grains = n0 * n1 * n2 * n3 * panels * blocks
        last = -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            panel = grain // blocks
            matrix = panel // panels
            i, j = (grain - panel * blocks) * block, (panel - matrix * panels) * width
            a_start, b_start = i * a_m, 0
            if matrix:
                i3, rest = matrix % n3, matrix // n3
                i2, rest = rest % n2, rest // n2
                i1, i0 = rest % n1, rest // n1
                a_start += i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3
                b_start += i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3
            c_start = matrix * m * n + i * n + j
            rows, columns = min(block, m - i), min(width, n - j)
            right, b_k = b, n
            if layout == in_place:
                b_start += j
            else:
                if panel != last and layout == copied:
                    stage_plane(lanes, b, b_start + j, n, 1, 0, k, 0, columns, packed, 0, k, width)
                elif panel != last:
                    source = b_start + j * k
                    transpose_panel(lanes, b, source, k, min(lanes, columns), k, packed, 0, width)
                    if columns > lanes:
                        transpose_panel(lanes, b, source + lanes * k, k, columns - lanes, k, packed, lanes, width)
                right, b_start, b_k, last = packed, 0, width, panel
            gemm_panel(
                lanes, height, strided, rows_kind, rows, columns, k, a, a_start, a_m, a_k, right, b_start, b_k, a, 0,
                bias, j, bias_m, c, c_start, n,
            )  # fmt: skip

    arrays = [(name, dtype, 1) for name in ("a", "b", "bias", "c")]
    sizes = [f"{name}{axis}" for name in "nab" for axis in range(BATCH_AXES)]
    integers = (*sizes, "m", "n", "k", "a_m", "a_k", "layout", "bias_m", "block")
    return NumbaKernel(body, [*arrays, ("scratch", dtype, 2)], integers)
