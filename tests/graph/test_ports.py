"""What callers give and get for several inputs or outputs: bare values, lists, dicts by the nodes' names."""

import copy
import pickle

import pytest

from tapeprop.errors import GraphError
from tapeprop.graph.ports import NamedList, Ports


def test_ports() -> None:
    one, listed, two = Ports(("a",), False), Ports(("a",), True), Ports(("a", "b"), True)
    assert one.split([1, 2], "X") == [[1, 2]]  # a list is an array here
    assert listed.split([1], "X") == [1]
    assert two.split((1, 2), "X") == [1, 2]
    assert two.split({"b": 2, "a": 1}, "X") == [1, 2]
    assert one.split({"a": 1}, "X") == [1]
    assert one.join([5]) == 5
    assert listed.join([5]) == [5]
    for ports, value, text in (
        (two, [1], r"expected a list of 2 \(a, b\), received 1 entries"),
        (two, 1, r"expected a list of 2 \(a, b\), received int"),
        (two, {"a": 1}, "expected the keys a, b, received a"),
        (two, {}, "received none"),
        (Ports(("a", "a"), True), {"a": 1}, "names that differ"),
    ):
        with pytest.raises(GraphError, match=text):
            ports.split(value, "X")


def test_a_dict_may_leave_out_what_may_be_missing() -> None:
    two = Ports(("a", "b"), True)
    assert two.split({"b": 2}, "y", partial=True) == [None, 2]
    assert two.split({}, "y", partial=True) == [None, None]
    with pytest.raises(GraphError, match="y: expected some of the keys a, b, received a, c"):
        two.split({"a": 1, "c": 2}, "y", partial=True)
    with pytest.raises(GraphError, match="expected a list of 2"):
        two.split([1], "y", partial=True)  # a list says what it leaves out


@pytest.mark.parametrize("same", [lambda x: x, copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_named_list_is_a_list_that_knows_names(same) -> None:
    found = same(NamedList([1, 2], ["a", "b"]))
    assert found == [1, 2]
    assert (found["a"], found["b"], found[0], found[-1], found[:1]) == (1, 2, 1, 2, [1])
    assert found.names == ("a", "b")
    with pytest.raises(KeyError, match="there is no 'c' here, only a, b"):
        found["c"]
    with pytest.raises(IndexError):
        found[2]
