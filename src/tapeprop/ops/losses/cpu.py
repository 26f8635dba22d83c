"""CPU kernels of the losses on (N, C), flat: a worker takes whole rows; the mean over rows is one worker's, in their order.

Labels are class numbers, or with dense=True weights of the classes. A number outside 0 .. C - 1 is reported, its row
becomes NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cpu.kernel import NumbaKernel

INTEGERS = ("samples", "classes", "code")  # code: what is reported for a label out of range


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
