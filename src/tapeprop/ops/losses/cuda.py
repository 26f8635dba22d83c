"""CUDA kernels of the losses on (N, C), flat: a row is a thread's, or with team=True a block's.

Sums over the classes of a row run in float64, as on the CPU: a small loss is the difference of numbers near 1. Labels are
class numbers, or with dense=True weights of the classes. A number outside 0 .. C - 1 is reported, its row loss is NaN.
"""

from __future__ import annotations

import numpy as np

from tapeprop.ops.softmax.cuda import below
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import (
    BLOCK_SLOTS,
    FLOAT,
    block_max,
    block_sum,
    cuda,
    divider,
    exp,
    larger,
    log,
    report,
)  # fmt: skip

INTEGERS = ("samples", "classes", "code")  # code: what is reported for a label out of range
WEIGHTED = (*INTEGERS, "smoothing_bits", "ignoring", "ignored")  # ignoring: whether the label `ignored` is left out


def _labels(dtype: str, dense: bool) -> tuple[str, str, int]:
    return ("labels", dtype if dense else "int64", 1)


def softmax_cross_entropy(dtype: str, dense: bool, team: bool) -> CudaKernel:
    """Row losses, and the gradient of their mean by the logits. A thread reads the logits where it writes the gradient."""
    kind, infinity, nan, one = FLOAT[dtype], FLOAT[dtype](np.inf), FLOAT[dtype](np.nan), FLOAT[dtype](1)
    zero = np.float64(0)

    def body(logits, labels, losses, dlogits, samples, classes, code, control, number):
        tops = cuda.shared.array(BLOCK_SLOTS, kind)
        sums = cuda.shared.array(BLOCK_SLOTS, np.float64)
        share = kind(np.float64(1) / np.float64(samples))
        sample, lane, step = cuda.grid(1), 0, 1
        if team:
            sample, lane, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        while sample < samples:
            start = np.int64(sample) * classes
            top = -infinity
            i = lane
            while i < classes:
                top = larger(top, logits[start + i])
                i += step
            if team:
                top = block_max(top, tops)
            total, weight, loss = zero, zero, zero
            i = lane
            while i < classes:
                total += np.float64(exp(below(logits[start + i], top)))
                if dense:
                    weight += np.float64(labels[start + i])
                i += step
            if team:
                total = block_sum(total, sums)
            if dense and team:
                weight = block_sum(weight, sums)
            divisor, whole = kind(total), kind(weight)
            i = lane
            if dense:
                shift = log(total)
                while i < classes:
                    distance, wanted = below(logits[start + i], top), labels[start + i]
                    if wanted != 0:
                        loss += np.float64(wanted) * (shift - np.float64(distance))
                    dlogits[start + i] = (exp(distance) / divisor * whole - wanted) * share
                    i += step
                if team:
                    loss = block_sum(loss, sums)
                if lane == 0:
                    losses[sample] = loss
            else:
                label = labels[sample]
                if lane == 0 and (label < 0 or label >= classes):
                    losses[sample] = nan
                    report(control, number, code)
                while i < classes:
                    distance = below(logits[start + i], top)
                    power = exp(distance) / divisor
                    if i == label:
                        losses[sample] = log(total) - np.float64(distance)
                        power -= one  # 1 / N taken off p / N would round twice
                    dlogits[start + i] = power * share
                    i += step
            sample += cuda.gridDim.x if team else cuda.gridsize(1)

    arrays = [("logits", dtype, 1), _labels(dtype, dense), ("losses", dtype, 1), ("dlogits", dtype, 1)]
    return CudaKernel(body, arrays, INTEGERS, reports=True)


def partial_sums(dtype: str) -> CudaKernel:
    """sums[b] = the float64 sum of what block b strides over."""

    def body(values, sums):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        total = np.float64(0)
        i = cuda.grid(1)
        while i < values.size:
            total += np.float64(values[i])
            i += cuda.gridsize(1)
        total = block_sum(total, shared)
        if cuda.threadIdx.x == 0:
            sums[cuda.blockIdx.x] = total

    return CudaKernel(body, [("values", dtype, 1), ("sums", "float64", 1)])


def mean_loss(dtype: str, to: str) -> CudaKernel:
    """The float64 sum of row losses, or of their partial sums, over `samples`. One block."""

    def body(values, mean, samples):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        total = np.float64(0)
        i = cuda.threadIdx.x
        while i < values.size:
            total += np.float64(values[i])
            i += cuda.blockDim.x
        total = block_sum(total, shared)
        if cuda.threadIdx.x == 0:
            mean[0] = total / np.float64(samples)

    return CudaKernel(body, [("values", dtype, 1), ("mean", to, 1)], ["samples"])


def mean_loss_grad(dtype: str) -> CudaKernel:
    """The gradient of the mean by each row loss."""
    kind = FLOAT[dtype]

    def body(g, rows):
        i = cuda.grid(1)
        while i < rows.size:
            rows[i] = g[0] / kind(rows.size)
            i += cuda.gridsize(1)

    return CudaKernel(body, [("g", dtype, 1), ("rows", dtype, 1)])


