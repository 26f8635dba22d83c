"""CPU kernels of the losses on (N, C), flat: a worker takes whole rows; the mean over rows is one worker's, in their order.

Labels are class numbers, or with dense=True weights of the classes. A number outside 0 .. C - 1 is reported, its row
becomes NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cpu.kernel import NumbaKernel

INTEGERS = ("samples", "classes", "code")  # code: what is reported for a label out of range
WEIGHTED = (*INTEGERS, "smoothing_bits", "ignoring", "ignored")  # ignoring: whether the label `ignored` is left out


def _labels(dtype: str, dense: bool) -> tuple[str, str, int]:
    return ("labels", dtype if dense else "int64", 1)


def softmax_cross_entropy(dtype: str, dense: bool) -> NumbaKernel:
    """Row losses, and the gradient of their mean by the logits."""
    from tapeprop.targets.cpu import block_math, intrinsics

    max_block: Any = block_math.max_block
    exp_block: Any = block_math.exp_block
    sum_rows: Any = block_math.sum_rows
    exp_sum: Any = block_math.exp_sum
    log_of: Any = block_math.log_of
    report: Any = intrinsics.report
    kind: Any = np.dtype(dtype).type

    def body(logits, labels, losses, dlogits, samples, classes, code, control, number, worker, workers):
        share = kind(1.0 / np.float64(samples))
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            start = sample * classes
            top = max_block(logits, start, classes)
            given, made = logits[start : start + classes], dlogits[start : start + classes]
            for i in range(classes):
                made[i] = kind(0.0) if (top == np.inf) & (given[i] == np.inf) else given[i] - top
            shift = log_of(exp_sum(dlogits, start, classes))
            if dense:
                weights = labels[sample * classes : (sample + 1) * classes]
                loss, weight = 0.0, 0.0
                for i in range(classes):
                    wanted = np.float64(weights[i])
                    weight += wanted
                    if wanted != 0.0:
                        loss += wanted * (shift - np.float64(made[i]))
                losses[sample] = loss
                exp_block(dlogits, start, classes)
                total, whole = kind(sum_rows(dlogits, start, 1, classes, classes)), kind(weight)
                for i in range(classes):
                    made[i] = (made[i] / total * whole - weights[i]) * share
            else:
                label = labels[sample]
                inside = (label >= 0) & (label < classes)
                losses[sample] = shift - np.float64(made[label]) if inside else np.nan
                exp_block(dlogits, start, classes)
                total = kind(sum_rows(dlogits, start, 1, classes, classes))
                power = made[label] if inside else kind(0.0)
                for i in range(classes):
                    made[i] = made[i] / total * share
                if inside:
                    made[label] = (power / total - kind(1.0)) * share  # 1 / N taken off p / N would round twice
                else:
                    report(control, number, code)

    arrays = [("logits", dtype, 1), _labels(dtype, dense), ("losses", dtype, 1), ("dlogits", dtype, 1)]
    return NumbaKernel(body, arrays, INTEGERS, reports=True)


def mean_loss(dtype: str) -> NumbaKernel:
    """The mean of the row losses."""
    from tapeprop.targets.cpu import block_math

    sum_rows: Any = block_math.sum_rows

    def body(losses, mean, worker, workers):
        if worker == 0:
            mean[0] = sum_rows(losses, 0, 1, 0, losses.size) / np.float64(losses.size)

    return NumbaKernel(body, [("losses", dtype, 1), ("mean", dtype, 1)])


def mean_loss_grad(dtype: str) -> NumbaKernel:
    """The gradient of the mean by each row loss."""

    def body(g, rows, worker, workers):
        share = g[0] / rows.size
        if worker == 0:
            for i in range(rows.size):
                rows[i] = share

    return NumbaKernel(body, [("g", dtype, 1), ("rows", dtype, 1)])


def nll(dtype: str, dense: bool) -> NumbaKernel:
    """Row losses from log-probabilities."""
    from tapeprop.targets.cpu import intrinsics

    report: Any = intrinsics.report

    def body(logs, labels, losses, samples, classes, code, control, number, worker, workers):
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            given = logs[sample * classes : (sample + 1) * classes]
            if dense:
                weights = labels[sample * classes : (sample + 1) * classes]
                loss = 0.0
                for i in range(classes):
                    wanted = np.float64(weights[i])
                    if wanted != 0.0:
                        loss -= wanted * np.float64(given[i])
                losses[sample] = loss
            else:
                label = labels[sample]
                inside = (label >= 0) & (label < classes)
                losses[sample] = -given[label] if inside else np.nan
                if not inside:
                    report(control, number, code)

    arrays = [("logs", dtype, 1), _labels(dtype, dense), ("losses", dtype, 1)]
    return NumbaKernel(body, arrays, INTEGERS, reports=True)


def nll_grad(dtype: str, dense: bool) -> NumbaKernel:
    """The gradient of the row losses by the log-probabilities."""
    from tapeprop.targets.cpu import intrinsics

    report: Any = intrinsics.report

    def body(labels, g, made, samples, classes, code, control, number, worker, workers):
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            row = made[sample * classes : (sample + 1) * classes]
            if dense:
                weights = labels[sample * classes : (sample + 1) * classes]
                for i in range(classes):
                    row[i] = -weights[i] * g[sample]
            else:
                for i in range(classes):
                    row[i] = 0.0
                label = labels[sample]
                if (label >= 0) & (label < classes):
                    row[label] = -g[sample]
                else:
                    report(control, number, code)

    return NumbaKernel(body, [_labels(dtype, dense), ("g", dtype, 1), ("made", dtype, 1)], INTEGERS, reports=True)


# ---- class numbers with weights, smoothing and a label to leave out


def scaled_class_weights(dtype: str) -> NumbaKernel:
    """weights times N over the sum of the weights of the labels, added up in float64 in the order of the samples."""
    from tapeprop.targets.cpu import intrinsics

    report: Any = intrinsics.report
    kind: Any = np.dtype(dtype).type

    def body(labels, weights, made, code, ignoring, ignored, control, number, worker, workers):
        if worker == 0:
            total = 0.0
            for sample in range(labels.size):
                label = labels[sample]
                if (ignoring == 0) | (label != ignored):
                    if (label >= 0) & (label < weights.size):
                        total += np.float64(weights[label])
                    else:
                        report(control, number, code)
            factor = np.float64(labels.size) / total
            for i in range(weights.size):
                made[i] = kind(np.float64(weights[i]) * factor)

    arrays = [("labels", "int64", 1), ("weights", dtype, 1), ("made", dtype, 1)]
    return NumbaKernel(body, arrays, ("code", "ignoring", "ignored"), reports=True)


def weighted_cross_entropy(dtype: str) -> NumbaKernel:
    """As `softmax_cross_entropy`, of labels that stand for the weights of all classes: see `weighted`."""
    from tapeprop.targets.cpu import block_math, intrinsics

    max_block: Any = block_math.max_block
    exp_block: Any = block_math.exp_block
    sum_rows: Any = block_math.sum_rows
    exp_sum: Any = block_math.exp_sum
    log_of: Any = block_math.log_of
    from_bits: Any = block_math.from_bits
    report: Any = intrinsics.report
    kind: Any = np.dtype(dtype).type

    def body(
        logits, labels, weights, losses, dlogits, samples, classes, code, smoothing_bits, ignoring, ignored,
        control, number, worker, workers,
    ):  # fmt: skip
        own, spread = 1.0 - from_bits(smoothing_bits), from_bits(smoothing_bits) / np.float64(classes)
        everything, narrow = spread * sum_rows(weights, 0, 1, classes, classes), kind(spread)
        share = kind(1.0 / np.float64(samples))
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            start, label = sample * classes, labels[sample]
            given, made = logits[start : start + classes], dlogits[start : start + classes]
            if (ignoring != 0) & (label == ignored):
                losses[sample] = kind(0.0) * weights[0]
                made[:] = kind(0.0)
                continue
            if (label < 0) | (label >= classes):
                losses[sample] = np.nan
                made[:] = kind(np.nan)
                report(control, number, code)
                continue
            top = max_block(logits, start, classes)
            for i in range(classes):
                made[i] = kind(0.0) if (top == np.inf) & (given[i] == np.inf) else given[i] - top
            shift, weight = log_of(exp_sum(dlogits, start, classes)), own * np.float64(weights[label])
            loss = weight * (shift - np.float64(made[label])) if weight != 0.0 else 0.0
            if spread != 0.0:
                for i in range(classes):
                    wanted = np.float64(weights[i])
                    if wanted != 0.0:
                        loss += spread * wanted * (shift - np.float64(made[i]))
            losses[sample] = loss
            exp_block(dlogits, start, classes)
            total, whole = kind(sum_rows(dlogits, start, 1, classes, classes)), kind(weight + everything)
            rest = made[label] / total * whole - kind(weight)
            for i in range(classes):
                made[i] = (made[i] / total * whole - narrow * weights[i]) * share
            made[label] = (rest - narrow * weights[label]) * share

    arrays = [
        ("logits", dtype, 1), ("labels", "int64", 1), ("weights", dtype, 1), ("losses", dtype, 1), ("dlogits", dtype, 1),
    ]  # fmt: skip
    return NumbaKernel(body, arrays, WEIGHTED, reports=True)


def weighted_nll(dtype: str) -> NumbaKernel:
    """Row losses from log-probabilities, of labels that stand for the weights of all classes."""
    from tapeprop.targets.cpu import block_math, intrinsics

    from_bits: Any = block_math.from_bits
    report: Any = intrinsics.report
    kind: Any = np.dtype(dtype).type

    def body(
        logs, labels, weights, losses, samples, classes, code, smoothing_bits, ignoring, ignored,
        control, number, worker, workers,
    ):  # fmt: skip
        own, spread = 1.0 - from_bits(smoothing_bits), from_bits(smoothing_bits) / np.float64(classes)
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            given, label = logs[sample * classes : (sample + 1) * classes], labels[sample]
            if (ignoring != 0) & (label == ignored):
                losses[sample] = kind(0.0) * weights[0]
                continue
            if (label < 0) | (label >= classes):
                losses[sample] = np.nan
                report(control, number, code)
                continue
            weight, loss = own * np.float64(weights[label]), 0.0
            if weight != 0.0:
                loss = -weight * np.float64(given[label])
            if spread != 0.0:
                for i in range(classes):
                    wanted = np.float64(weights[i])
                    if wanted != 0.0:
                        loss -= spread * wanted * np.float64(given[i])
            losses[sample] = loss

    arrays = [("logs", dtype, 1), ("labels", "int64", 1), ("weights", dtype, 1), ("losses", dtype, 1)]
    return NumbaKernel(body, arrays, WEIGHTED, reports=True)


def weighted_nll_grad(dtype: str) -> NumbaKernel:
    """The gradient of these row losses by the log-probabilities."""
    from tapeprop.targets.cpu import block_math, intrinsics

    from_bits: Any = block_math.from_bits
    report: Any = intrinsics.report
    kind: Any = np.dtype(dtype).type

    def body(
        labels, g, weights, made, samples, classes, code, smoothing_bits, ignoring, ignored,
        control, number, worker, workers,
    ):  # fmt: skip
        own = kind(1.0 - from_bits(smoothing_bits))
        spread = kind(from_bits(smoothing_bits) / np.float64(classes))
        for sample in range(samples * worker // workers, samples * (worker + 1) // workers):
            row, label = made[sample * classes : (sample + 1) * classes], labels[sample]
            if (ignoring != 0) & (label == ignored):
                row[:] = kind(0.0)
                continue
            for i in range(classes):
                part = (own + spread if i == label else spread) * weights[i]
                row[i] = -part * g[sample] if part != kind(0.0) else kind(0.0)
            if (label < 0) | (label >= classes):
                report(control, number, code)

    arrays = [("labels", "int64", 1), ("g", dtype, 1), ("weights", dtype, 1), ("made", dtype, 1)]
    return NumbaKernel(body, arrays, WEIGHTED, reports=True)
