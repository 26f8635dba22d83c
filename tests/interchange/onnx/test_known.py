"""Known numbers: what models calculate from sizes, open ones among them, and how much a file may ask for."""

import numpy as np
import pytest
from onnx_text import model, run

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load_function
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import read
from tapeprop.ir import Dim

X = np.random.default_rng(3).standard_normal((4, 3, 2)).astype(np.float32)
N = Dim.symbol("N")


def worked_out(body, known):
    """The known numbers that nodes make of others: arrays, or lists in which sizes may be open."""
    importer = Importer({}, None)
    importer.values.update({name: as_known(value) for name, value in known.items()})
    importer.run(read(model(body, **dict.fromkeys(known, "int64[M]"))).nodes)
    return importer.values["y"]


def as_known(value):
    if not isinstance(value, list) or not any(isinstance(entry, Dim) for entry in value):
        return np.asarray(value)
    array = np.empty(len(value), object)
    array[:] = value
    return array


# ---- an open batch


def test_a_view_keeps_the_batch_open():
    body = """
        s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, front) t = Concat<axis = 0>(u, rest) y = Reshape(x, t)
    """
    known = {"zero": np.int64(0), "front": np.array([0]), "rest": np.array([-1])}
    f = load_function(model(body, known, x="float[N,3,2]"))
    for batch in (4, 1, 9):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 2)).astype(np.float32)
        np.testing.assert_array_equal(f(x), x.reshape(batch, -1))


def test_sizes_are_calculated_with():
    body = """
        s = Shape(x) n, c, w = Split<axis = 0>(s) p = Mul(c, w) h = Div(p, two) d = Mul(n, two)
        t = Concat<axis = 0>(d, h) y = Reshape(x, t)
    """
    f = load_function(model(body, {"two": np.array([2])}, x="float[N,3,2]"))
    np.testing.assert_array_equal(f(X), X.reshape(8, 3))
    np.testing.assert_array_equal(f(X[:1]), X[:1].reshape(2, 3))


def test_expand_as_pytorch_writes_it():
    """-1 stands for a size that stays: ones of that shape, times -1, are looked for in it."""
    body = """
        s = Shape(x) n = Slice(s, zero, one) t = Concat<axis = 0>(n, minus, six) k = Shape(t)
        o = ConstantOfShape<value = int64[1] {1}>(k) m = Mul(o, minus) e = Equal(t, m) w = Where(e, o, t) y = Expand(b, w)
    """
    known = {"zero": np.array([0]), "one": np.array([1]), "minus": np.array([-1]), "six": np.array([6])}
    f = load_function(model(body, known, x="float[N,3,2]", b="float[1,5,1]"))
    b = np.arange(5, dtype=np.float32).reshape(1, 5, 1)
    np.testing.assert_array_equal(f(X, b), np.broadcast_to(b, (4, 5, 6)))


def test_a_slice_to_the_end_and_up_to_a_size():
    body = "s = Shape<start = 1, end = 2>(x) y = Slice(z, zero, s, axis)"
    known = {"zero": np.array([0]), "axis": np.array([1])}
    f = load_function(model(body, known, x="float[N,3,2]", z="float[N,7]"))
    z = np.arange(28, dtype=np.float32).reshape(4, 7)
    np.testing.assert_array_equal(f(X, z), z[:, :3])


def test_constants_of_an_open_size_are_made_in_the_run():
    body = "s = Shape<end = 1>(x) t = Concat<axis = 0>(s, six) o = ConstantOfShape<value = float[1] {0.5}>(t) y = Sum(o, z)"
    f = load_function(model(body, {"six": np.array([6])}, x="float[N,3,2]", z="float[N,6]"))
    np.testing.assert_array_equal(f(X, np.ones((4, 6), np.float32)), np.full((4, 6), 1.5))


# ---- arithmetic


