"""The eight merges: values, gradients, any number of operands, and what is refused."""

import numpy as np
import pytest
from traced import run

from tapeprop.errors import GraphError, MergeError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode
from tapeprop.layers import Activation, Identity, Lambda, Layer

A, B, C3 = np.array([[1.0, 5.0]]), np.array([[2.0, 3.0]]), np.array([[0.0, 9.0]])


def merging(mode: MergeMode | str, count: int) -> GraphStructure:
    """`count` roots that lead to one term."""
    roots = [LayerNode(Identity(), name=f"x{i}") for i in range(count)]
    term = LayerNode(Identity(), mode, name="term")
    return GraphStructure({root: [term] for root in roots}, roots, term)


@pytest.mark.parametrize(
    ("mode", "y", "gradients"),
    [
        ("sum", [[3, 17]], [[[1, 10]], [[1, 10]], [[1, 10]]]),
        ("hadamard", [[0, 135]], [[[0, 270]], [[0, 450]], [[2, 150]]]),
        ("avg", [[1, 17 / 3]], [[[1 / 3, 10 / 3]]] * 3),
        ("max", [[2, 9]], [[[0, 0]], [[1, 0]], [[0, 10]]]),
        ("min", [[0, 3]], [[[0, 0]], [[0, 10]], [[1, 0]]]),
        ("sub", [[-1, -7]], [[[1, 10]], [[-1, -10]], [[-1, -10]]]),
    ],
)
def test_elementwise_merges(mode: str, y: list, gradients: list) -> None:
    found = run(merging(mode, 3), [A, B, C3], [np.array([[1.0, 10.0]])])
    np.testing.assert_allclose(found.outputs[0], y, rtol=1e-15)
    np.testing.assert_allclose(found.inputs, gradients, rtol=1e-15)


def test_chcat_joins_axis_1() -> None:
    found = run(merging("chcat", 3), [A, B, C3], [np.arange(6.0).reshape(1, 6)])
    assert found.outputs[0].tolist() == [[1, 5, 2, 3, 0, 9]]
    assert [dx.tolist() for dx in found.inputs] == [[[0, 1]], [[2, 3]], [[4, 5]]]


def test_dot_multiplies_from_left_to_right() -> None:
    operands = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate([(2, 3), (3, 4), (4, 5)])]
    found = run(merging("dot", 3), operands)
    np.testing.assert_allclose(found.outputs[0], operands[0] @ operands[1] @ operands[2], rtol=1e-14)
    ones = np.ones((2, 5))
    np.testing.assert_allclose(found.inputs[1], operands[0].T @ ones @ operands[2].T, rtol=1e-13)


def test_dot_broadcasts_leading_axes() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 1, 3, 4)), np.random.default_rng(1).standard_normal((5, 4, 2))
    found = run(merging("dot", 2), [a, b])
    np.testing.assert_allclose(found.outputs[0], a @ b, rtol=1e-13)
    assert [dx.shape for dx in found.inputs] == [a.shape, b.shape]


def test_a_double_edge_is_two_operands() -> None:
    a, b = LayerNode(Identity()), LayerNode(Identity())
    graph = GraphStructure({a: [b, b]}, a, b)
    assert [v.tolist() for v in (run(graph, [A]).outputs[0], run(graph, [A]).inputs[0])] == [[[2, 10]], [[2, 2]]]
    b.merge_mode = MergeMode.DOT
    found = run(graph, [np.array([[1.0, 2.0], [3.0, 4.0]])])
    assert found.outputs[0].tolist() == [[7, 10], [15, 22]]
    assert found.inputs[0].tolist() == [[7, 11], [9, 13]]