def nll(dtype: str, dense: bool, team: bool) -> CudaKernel:
    """Row losses from log-probabilities; a class number needs no team."""
    nan, zero = FLOAT[dtype](np.nan), np.float64(0)

    def whole(logs, labels, losses, samples, classes, code, control, number):
        sample = cuda.grid(1)
        while sample < samples:
            label = labels[sample]
            if label >= 0 and label < classes:
                losses[sample] = -logs[sample * classes + label]
            else:
                losses[sample] = nan
                report(control, number, code)
            sample += cuda.gridsize(1)

    def weighted(logs, labels, losses, samples, classes, code, control, number):
        sums = cuda.shared.array(BLOCK_SLOTS, np.float64)
        sample, lane, step = cuda.grid(1), 0, 1
        if team:
            sample, lane, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        while sample < samples:
            start = np.int64(sample) * classes
            loss = zero
            i = lane
            while i < classes:
                wanted = labels[start + i]
                if wanted != 0:
                    loss -= np.float64(wanted) * np.float64(logs[start + i])
                i += step
            if team:
                loss = block_sum(loss, sums)
            if lane == 0:
                losses[sample] = loss
            sample += cuda.gridDim.x if team else cuda.gridsize(1)

    arrays = [("logs", dtype, 1), _labels(dtype, dense), ("losses", dtype, 1)]
    return CudaKernel(weighted if dense else whole, arrays, INTEGERS, reports=True)


def nll_grad(dtype: str, dense: bool, wide: bool) -> CudaKernel:
    """The gradient of the row losses by the log-probabilities."""
    zero, quotient = FLOAT[dtype](0), divider(wide)

    def body(labels, g, made, samples, classes, code, inverse, control, number):
        i = cuda.grid(1)
        while i < made.size:
            sample = quotient(i, classes, inverse)
            if dense:
                made[i] = -labels[i] * g[sample]
            else:
                label, place = labels[sample], i - sample * classes
                made[i] = -g[sample] if label == place else zero
                if place == 0 and (label < 0 or label >= classes):
                    report(control, number, code)
            i += cuda.gridsize(1)

    arrays = [_labels(dtype, dense), ("g", dtype, 1), ("made", dtype, 1)]
    return CudaKernel(body, arrays, (*INTEGERS, "inverse"), reports=True)


# ---- class numbers with weights, smoothing and a label to leave out


def sums_of_weights(dtype: str) -> CudaKernel:
    """sums[b] = the float64 sum of the weights of the labels that block b strides over."""

    def body(labels, weights, sums, code, ignoring, ignored, control, number):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        total = np.float64(0)
        i = cuda.grid(1)
        while i < labels.size:
            label = labels[i]
            if ignoring == 0 or label != ignored:
                if label >= 0 and label < weights.size:
                    total += np.float64(weights[label])
                else:
                    report(control, number, code)
            i += cuda.gridsize(1)
        total = block_sum(total, shared)
        if cuda.threadIdx.x == 0:
            sums[cuda.blockIdx.x] = total

    arrays = [("labels", "int64", 1), ("weights", dtype, 1), ("sums", "float64", 1)]
    return CudaKernel(body, arrays, ["code", "ignoring", "ignored"], reports=True)


def scaled_class_weights(dtype: str) -> CudaKernel:
    """made = weights times `samples` over the sum of the sums. One block."""
    kind = FLOAT[dtype]

    def body(weights, sums, made, samples):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        total = np.float64(0)
        i = cuda.threadIdx.x
        while i < sums.size:
            total += sums[i]
            i += cuda.blockDim.x
        factor = np.float64(samples) / block_sum(total, shared)
        i = cuda.threadIdx.x
        while i < weights.size:
            made[i] = kind(np.float64(weights[i]) * factor)
            i += cuda.blockDim.x

    return CudaKernel(body, [("weights", dtype, 1), ("sums", "float64", 1), ("made", dtype, 1)], ["samples"])


