"""Norms: as their operators where ONNX has them in this opset, else in simpler ones."""

from __future__ import annotations

import numpy as np

from tapeprop.interchange.onnx.writers.builder import Builder
from tapeprop.interchange.onnx.writers.patterns import filled_with
from tapeprop.interchange.onnx.writers.reductions import reduced
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step
from tapeprop.ir import Tensor


@writer("batch_norm_inference")
def batch_norm_inference(b: Builder, step: Step, *operands: str) -> str:
    return b.node("BatchNormalization", operands, epsilon=step["epsilon"])


@writer("batch_norm")
def batch_norm(b: Builder, step: Step, x: str, gamma: str, beta: str, mean: str, variance: str) -> tuple[str, ...]:
    """By the batch's own statistics, and all five results: a formula may ask for them, no layer does in inference."""
    given, kept = step.operands[0], step["momentum"]
    axes, column = [0, *range(2, given.ndim)], (given.shape[1], *[1] * (given.ndim - 2))
    means = reduced(b, "ReduceMean", x, axes, True)
    centred = b.node("Sub", [x, means])
    variances = reduced(b, "ReduceMean", b.node("Mul", [centred, centred]), axes, True)
    inverse = _inverse_deviation(b, variances, step["epsilon"])
    scale, shift = (b.reshape(vector, given.shape[1:2], column) for vector in (gamma, beta))
    y = b.node("Add", [b.node("Mul", [b.node("Mul", [centred, inverse]), scale]), shift])
    flat = [b.node("Reshape", [vector, b.ints([-1])]) for vector in (means, inverse, variances)]
    moved = [
        b.node("Add", [b.node("Mul", [old, b.number(kept)]), b.node("Mul", [new, b.number(1 - kept)])])
        for old, new in ((mean, flat[0]), (variance, flat[2]))
    ]
    return y, flat[0], flat[1], *moved


def _inverse_deviation(b: Builder, variance: str, epsilon: float) -> str:
    return b.node("Reciprocal", [b.node("Sqrt", [b.node("Add", [variance, b.number(epsilon)])])])


# ---- what `patterns.row_norm` finds


def _trailing(b: Builder, step: Step, vector: Tensor) -> str:
    """gamma or beta with the axes that are normalised."""
    return b.vector(vector, step.operands[0].shape[step["axis"] :])


@writer("layer_norm")
def layer_norm(b: Builder, step: Step, x: str, *_: str) -> str:
    gamma, beta = step.operands[1:]
    shift = "" if filled_with(beta, 0.0) else _trailing(b, step, beta)
    settings = {"axis": step["axis"], "epsilon": step["epsilon"]}
    return b.node("LayerNormalization", [x, _trailing(b, step, gamma), shift], **settings)


@writer("rms_norm")
def rms_norm(b: Builder, step: Step, x: str, *_: str) -> str:
    settings = {"axis": step["axis"], "epsilon": step["epsilon"]}
    return b.node("RMSNormalization", [x, _trailing(b, step, step.operands[1])], **settings)


def _per_channel(b: Builder, step: Step) -> list[str]:
    channels = step.operands[0].shape[1:2]
    return [b.vector(vector, channels) for vector in step.operands[1:]]


@writer("instance_norm")
def instance_norm(b: Builder, step: Step, x: str, *_: str) -> str:
    return b.node("InstanceNormalization", [x, *_per_channel(b, step)], epsilon=step["epsilon"])


@writer("group_norm")
def group_norm(b: Builder, step: Step, x: str, *_: str) -> str:
    """Before opset 21 as an instance norm of the groups; GroupNormalization had its weights by group then."""
    groups = step["groups"]
    if b.opset >= 21:
        return b.node("GroupNormalization", [x, *_per_channel(b, step)], num_groups=groups, epsilon=step["epsilon"])
    shape = step.operands[0].shape
    rows = b.node("Reshape", [x, b.ints([0, groups, -1])])
    ones, zeros = (b.constant(np.full(groups, number), b.dtype) for number in (1.0, 0.0))
    normal = b.node("InstanceNormalization", [rows, ones, zeros], epsilon=step["epsilon"])
    whole = b.reshape(normal, (shape[0], groups, b.count(shape[1:]) // groups), shape)
    column = (shape[1], *[1] * (len(shape) - 2))
    scale, shift = (b.vector(vector, column) for vector in step.operands[1:])
    return b.node("Add", [b.node("Mul", [whole, scale]), shift])


@writer("row_norm")
def row_norm(b: Builder, step: Step, x: str, *_: str) -> tuple[str, ...]:
    """In simpler operators: what no operator of this opset or dtype does."""
    gamma, beta = step.operands[1:]
    if step["center"]:
        x = b.node("Sub", [x, reduced(b, "ReduceMean", x, [2, 3], True)])
    squares = reduced(b, "ReduceMean", b.node("Mul", [x, x]), [2, 3], True)
    y = b.node("Mul", [x, _inverse_deviation(b, squares, step["epsilon"])])
    y = b.node("Mul", [y, b.vector(gamma, (1, *gamma.shape, 1))])
    if not filled_with(beta, 0.0):
        y = b.node("Add", [y, b.vector(beta, (1, *beta.shape, 1))])
    return (y,)