@pytest.mark.parametrize(
    ("body", "known", "wanted"),
    [
        ("y = Div(a, b)", {"a": [7, -7, 7], "b": [2, 2, -2]}, [3, -3, -3]),  # towards zero
        ("y = Mod(a, b)", {"a": [7, -7, 7], "b": [2, 2, -2]}, [1, 1, -1]),  # the divisor's sign
        ("y = Range(a, b, c)", {"a": np.int64(5), "b": np.int64(0), "c": np.int64(-2)}, [5, 3, 1]),
        ("c = Cast<to = 1>(a) s = Mul(c, b) f = Floor(s) y = Cast<to = 7>(f)", {"a": [5], "b": np.float32([1.5])}, [7]),
        ("m = Max(a, b) y = ReduceProd<keepdims = 0>(m)", {"a": [2, 3], "b": [1, 4]}, 8),
        ("g = Greater(a, b) y = Where(g, a, b)", {"a": [2, 3], "b": [1, 4]}, [2, 4]),
        ("n = NonZero(a) y = Squeeze(n, z)", {"a": [0, 3, 5], "z": [0]}, [1, 2]),
        ("y = Sub(a, b)", {"a": [N, N * 2], "b": [1, 2]}, [N - 1, N * 2 - 2]),
        ("y = Div(a, b)", {"a": [N * 6, 7], "b": [3, 2]}, [N * 2, 3]),
        ("y = Div(a, b)", {"a": [N * 2 + 1], "b": [2]}, [N]),  # (2N + 1) // 2
        ("c = Cast<to = 1>(a) m = Mul(c, b) f = Floor(m) y = Cast<to = 7>(f)", {"a": [N, 3], "b": np.float32([2.0, 1.5])},
         [N * 2, 4]),
        ("y = Max(a, b)", {"a": [N], "b": [0]}, [N]),
        ("d = Div(a, b) y = Concat<axis = 0>(d, d)", {"a": [N * 4], "b": [N]}, [4, 4]),
        ("y = ReduceProd<keepdims = 0>(a)", {"a": [N, 3, 2]}, N * 6),
    ],
)  # fmt: skip
def test_arithmetic(body, known, wanted):
    assert worked_out(body, known).tolist() == wanted


@pytest.mark.parametrize(
    ("body", "known", "message"),
    [
        ("y = Mul(a, b)", {"a": [N], "b": np.float32([1.5])}, r"whether an open size is met by 1.5, got an open one: give shapes"),
        ("y = Equal(a, b)", {"a": [N], "b": [4]}, "sizes that decide whether"),
        ("y = Div(a, b)", {"a": [N - 5], "b": [2]}, "sizes that decide whether"),
        ("y = Div(a, b)", {"a": [4], "b": [0]}, "a divisor other than 0"),
        ("y = Mul(a, b)", {"a": [2**40], "b": [2**40]}, "numbers below 2\\^62"),
        ("y = ReduceProd(a)", {"a": [2**40, 2**40]}, "numbers below 2\\^62"),
        ("y = Add(a, b)", {"a": [1, 2], "b": [1, 2, 3]}, "shapes that broadcast"),
        ("y = Reshape(a, b)", {"a": [1, 2], "b": [3]}, "a shape of 2 elements"),
        ("y = Range(a, b, c)", {"a": [0], "b": [2**40], "c": [1]}, "at most 16777216 known numbers"),
        ("y = Expand(a, b)", {"a": [0], "b": [2**20, 2**20]}, "at most 16777216 known numbers"),
        ("y = Tile(a, b)", {"a": [0], "b": [2**40]}, "at most 16777216 known numbers"),
        ("a, y = Split(b)", {"b": [1, 2, 3]}, "a size that makes 2 parts, got 3"),
    ],
)  # fmt: skip
def test_refusals(body, known, message):
    with pytest.raises(GraphError, match=message):
        worked_out(body, known)


def test_all_known_numbers_together_are_limited():
    """Each is small enough, all of them are not."""
    body = " ".join(f"{name} = Expand(a, b)" for name in "vwxyz")
    with pytest.raises(GraphError, match=r"'Expand_4'.*at most 67108864 known numbers in all"):
        worked_out(body, {"a": np.array([0]), "b": np.array([2**24])})


def test_open_sizes_are_no_output():
    with pytest.raises(GraphError, match=r"'y'.*got the open sizes \[N, 3, 2\]"):
        load_function(model("y = Shape(x)", x="float[N,3,2]"))
    np.testing.assert_array_equal(run("y = Shape(x)", x=X), [4, 3, 2])