@pytest.mark.parametrize("mode", list(MergeMode))
def test_one_operand_passes(mode: MergeMode) -> None:
    found = run(merging(mode, 1), [np.arange(3.0)], [np.array([1.0, 2.0, 3.0])])
    assert found.outputs[0].tolist() == [0, 1, 2]
    assert found.inputs[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_tie_shares_the_gradient(mode: str) -> None:
    found = run(merging(mode, 3), [np.ones((1, 1))] * 3, [np.array([[6.0]])])
    assert [dx.tolist() for dx in found.inputs] == [[[2]], [[2]], [[2]]]


def test_broadcasting_sums_the_gradient() -> None:
    x, s = np.arange(1.0, 7.0).reshape(1, 2, 3), np.array([[[2.0], [3.0]]])
    found = run(merging("hadamard", 2), [x, s])
    assert found.inputs[1].tolist() == [[[6], [15]]]
    assert found.inputs[0].tolist() == [[[2, 2, 2], [3, 3, 3]]]


def times(factor: float) -> LayerNode:
    return LayerNode(Lambda(lambda x: x * factor), name=f"x{factor}")


@pytest.mark.parametrize(("swapped", "sign"), [(False, 1), (True, -1)])
def test_operands_come_in_declaration_order_whatever_their_depth(swapped: bool, sign: int) -> None:
    r, l1, l2, s = LayerNode(Identity()), times(3), times(5), times(7)
    t = LayerNode(Identity(), MergeMode.SUB)
    last = {s: [t], l2: [t]} if swapped else {l2: [t], s: [t]}
    graph = GraphStructure({r: [l1, s], l1: [l2], **last}, r, t)
    found = run(graph, [np.ones((1, 1))])
    assert found.outputs[0] == 8 * sign
    assert found.inputs[0] == 8 * sign


def test_chcat_of_unequal_depth() -> None:
    r, l1, s = LayerNode(Identity()), times(3), times(7)
    l2 = LayerNode(Lambda(lambda x: x[:, 0:1]))
    t = LayerNode(Identity(), "chcat")
    graph = GraphStructure({r: [l1, s], l1: [l2], l2: [t], s: [t]}, r, t)
    found = run(graph, [np.ones((1, 2))], [np.array([[1.0, 10.0, 100.0]])])
    assert found.outputs[0].tolist() == [[3, 7, 7]]
    assert found.inputs[0].tolist() == [[73, 700]]


@pytest.mark.parametrize(
    ("mode", "shapes", "named"),
    [
        ("sum", [(2, 6, 8, 8), (2, 3, 8, 8)], ["SUM", "(2, 6, 8, 8)", "(2, 3, 8, 8)", "CHCAT"]),
        ("chcat", [(2, 6, 8, 8), (2, 3, 4, 8)], ["CHCAT", "every axis but 1"]),
        ("chcat", [(2, 6, 8, 8), (2, 6)], ["one rank"]),
        ("chcat", [(3,), (3,)], ["rank >= 2"]),
        ("dot", [(2, 3), (2, 3)], ["columns"]),
        ("dot", [(2, 3), (3,)], ["rank >= 2"]),
        ("dot", [(2, 1, 3), (3, 3, 1)], ["leading axes"]),
    ],
)
def test_what_does_not_merge_names_the_node_and_its_operands(mode: str, shapes: list, named: list[str]) -> None:
    with pytest.raises(MergeError) as caught:
        merging(mode, 2).out_shape(shapes)
    for part in ["'term'", "'x0'", "'x1'", *named]:
        assert part in str(caught.value)


def test_modes_by_value_and_name() -> None:
    assert LayerNode(Identity(), "CHCAT").merge_mode is MergeMode.CHCAT
    assert [mode.value for mode in MergeMode] == ["sum", "chcat", "hadamard", "avg", "max", "min", "dot", "sub"]
    for wrong in ("add", 3, None):
        with pytest.raises(GraphError, match="chcat"):
            LayerNode(Identity(), wrong)  # type: ignore[arg-type]


class Doubled(Layer):
    def trace(self, x):
        return x + x


def test_many_operands() -> None:
    root, term = LayerNode(Identity()), LayerNode(Activation.Linear(), "avg")
    branches = [LayerNode(Doubled()) for _ in range(100)]
    graph = GraphStructure({root: branches, **{b: [term] for b in branches}}, root, term)
    found = run(graph, [np.array([[0.5]])])
    np.testing.assert_allclose([found.outputs[0].item(), found.inputs[0].item()], [1.0, 2.0], rtol=1e-12)
