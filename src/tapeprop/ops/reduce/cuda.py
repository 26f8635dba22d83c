"""The CUDA kernel of all reductions.

The operand is read as on the CPU: (k0, r0, k1, r1, k2, r2, inner), kept and reduced axes in turn, `inner` kept. A block takes a
tile of `width` neighbouring elements of the result, `lanes` threads each: a thread joins every lanes-th of its element's terms in
four chains, and the lanes are joined by a tree in shared memory. Where tiles are few and terms many, the terms are cut into
parts, a block each, whose results lie in scratch: (parts, outputs), which is reduced once more.

Sums run in float64 whatever the dtype: a float32 sum is rounded once, at its end.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, device, divider, larger, smaller

INTEGERS = (
    "outputs", "count", "width", "lanes", "bits", "terms", "length", "divisor", "r0", "tiles", "per_tile",
    "inner", "per_inner", "k1", "per_k1", "r1", "per_r1", "k2", "per_k2", "r2", "per_r2",
)  # fmt: skip


def tiles(source: str, to: str, mode: str, even: bool, across: bool, slots: int, wide: bool) -> CudaKernel:
    """y (outputs,), or parts of it (parts, outputs), from x.

    source, to: dtypes of x and y. mode: "total", the sum divided by `divisor`; "squares", the sum of squares, the last row of which
    may be short; "max", "min". even: k0 = r0 = k1 = r1 = 1. across: neighbouring threads take neighbours of the result, and
    not of the terms. slots: threads of a block. wide: x has 2^31 elements or more.

    Integers: `count` pieces, `tiles` of `width` outputs by parts of `length` terms each; 2^bits: `width` if across, else `lanes`;
    per_...: the inverse (`ops.op.inverse`) of what it is named after.
    """
    summed, squared = mode in ("total", "squares"), mode == "squares"
    number = FLOAT["float64" if summed else source]
    target, quotient = FLOAT[to], divider(wide)
    start_value = number({"max": -np.inf, "min": np.inf}.get(mode, 0))
    choose = {"max": larger, "min": smaller}.get(mode, _sum)

    def body(
        x, y, outputs, count, width, lanes, bits, terms, length, divisor, r0, tiles, per_tile,
        inner, per_inner, k1, per_k1, r1, per_r1, k2, per_k2, r2, per_r2,
    ):  # fmt: skip
        shared = cuda.shared.array(slots, number)
        thread = cuda.threadIdx.x
        lane, column = thread & (lanes - 1), thread >> bits
        if across:
            lane, column = thread >> bits, thread & (width - 1)
        slot = lane * width + column
        step2 = r2 * inner
        step1 = k2 * step2
        step0 = k1 * r1 * step1
        block = np.int64(cuda.blockIdx.x)
        while block < count:
            part = quotient(block, tiles, per_tile)
            output = (block - part * tiles) * width + column
            a, b, c, d = start_value, start_value, start_value, start_value
            if output < outputs:
                k = quotient(output, inner, per_inner)
                start = output - k * inner
                if even:
                    start += k * step2
                else:
                    rest = quotient(k, k2, per_k2)
                    c0 = quotient(rest, k1, per_k1)
                    start += (c0 * r0 * k1 + (rest - c0 * k1)) * r1 * step1 + (k - rest * k2) * step2
                i = part * length + lane
                end = min(terms, part * length + length)
                if squared:
                    end = min(end, x.size - start)
                while i + 3 * lanes < end:
                    a = join(a, x[start + offset(i, r1, per_r1, r2, per_r2, inner, step1, step0)])
                    b = join(b, x[start + offset(i + lanes, r1, per_r1, r2, per_r2, inner, step1, step0)])
                    c = join(c, x[start + offset(i + 2 * lanes, r1, per_r1, r2, per_r2, inner, step1, step0)])
                    d = join(d, x[start + offset(i + 3 * lanes, r1, per_r1, r2, per_r2, inner, step1, step0)])
                    i += 4 * lanes
                while i < end:
                    a = join(a, x[start + offset(i, r1, per_r1, r2, per_r2, inner, step1, step0)])
                    i += lanes
            shared[slot] = choose(choose(a, b), choose(c, d))
            half = lanes >> 1
            while half > 0:
                cuda.syncthreads()
                if lane < half:
                    shared[slot] = choose(shared[slot], shared[slot + half * width])
                half >>= 1
            if lane == 0 and output < outputs:
                found = shared[slot]
                if summed:
                    found /= np.float64(divisor)
                y[part * outputs + output] = target(found)
            cuda.syncthreads()  # the next tile writes to other threads' slots
            block += cuda.gridDim.x

    @device
    def join(before, term):
        if summed:
            term = np.float64(term)
        if squared:
            term *= term
        return choose(before, term)

    @device
    def offset(i, r1, per_r1, r2, per_r2, inner, step1, step0):
        if even:
            return i * inner
        rest = quotient(i, r2, per_r2)
        i0 = quotient(rest, r1, per_r1)
        return i0 * step0 + (rest - i0 * r1) * step1 + (i - rest * r2) * inner

    return CudaKernel(body, [("x", source, 1), ("y", to, 1)], INTEGERS)


@device
def _sum(a, b):
    return a + b
