"""docs/internals/add-an-op.md keeps its word on a device: the kernel for a GPU that it shows is right."""

import numpy as np
import pytest
from on_device.launches import driver, run_on
from on_device.test_catalogue_simulated import test_cuda_equals_reference as equals_reference
from ops.test_add_an_op import NAME, check_cases, module  # noqa: F401

import tapeprop as tp
from tapeprop.layers import Lambda
from tapeprop.ops import registry
from tapeprop.ops.op import ArrayType, Call

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("module")]


def test_it_equals_the_reference_on_every_sample():
    check_cases(registry[NAME], equals_reference)


def test_the_check_would_see_a_wrong_kernel(monkeypatch):
    op = registry[NAME]
    right = op.cuda

    def reversed_instead(call, device):
        return right(Call(call.operands, call.results, {"reverse": not call["reverse"]}), device)

    monkeypatch.setattr(op, "cuda", reversed_instead)
    with pytest.raises(AssertionError):
        check_cases(op, equals_reference)


def test_the_result_may_lie_over_the_operand():
    x = np.random.default_rng(0).standard_normal((19, 5))  # more rows than the simulator's threads
    kind = ArrayType(x.shape, "float64")
    shared = x.copy()
    launches = registry[NAME].cuda_rows(Call((kind,), (kind,), {"reverse": True}), driver().limits)
    assert run_on({"operand": [shared], "result": [shared]}, launches) == 0
    np.testing.assert_allclose(shared, np.flip(np.cumsum(np.flip(x, -1), -1), -1), rtol=1e-14, atol=1e-14)


def test_value_and_gradient_in_a_graph(module):  # noqa: F811
    X = np.random.default_rng(0).standard_normal((3, 4, 6))

    def both(device):
        node = tp.LayerNode(Lambda(lambda x: module.cumulative_sum(x) * x), name="sums")
        graph = tp.LayerGraph({node: []}, root=node, term=node).build(dtype="float64", device=device)
        return graph.forward(X), graph.backward()

    for found, wanted in zip(both("cuda"), both("cpu"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
