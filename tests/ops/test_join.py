"""concat, split, slice, pad and x[key]: NumPy's meaning, gradients, open sizes, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import gradient, run, trace

from tapeprop import ops
from tapeprop.compiler.interpret import interpret
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Program, Span, Tensor, Trace, UndecidedError, reachable, recording

N, M = Dim.symbol("N"), Dim.symbol("M")


def tensor(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


# ---- concat and split


@settings(max_examples=30)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    axis=st.integers(-3, 2),
    rest=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_concat_is_numpys(widths, axis, rest):
    shapes = [list(rest) for _ in widths]
    for shape, width in zip(shapes, widths, strict=True):
        shape.insert(axis % 3, width)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    found = run(lambda *t: ops.copy(ops.concat(t, axis)), *arrays, workers=2)
    np.testing.assert_array_equal(found, np.concatenate(arrays, axis))


def test_concat_of_long_rows_is_cut_among_the_workers():
    arrays = [np.arange(5000.0), np.arange(3.0), np.arange(2500.0)]
    for workers in (1, 2, 3, 8):
        found = run(lambda *t: ops.concat(t, 0), *arrays, workers=workers)
        np.testing.assert_array_equal(found, np.concatenate(arrays))


def test_concat_of_labels_and_of_one():
    a, b = np.arange(4), np.arange(3)
    np.testing.assert_array_equal(run(lambda *t: ops.concat(t, axis=0), a, b), [0, 1, 2, 3, 0, 1, 2])
    x = tensor(N, 3)
    assert ops.concat([x]) is x


def test_many_operands_are_joined_in_groups():
    shapes = [(2, 1 + k % 3) for k in range(70)]
    with recording(Trace("float64", False)):
        parts = [Tensor(shape, "float64", source=Input(k)) for k, shape in enumerate(shapes)]
        whole = ops.concat(parts, axis=1)
        with pytest.raises(ShapeError, match=r"operand 40 to agree with operand 0, \(2, 1\)"):
            ops.concat([*parts[:40], tensor(3, 1), *parts[40:]])
    calls = reachable([whole])
    assert max(len(call.operands) for call in calls) == 32
    arrays = [k + np.arange(float(np.prod(shape))).reshape(shape) for k, shape in enumerate(shapes)]
    ((value,), _) = interpret(Program([Span("all", calls)], parts, [whole]), dict(zip(parts, arrays, strict=True)))
    np.testing.assert_array_equal(value, np.concatenate(arrays, 1))


def test_each_operand_of_concat_gets_its_part_of_the_gradient():
    shapes = [(2, 1), (2, 3), (2, 2)]
    flow = np.arange(12.0).reshape(2, 6)
    parts = gradient(lambda *t: ops.concat(t), *(np.zeros(s) for s in shapes), flow=flow)
    for found, expected in zip(parts, np.split(flow, [1, 4], axis=1), strict=True):
        np.testing.assert_array_equal(found, expected)
    x = np.zeros((2, 2))
    (dx,) = gradient(lambda t: ops.concat([t, t]), x, flow=np.array([[1.0, 2.0, 10.0, 20.0]] * 2))
    np.testing.assert_array_equal(dx, [[11.0, 22.0]] * 2)


def test_concat_with_open_sizes():
    assert ops.concat([tensor(N, 3), tensor(N, 4)]).shape == (N, 7)
    assert ops.concat([tensor(N, 3), tensor(M, 3)], axis=0).shape == (N + M, 3)
    with pytest.raises(ShapeError, match="got an open one"):
        ops.concat([tensor(N, 3), tensor(M, 3)])


@pytest.mark.parametrize(
    ("tensors", "axis", "error", "words"),
    [
        ([], 1, ShapeError, "at least one"),
        ([tensor(2, 3), tensor(3, 3)], 1, ShapeError, "operand 1"),
        ([tensor(2, 3), tensor(2, 3, 1)], 1, ShapeError, "(2, 3, 1)"),
        ([tensor(2, 3), tensor(2, 3)], 2, ShapeError, "from -2 to 1"),
        ([tensor(2, 0), tensor(2, 3)], 1, ShapeError, "(2, 0)"),
        ([tensor(2, 3), tensor(2, 3, dtype="float32")], 1, DTypeError, "cast"),
    ],
)
def test_concat_refuses(tensors, axis, error, words):
    with pytest.raises(error) as caught:
        ops.concat(tensors, axis)
    assert words in str(caught.value)


@pytest.mark.parametrize("sections", [3, (1, 4, 1), [6]])
def test_split(sections):
    x = np.arange(24.0).reshape(2, 6, 2)
    sizes = [6 // sections] * sections if isinstance(sections, int) else sections
    expected = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    for i, part in enumerate(expected):
        np.testing.assert_array_equal(run(lambda t, i=i: ops.copy(ops.split(t, sections)[i]), x), part)
    assert [p.shape for p in ops.split(tensor(N, 6, 2), sections)] == [(N, size, 2) for size in sizes]


def test_in_a_trace_the_compiler_hears_of_what_open_sizes_leave_undecided():
    with recording(Trace("float64", False)), pytest.raises(UndecidedError):
        ops.concat([tensor(N, 3), tensor(M, 3)])


def test_split_of_an_open_axis():
    assert [p.shape for p in ops.split(tensor(4 * N, 2), 4, axis=0)] == [(N, 2)] * 4
    with pytest.raises(ShapeError, match="got an open one"):
        ops.split(tensor(N, 2), 4, axis=0)


@pytest.mark.parametrize(
    ("sections", "words"), [(4, "divides"), (0, "divides"), ((2, 3), "add up"), ((7, -1), "elements 0 to 5")]
)
def test_split_refuses(sections, words):
    with pytest.raises(ShapeError, match=words):
        ops.split(tensor(2, 6), sections)


# ---- x[key]

KEYS = [
    np.s_[1],
    np.s_[-1],
    np.s_[..., 2],
    np.s_[:, 1:3],
    np.s_[:, -2:],
    np.s_[:, :-1, 1],
    np.s_[::-1],
    np.s_[:, ::2, ::-3],
    np.s_[:, 9:0:-1],
    np.s_[1:100, -100:2],
    np.s_[None, :, None, 1],
    np.s_[..., None],
    np.s_[None],
    np.s_[1, ..., 1:2],
    np.s_[0, 1, 2],
    np.s_[:, 2:3, np.int64(3) : np.int64(5)],
    np.s_[:, 3:0:-2],
    (),
    ...,
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_index_is_numpys(key):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    np.testing.assert_array_equal(run(lambda t: ops.copy(t[key]), x), x[key])
    (dx,) = gradient(lambda t: ops.copy(t[key]), x, flow=x[key] * 2 + 1)
    expected = np.zeros_like(x)
    expected[key] = x[key] * 2 + 1
    np.testing.assert_array_equal(dx, expected)


@settings(max_examples=150)
@given(start=st.none() | st.integers(-9, 9), stop=st.none() | st.integers(-9, 9), step=st.none() | st.integers(-4, 4))
def test_slices_are_clamped_as_python_clamps_them(start, stop, step):
    x, key = tensor(7, 2), slice(start, stop, step)
    if step == 0 or not range(7)[key]:
        with pytest.raises(ShapeError):
            ops.index(x, key)
        return
    array = np.arange(14.0).reshape(7, 2)
    (_,), (y,) = trace(lambda t: ops.index(t, key), [array])
    assert y.shape == array[key].shape
    if y.producer is not None:
        a = y.producer.attributes
        np.testing.assert_array_equal(a["starts"][0] + a["steps"][0] * np.arange(a["sizes"][0]), np.arange(7)[key])


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[0], (5,)),
        (np.s_[-1], (5,)),
        (np.s_[:, 1:3], (N, 2)),
        (np.s_[::-1], (N, 5)),
        (np.s_[:, None], (N, 1, 5)),
    ],
)
def test_index_of_an_open_axis(key, shape):
    assert tensor(N, 5)[key].shape == shape


@pytest.mark.parametrize("key", [np.s_[1], np.s_[-2], np.s_[1:], np.s_[:3], np.s_[::2]])
def test_index_of_an_open_axis_that_depends_on_its_size(key):
    with pytest.raises(ShapeError, match="got an open one"):
        tensor(N, 5)[key]


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        (3, ShapeError, "from -3 to 2"),
        (-4, ShapeError, "from -3 to 2"),
        ((0, 0, 0), ShapeError, "at most 2"),
        ((..., ...), ShapeError, "one ..."),
        (slice(2, 1), ShapeError, "none of the 3"),
        (slice(None, None, 0), ShapeError, "step other than 0"),
        ([0, 1], DTypeError, "take()"),
        (True, DTypeError, "where()"),
        (1.0, DTypeError, "1.0"),
        (slice(1.0, 2), DTypeError, "whole numbers"),
    ],
)
def test_index_refuses(key, error, words):
    with pytest.raises(error) as caught:
        tensor(3, 5)[key]
    assert words in str(caught.value)


def test_slice_by_lists():
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(run(lambda t: ops.slice(t, (0, 1), (2, None), (1, 2)), x), x[0:2, 1::2])
    np.testing.assert_array_equal(run(lambda t: ops.slice(t, (1,), (2,)), x), x[1:2])
    with pytest.raises(ShapeError, match="as many"):
        ops.slice(tensor(2, 3), (0, 1), (2,))


# ---- pad and place


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, -np.inf, np.nan, 1.5])
@pytest.mark.parametrize("widths", [1, (1, 2), ((0, 0), (2, 0), (1, 3)), ((3, 0), (0, 0), (0, 0))])
def test_pad_is_numpys(dtype, value, widths):
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(dtype)
    expected = np.pad(x, widths, constant_values=value)
    for workers in (1, 3):
        np.testing.assert_array_equal(run(lambda t: ops.pad(t, widths, value), x, workers=workers), expected)
    (dx,) = gradient(lambda t: ops.pad(t, widths, value), x, flow=np.arange(expected.size).reshape(expected.shape))
    inner = tuple(slice(a, a + n) for (a, _), n in zip(np.broadcast_to(widths, (3, 2)), x.shape, strict=True))
    np.testing.assert_array_equal(dx, np.arange(expected.size).reshape(expected.shape)[inner])


def test_pad_of_a_long_row_is_cut_among_the_workers():
    x = np.random.default_rng(0).standard_normal(9001)
    for widths in [(1, 1), (5000, 4096), (0, 9000)]:
        for workers in (1, 2, 3, 5):
            np.testing.assert_array_equal(run(lambda t, w=widths: ops.pad(t, w), x, workers=workers), np.pad(x, widths))


def test_pad_with_open_sizes_and_without_width():
    assert ops.pad(tensor(N, 3), ((0, 0), (1, 2))).shape == (N, 6)
    x = tensor(N, 3)
    assert ops.pad(x, 0) is x


@pytest.mark.parametrize(
    ("widths", "words"),
    [(-1, "slice to cut"), (0.5, "whole numbers"), ((1, 2, 3), "each axis"), ([(1, 1), (1,)], "each axis")],
)
def test_pad_refuses(widths, words):
    with pytest.raises(ShapeError, match=words):
        ops.pad(tensor(2, 3), widths)
    with pytest.raises(DTypeError, match="cast"):
        ops.pad(tensor(2, dtype="int64"), 1)


def test_place_refuses_what_lies_outside():
    for start, step in [(2, 2), (-1, 1), (1, -1), (0, 0)]:
        with pytest.raises(ShapeError, match="place: expected"):
            ops.place(tensor(3), (6,), (start,), (step,))
    assert ops.place(tensor(3), (6,), (5,), (-2,)).shape == (6,)


@pytest.mark.parametrize(("mode", "name"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")])
def test_pad_with_elements_of_the_array(mode, name):
    x = np.random.default_rng(0).standard_normal((3, 4, 2))
    widths = ((2, 0), (1, 3), (1, 1))
    np.testing.assert_array_equal(run(lambda t: ops.pad(t, widths, mode=mode), x), np.pad(x, widths, name))


@pytest.mark.parametrize(
    ("widths", "mode", "message"),
    [(3, "reflect", "at most 2"), (4, "circular", "at most 3"), (1, "mirror", "mode to be one of")],
)
def test_borders_that_are_refused(widths, mode, message):
    with pytest.raises(ShapeError, match=message):
        ops.pad(np.zeros((3, 3)), widths, mode=mode)
