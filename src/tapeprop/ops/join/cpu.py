"""CPU kernels of concat and place; slice is the strided copy of ops/shape/cpu.py."""

from __future__ import annotations

from tapeprop.targets.cpu.kernel import NumbaKernel

GRAIN = 1024  # elements of one operand that one worker moves at a time

PLACE = (*(f"{what}{axis}" for what in ("length", "start", "size", "step") for axis in range(6)), "grain")


def concat(dtype: str, count: int) -> NumbaKernel:
    """y (rows, columns) = the `count` arrays (rows, columns of each) side by side."""
    grain, final = GRAIN, count + 1

    def body(y, *rest):
        parts, worker, workers = rest[:count], rest[count], rest[final]
        left = 0
        for k in range(count):
            part = parts[k]
            width = part.shape[1]
            total = part.size
            grains = (total + grain - 1) // grain
            at = grains * worker // workers * grain
            last = min(total, grains * (worker + 1) // workers * grain)
            while at < last:
                row = at // width
                begin = at - row * width
                end = min(width, begin + last - at)
                target, source = y[row, left + begin : left + end], part[row, begin:end]
                for i in range(target.size):
                    target[i] = source[i]
                at += end - begin
            left += width

    return NumbaKernel(body, arrays=((dtype, 2),) * (count + 1))


def place(dtype: str, value: float) -> NumbaKernel:
    """y = `value` but for the elements of x, which stand at start + i * step in each of six axes; both flat."""

    def body(y, x, *plan):
        lengths, starts, sizes, steps = plan[0:6], plan[6:12], plan[12:18], plan[18:24]
        grain, worker, workers = plan[24:27]
        n, start, size, step = lengths[5], starts[5], sizes[5], steps[5]
        blocks = (n + grain - 1) // grain
        grains = y.size // n * blocks
        for index in range(grains * worker // workers, grains * (worker + 1) // workers):
            row = index // blocks
            begin = (index - row * blocks) * grain
            width = min(grain, n - begin)
            inside, source_row, rows, rest = True, 0, 1, row
            for k in range(5):
                axis = 4 - k
                if lengths[axis] > 1:
                    above = rest // lengths[axis]
                    distance = rest - above * lengths[axis] - starts[axis]
                    rest = above
                    at = distance // steps[axis] if steps[axis] != 1 else distance
                    inside &= at * steps[axis] == distance and 0 <= at < sizes[axis]
                    source_row += at * rows
                    rows *= sizes[axis]
            target = y[row * n + begin : row * n + begin + width]
            if not inside:
                for i in range(width):
                    target[i] = value
            elif step == 1:
                first = min(max(start - begin, 0), width)
                last = min(max(start + size - begin, first), width)
                for i in range(first):
                    target[i] = value
                shift = source_row * size + begin - start
                middle, source = target[first:last], x[shift + first : shift + last]
                for i in range(middle.size):
                    middle[i] = source[i]
                for i in range(last, width):
                    target[i] = value
            else:  # the row is not cut: a grain is as long as the axis
                for i in range(width):
                    target[i] = value
                source = x[source_row * size : source_row * size + size]
                for i in range(size):
                    target[start + i * step] = source[i]

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=PLACE)
