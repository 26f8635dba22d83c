"""The gradient of the gradient of every registered op: right, or refused in words. By the NumPy references, without a kernel.

phi = sum of <w, gradient by each operand>, w random and fixed, is differentiated by the operands and by what flows in, and compared
with central differences along one random direction for each of these, in float64. With step 1e-6 the differences carry about 1e-10 of
the terms that meet in phi. The first gradient is compared likewise, for operands too that no sample lists.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from traced import evaluate

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Input, Tensor, Trace, at_node, recording
from tapeprop.ops import registry
from tapeprop.ops.op import record

pytestmark = pytest.mark.conformance
STEP = 1e-6
CASES = [
    pytest.param(op, sample, id=f"{name}-{sample.attributes.get('label', '')}{number}")
    for name, op in sorted(registry.items())
    for number, sample in enumerate(op.samples())
]
#: Ops that may not refuse; the others are right as well where they do not.
CLOSED = {
    "elementwise", "matmul", "dense", "reduce", "softmax", "softmax_grad", "log_softmax", "log_softmax_grad",
    "conv2d", "conv2d_input_grad", "conv2d_weight_grad", "avg_pool2d", "avg_pool2d_grad", "max_pool2d", "max_pool2d_grad",
    "max_pool2d_pick", "reshape", "transpose", "expand", "copy", "cast", "concat", "slice", "place", "take", "scatter_rows",
    "dropout", "batch_norm", "batch_norm_grad", "row_norm", "row_norm_grad", "softmax_cross_entropy", "nll", "nll_grad",
    "mean_loss", "mean_loss_grad", "weighted_cross_entropy", "weighted_nll", "weighted_nll_grad", "to_lanes", "from_lanes",
    "scalar_block",
}  # fmt: skip


class Leaves:
    """The leaves of a formula and their numbers."""

    def __init__(self) -> None:
        self.values: dict[Tensor, np.ndarray] = {}

    def add(self, array: np.ndarray) -> Tensor:
        leaf = Tensor(array.shape, str(array.dtype), source=Input(len(self.values)))
        self.values[leaf] = array
        return leaf

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        return self.add(rng.uniform(0.5, 1.5, shape))


def check_gradient(results: list[Tensor], weights: list[Tensor], wanted: list[Tensor], leaves: Leaves) -> list[Tensor]:
    """The gradients of phi = sum of <weights, results>, asserted to be its central differences along random directions."""
    rng = np.random.default_rng(1)
    gradients = tp.gradients(results, wanted, weights)

    def phi(values: dict[Tensor, np.ndarray]) -> float:
        return sum(float(np.sum(values[w] * y)) for w, y in zip(weights, evaluate(results, values), strict=True))

    largest = max(float(np.abs(a).sum()) for a in evaluate([*gradients, *results], leaves.values))
    for x, gradient in zip(wanted, evaluate(gradients, leaves.values), strict=True):
        direction = rng.uniform(-1, 1, x.shape)
        sides = [phi({**leaves.values, x: leaves.values[x] + h * direction}) for h in (STEP, -STEP)]
        difference = (sides[0] - sides[1]) / (2 * STEP)
        assert abs(np.sum(gradient * direction) - difference) <= 1e-6 * abs(difference) + 1e-8 * max(1.0, largest)
    return gradients


def check_second_derivative(results: list[Tensor], wanted: list[Tensor], leaves: Leaves) -> None:
    """Asserts that both derivatives are right: the second by `wanted`, and by what flows into `results`."""
    rng = np.random.default_rng(2)
    flows = [leaves.draw(rng, y.shape) for y in results]
    slopes = check_gradient(results, flows, wanted, leaves)
    check_gradient(slopes, [leaves.draw(rng, x.shape) for x in wanted], [*wanted, *flows], leaves)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_second_derivative_is_right_or_refused(op, sample):
    leaves = Leaves()
    operands = [leaves.add(np.array(a, order="C")) for a in sample.operands(np.random.default_rng(0))]
    floating = [k for k, x in enumerate(operands) if x.dtype == "float64"]
    wanted = [operands[k] for k in (sample.gradient or floating) if k in floating]
    if not wanted or op.name == "stop_gradient":
        return
    refusal = ""
    try:
        with recording(Trace("float64", True)), at_node("mine"):
            results = [y for y in record(op, operands, sample.attributes) if y.dtype == "float64"]
        check_second_derivative(results, wanted, leaves)
    except GraphError as error:
        refusal = str(error)
    assert not (refusal and op.name in CLOSED), refusal
    if op.in_python:  # what is named there is the layer
        assert re.search(r"Cube: backward\(\) is Python, .* write the layer in tapeprop.ops", refusal)
    else:
        assert re.fullmatch(rf"(node 'mine': {op.name} has no gradient; .* write .*)?", refusal)


@pytest.mark.parametrize("op", registry.values(), ids=list(registry))
def test_gradients_keep_float32_where_no_trace_says_so(op):
    sample = op.samples()[0]
    arrays = [np.asarray(a) for a in sample.operands(np.random.default_rng(0))]
    operands = [Tensor(a.shape, "float32" if a.dtype == np.float64 else str(a.dtype), source=Input(0)) for a in arrays]
    wanted = [operands[k] for k in sample.gradient if operands[k].dtype == "float32"]
    attributes = {**sample.attributes, **({"dtype": "float32"} if op.name in ("elementwise", "cast") else {})}
    if op.fixed_float64 or not wanted:
        return
    slopes = tp.gradients([y for y in record(op, operands, attributes) if y.dtype != "int64"], wanted)
    for slope in [*slopes, *tp.gradients(slopes, wanted)]:
        assert slope.dtype == "float32"


def test_the_list_names_ops_that_there_are():
    assert set(registry) >= CLOSED


# ---- formulas with attributes, and formulas of several ops

VARIANTS = [
    ("leaky_relu", {"alpha": 0.3}), ("leaky_relu", {"alpha": -0.5}), ("elu", {"alpha": 0.5}), ("elu", {"alpha": -0.5}),
    ("gelu", {"approximate": True}), ("clip", {"low": -1.0, "high": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attributes"), VARIANTS)
def test_formulas_with_other_attributes(name, attributes):
    leaves = Leaves()
    x = leaves.add(np.random.default_rng(0).uniform(-4, 4, (5, 7)))
    check_second_derivative([getattr(ops, name)(x, **attributes)], [x], leaves)


def normed(x, gamma, beta):
    return ops.batch_norm(x, gamma, beta, np.zeros(3), np.ones(3))[0]


COMPOSITIONS = {
    "mse": (ops.mse, [(5, 3), (5, 3)]),
    "mae": (ops.mae, [(5, 3), (5, 3)]),
    "hinge": (ops.hinge, [(5, 3), (5, 3)]),
    "huber": (lambda p, t: ops.huber(p, t, 0.5), [(5, 3), (5, 3)]),
    "binary_cross_entropy": (ops.binary_cross_entropy, [(5, 3), (5, 3)]),
    "kl_divergence": (lambda q, p: ops.kl_divergence(ops.softmax(q), ops.softmax(p)), [(5, 3), (5, 3)]),
    "softmax_cross_entropy": (lambda z, y: ops.softmax_cross_entropy(ops.tanh(z), ops.softmax(y)), [(5, 3), (5, 3)]),
    "weighted classes": (
        lambda z: ops.softmax_cross_entropy(ops.tanh(z), np.array([0, 2, 1, -1, 0]), [0.5, 2, 1], 0.1, -1),
        [(5, 3)],
    ),
    "weighted one-hot": (
        lambda z, y: ops.softmax_cross_entropy(ops.tanh(z), ops.softmax(y), [0.5, 2, 1], 0.1),
        [(5, 3), (5, 3)],
    ),
    "pos_weight": (lambda p, t: ops.binary_cross_entropy(p, t, [0.5, 2, 1]), [(5, 3), (5, 3)]),
    "nll": (lambda z, y: ops.nll(ops.log_softmax(z), y), [(5, 3), (5, 3)]),
    "norm of a vector": (lambda x: ops.sqrt(ops.sum(x * x, 1)), [(5, 3)]),
    "square_sum": (lambda x: ops.sqrt(ops.square_sum(x)), [(5, 3)]),
    "batch_norm": (normed, [(5, 3), (3,), (3,)]),
    "batch_norm_inference": (ops.batch_norm_inference, [(5, 3), (3,), (3,), (3,), (3,)]),
    "broadcasting": (lambda a, b: ops.max(a / (1 + b**2), 0) - 2**a, [(4, 1, 3), (2, 1)]),
    "matrices": (lambda a, b: (a @ b @ ops.transpose(b))[:, ::-1] ** 3, [(3, 4), (4, 2)]),
    "convolutions": (
        lambda x, w, v: ops.mean(ops.conv2d(ops.tanh(ops.conv2d(x, w, padding=1, groups=2)), v, stride=2), (2, 3)),
        [(2, 4, 6, 5), (4, 2, 3, 3), (3, 4, 2, 2)],
    ),
    "pooling": (
        lambda x: ops.avg_pool2d(ops.softplus(ops.max_pool2d(x * x, 3, 2, 1)), 2, 1, count_include_pad=False),
        [(2, 2, 9, 9)],
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions(name):
    function, shapes = COMPOSITIONS[name]
    leaves, rng = Leaves(), np.random.default_rng(0)
    # within the domain of every formula above, and on both sides of the kinks of hinge and huber
    operands = [leaves.add(rng.uniform(0.2, 1.8, shape)) for shape in shapes]
    check_second_derivative([function(*operands)], operands, leaves)
