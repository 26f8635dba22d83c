"""State dicts: keys, copies, and loading that is all or nothing."""

import numpy as np
import pytest

from tapeprop.errors import DTypeError, DuplicateNameError, GraphError, NumericsError, ShapeError
from tapeprop.graph import GraphStructure, LayerNode, SequentialNode
from tapeprop.layers import BatchNorm1D, Dense, Dropout, Identity


def network() -> GraphStructure:
    a = LayerNode(Dense(2, 3))
    b = SequentialNode(Identity(), ("norm", BatchNorm1D(3)), Dropout(random_state=5), name="b")
    c = LayerNode(GraphStructure({(d := LayerNode(Dense(3, 1), name="d")): []}, d, d))
    return GraphStructure({a: [b], b: [c]}, a, c)


KEYS = [
    "node0.weight",
    "node0.bias",
    "b.norm.weight",
    "b.norm.bias",
    "b.norm.running_mean",
    "b.norm.running_var",
    "b.2.counter",
    "node2.d.weight",
    "node2.d.bias",
]


def test_keys_and_copies() -> None:
    graph = network()
    state = graph.state_dict()
    assert list(state) == KEYS
    state["node0.weight"][...] = 9
    assert (graph.nodes[0].layer.weight.value != 9).all()


def test_a_state_moves_to_another_graph() -> None:
    first, second = network(), network()
    second.load_state_dict(first.state_dict())
    for key, value in second.state_dict().items():
        np.testing.assert_array_equal(value, first.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ({"b.norm.bias": np.zeros((3, 1))}, ShapeError, r"'b.norm.bias'.*shape \(3,\), got \(3, 1\)"),
        ({"b.norm.bias": np.zeros(3, complex)}, DTypeError, "'b.norm.bias'.*real numbers, got dtype complex128"),
        ({"b.norm.bias": np.array(["a"] * 3)}, DTypeError, "'b.norm.bias'"),
        ({"b.2.counter": np.array([1.5, 2.5])}, DTypeError, "'b.2.counter'.*integers"),
        ({"extra": np.zeros(1)}, GraphError, "unknown 'extra'"),
        ({"node2.d.bias": None}, GraphError, "missing 'node2.d.bias'"),
        ({"node2.d.bias": None, "x": 0}, GraphError, "missing 'node2.d.bias'; unknown 'x'"),
    ],
)
def test_loading_is_all_or_nothing(change: dict, kind: type[Exception], named: str) -> None:
    graph = network()
    before = graph.state_dict()
    state = {key: value + 1 for key, value in before.items()} | change
    with pytest.raises(kind, match=named):
        graph.load_state_dict({key: value for key, value in state.items() if value is not None})
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


class Narrow:
    """The storage of a float32 graph, as far as loading needs it."""

    dtype = np.dtype("float32")

    def __init__(self, array: np.ndarray):
        self.array = array.astype("float32")

    def view(self) -> np.ndarray:
        return self.array

    def gradient(self) -> np.ndarray:
        return np.zeros_like(self.array)

    def write(self, array: np.ndarray) -> None:
        self.array[...] = array


def test_values_must_fit_the_dtype() -> None:
    node = LayerNode(Dense(1, 1))
    graph = GraphStructure({node: []}, node, node)
    node.layer.weight.storage = Narrow(node.layer.weight.value)
    state = {"node0.weight": [[1e300]], "node0.bias": [0]}
    with pytest.raises(NumericsError, match=r"'node0.weight'.*float32"):
        graph.load_state_dict(state)
    graph.load_state_dict({**state, "node0.weight": [[np.inf]]})
    assert np.isinf(node.layer.weight.value).all()


def test_names_must_differ() -> None:
    a, b = LayerNode(Dense(1, 1), name="same"), LayerNode(Dense(1, 1), name="same")
    graph = GraphStructure({a: [b]}, a, b)
    with pytest.raises(DuplicateNameError, match="'same'"):
        graph.state_dict()
