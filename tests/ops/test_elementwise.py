"""Merges of more operands than one kernel takes: the values, ties and errors of a few."""

from functools import reduce

import numpy as np
import pytest
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor, reachable

MERGES = {
    "sum_of": lambda a: reduce(np.add, a),
    "product_of": lambda a: reduce(np.multiply, a),
    "difference": lambda a: reduce(np.subtract, a),
    "mean_of": lambda a: reduce(np.add, a) / len(a),
    "maximum": lambda a: reduce(np.maximum, a),
    "minimum": lambda a: reduce(np.minimum, a),
}


@pytest.mark.parametrize("name", MERGES)
def test_merges_of_many_have_the_bits_of_numpy(name):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1.5, (2, 3) if k % 2 else (3,)) for k in range(40)]
    merge = getattr(ops, name)
    tensors = [Tensor(a.shape, "float64", source=Input(k)) for k, a in enumerate(arrays)]
    assert max(len(call.operands) for call in reachable([merge(*tensors)])) <= 32
    np.testing.assert_array_equal(run(lambda *t: merge(*t, 1.25), *arrays), MERGES[name]([*arrays, 1.25]))


def test_many_operands_that_tie_share_the_gradient():
    arrays = [np.array([float(k in (3, 20, 39)), 1.0]) for k in range(40)]
    found = gradient(lambda *t: ops.maximum(*t), *arrays, flow=np.array([6.0, 40.0]))
    np.testing.assert_allclose(found, [[2.0 * a[0], 1.0] for a in arrays])


def test_what_many_operands_share_may_be_open_and_has_to_fit():
    n = Dim.symbol("N")
    many = [Tensor((n, 3), "float64", source=Input(0)), *(Tensor((3,), "float64", source=Input(k)) for k in range(20))]
    assert ops.maximum(*many).shape == ops.sum_of(*many).shape == (n, 3)
    with pytest.raises(ShapeError, match="maximum: expected shapes that broadcast"):
        ops.maximum(*many, Tensor((4,), "float64", source=Input(9)))
    with pytest.raises(DTypeError, match="sum_of: expected operands of one floating dtype"):
        ops.sum_of(*many, Tensor((3,), "float32", source=Input(9)))
    with pytest.raises(TypeError, match="axis"):
        ops.maximum(*many, axis=0)