def weighted_cross_entropy(dtype: str, team: bool) -> CudaKernel:
    """As `softmax_cross_entropy`, of labels that stand for the weights of all classes: see `weighted`."""
    kind, infinity, nan = FLOAT[dtype], FLOAT[dtype](np.inf), FLOAT[dtype](np.nan)
    zero, one, nothing = np.float64(0), np.float64(1), FLOAT[dtype](0)

    def body(
        logits, labels, weights, losses, dlogits, samples, classes, code, smoothing_bits, ignoring, ignored,
        control, number,
    ):  # fmt: skip
        tops = cuda.shared.array(BLOCK_SLOTS, kind)
        sums = cuda.shared.array(BLOCK_SLOTS, np.float64)
        smoothing = np.int64(smoothing_bits).view(np.float64)
        own, spread, share = one - smoothing, smoothing / np.float64(classes), kind(one / np.float64(samples))
        narrow = kind(spread)
        sample, lane, step = cuda.grid(1), 0, 1
        if team:
            sample, lane, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        while sample < samples:
            start, label = np.int64(sample) * classes, labels[sample]
            left_out = ignoring != 0 and label == ignored
            wrong = not left_out and (label < 0 or label >= classes)
            top = -infinity
            i = lane
            while i < classes:
                top = larger(top, logits[start + i])
                i += step
            if team:
                top = block_max(top, tops)
            total, everything = zero, zero
            i = lane
            while i < classes:
                total += np.float64(exp(below(logits[start + i], top)))
                everything += np.float64(weights[i])
                i += step
            if team:
                total = block_sum(total, sums)
                everything = block_sum(everything, sums)
            weight = zero
            if not left_out and not wrong:
                weight = own * np.float64(weights[label])
            divisor, whole, shift = kind(total), kind(weight + spread * everything), log(total)
            loss = zero
            i = lane
            while i < classes:
                distance = below(logits[start + i], top)
                wanted, mine = spread * np.float64(weights[i]), nothing
                if i == label:
                    wanted, mine = wanted + weight, kind(weight)
                if wanted != 0:
                    loss += wanted * (shift - np.float64(distance))
                slope = (exp(distance) / divisor * whole - mine - narrow * weights[i]) * share
                if left_out:
                    slope = nothing
                dlogits[start + i] = nan if wrong else slope
                i += step
            if team:
                loss = block_sum(loss, sums)
            if lane == 0:
                if left_out:
                    losses[sample] = nothing * weights[0]
                elif wrong:
                    losses[sample] = nan
                    report(control, number, code)
                else:
                    losses[sample] = loss
            sample += cuda.gridDim.x if team else cuda.gridsize(1)

    arrays = [
        ("logits", dtype, 1), ("labels", "int64", 1), ("weights", dtype, 1), ("losses", dtype, 1), ("dlogits", dtype, 1),
    ]  # fmt: skip
    return CudaKernel(body, arrays, WEIGHTED, reports=True)


def weighted_nll(dtype: str, team: bool) -> CudaKernel:
    """Row losses from log-probabilities, of labels that stand for the weights of all classes."""
    nan, zero, one, nothing = FLOAT[dtype](np.nan), np.float64(0), np.float64(1), FLOAT[dtype](0)

    def body(logs, labels, weights, losses, samples, classes, code, smoothing_bits, ignoring, ignored, control, number):
        sums = cuda.shared.array(BLOCK_SLOTS, np.float64)
        smoothing = np.int64(smoothing_bits).view(np.float64)
        own, spread = one - smoothing, smoothing / np.float64(classes)
        sample, lane, step = cuda.grid(1), 0, 1
        if team:
            sample, lane, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        while sample < samples:
            start, label = np.int64(sample) * classes, labels[sample]
            loss = zero
            i = lane
            while i < classes:
                wanted = spread * np.float64(weights[i])
                if i == label:
                    wanted += own * np.float64(weights[i])
                if wanted != 0:
                    loss -= wanted * np.float64(logs[start + i])
                i += step
            if team:
                loss = block_sum(loss, sums)
            if lane == 0:
                if ignoring != 0 and label == ignored:
                    losses[sample] = nothing * weights[0]
                elif label < 0 or label >= classes:
                    losses[sample] = nan
                    report(control, number, code)
                else:
                    losses[sample] = loss
            sample += cuda.gridDim.x if team else cuda.gridsize(1)

    arrays = [("logs", dtype, 1), ("labels", "int64", 1), ("weights", dtype, 1), ("losses", dtype, 1)]
    return CudaKernel(body, arrays, WEIGHTED, reports=True)


def weighted_nll_grad(dtype: str, wide: bool) -> CudaKernel:
    """The gradient of these row losses by the log-probabilities."""
    kind, nothing, one, quotient = FLOAT[dtype], FLOAT[dtype](0), np.float64(1), divider(wide)

    def body(
        labels, g, weights, made, samples, classes, code, smoothing_bits, ignoring, ignored, inverse, control, number
    ):
        smoothing = np.int64(smoothing_bits).view(np.float64)
        own, spread = kind(one - smoothing), kind(smoothing / np.float64(classes))
        i = cuda.grid(1)
        while i < made.size:
            sample = quotient(i, classes, inverse)
            label, place = labels[sample], i - sample * classes
            if ignoring != 0 and label == ignored:
                made[i] = nothing
            else:
                part = (own + spread if label == place else spread) * weights[place]
                made[i] = -part * g[sample] if part != nothing else nothing
                if place == 0 and (label < 0 or label >= classes):
                    report(control, number, code)
            i += cuda.gridsize(1)

    arrays = [("labels", "int64", 1), ("g", dtype, 1), ("weights", dtype, 1), ("made", dtype, 1)]
    return CudaKernel(body, arrays, (*WEIGHTED, "inverse"), reports=True)
