"""Sparse maps along an axis and resizing: ways to place pixels, transposes, torch's numbers, refusals, open sizes."""

import numpy as np
import pytest
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.resample import resample, tables


def matrix(table):
    found = np.zeros((table.outputs, table.length))
    for i in range(table.outputs):
        for t in range(table.offsets[i], table.offsets[i + 1]):
            found[i, table.sources[t]] += table.weights[t]
    return found


def tensor(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


MAPS = {
    "nearest": tables.nearest(5, tables.coordinates(5, 11, None, "asymmetric"), "floor"),
    "linear": tables.linear(7, tables.coordinates(7, 4, None, "half_pixel")),
    "linear of one": tables.linear(1, tables.coordinates(1, 3, None, "half_pixel")),
    "cubic": tables.cubic(6, tables.coordinates(6, 13, None, "half_pixel"), tables.CUBIC_COEFF_A),
    "means": tables.adaptive(7, 3),
    "reflect": tables.reflecting(4, 3, 2),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("inner", [1, 3])
def test_the_op_is_the_product_with_a_matrix_and_its_gradient_with_the_transposed(name, inner):
    table = MAPS[name]
    np.testing.assert_array_equal(matrix(table.transposed), matrix(table).T)
    random = np.random.default_rng(0)
    x = random.standard_normal((2, table.length, inner))
    d = random.standard_normal((2, table.outputs, inner))
    y = run(lambda t: resample(t, table, 1), x, workers=3)
    np.testing.assert_allclose(y, np.einsum("oi,bic->boc", matrix(table), x), rtol=1e-12, atol=1e-13)
    (dx,) = gradient(lambda t: resample(t, table, 1), x, flow=d)
    np.testing.assert_allclose(dx, np.einsum("oi,boc->bic", matrix(table), d), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("how", "places"),
    [  # of 4 elements from 2, by ONNX' formulas
        ("asymmetric", [0, 0.5, 1, 1.5]),
        ("half_pixel", [-0.25, 0.25, 0.75, 1.25]),
        ("half_pixel_symmetric", [-0.25, 0.25, 0.75, 1.25]),
        ("pytorch_half_pixel", [-0.25, 0.25, 0.75, 1.25]),
        ("align_corners", [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_coordinates(how, places):
    np.testing.assert_allclose(tables.coordinates(2, 4, None, how), places, atol=1e-15)
    np.testing.assert_allclose(tables.coordinates(2, 4, 2.0, how), places, atol=1e-15)


def test_whole_places_are_exact():
    for n in range(1, 200):
        np.testing.assert_array_equal(np.floor(tables.coordinates(n, 3 * n, None, "asymmetric")), np.arange(3 * n) // 3)


# 4 x 4 images of 1 to 16, results in the examples of ONNX' Resize
SQUARE = np.arange(1.0, 17.0).reshape(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("coordinates", "rounding", "first_row"),
    [
        ("half_pixel", "ceil", [1, 2, 2, 3, 3, 4, 4, 4]),
        ("align_corners", "floor", [1, 1, 1, 2, 2, 3, 3, 4]),
        ("asymmetric", "round_prefer_ceil", [1, 2, 2, 3, 3, 4, 4, 4]),
        ("asymmetric", "round_prefer_floor", [1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_nearest_as_onnx(coordinates, rounding, first_row):
    found = run(lambda t: ops.resize(t, 8, coordinates=coordinates, nearest_mode=rounding), SQUARE)
    np.testing.assert_array_equal(found[0, 0, 0], first_row)


def test_linear_as_onnx():
    found = run(lambda t: ops.resize(t, (3, 1), mode="linear", coordinates="pytorch_half_pixel"), SQUARE)
    np.testing.assert_allclose(found[0, 0, :, 0], [5 / 3, 7, 37 / 3], rtol=1e-14)
    one = run(lambda t: ops.resize(t, scale=2, mode="linear", axes=(3,)), SQUARE[:, :, :1, :2])
    np.testing.assert_allclose(one[0, 0, 0], [1, 1.25, 1.75, 2], rtol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "shape", "weighted", "slopes"),
    [  # sum(y R), sum |dx| of x = S(2, 3, 9, 8) (tests/traced.py) by torch.nn.functional.interpolate 2.13
        ({"scale": 2}, (2, 3, 18, 16), 0.6398654314758541, 764.2438438885108),
        ({"size": (7, 3)}, (2, 3, 7, 3), -1.3183862517497942, 80.33016554713032),
        ({"scale": (1.7, 0.6)}, (2, 3, 15, 4), -0.5837511916246731, 227.42288258478797),
        ({"size": (7, 3), "mode": "nearest-exact"}, (2, 3, 7, 3), 2.9999313496968734, 80.33016554713032),
        ({"scale": 2, "mode": "bilinear"}, (2, 3, 18, 16), -0.9156611935877181, 413.77486616191067),
        ({"scale": (1.7, 0.6), "mode": "bilinear"}, (2, 3, 15, 4), 0.13908396053772887, 222.74600978176193),
        (
            {"size": (7, 3), "mode": "bilinear", "align_corners": True},
            (2, 3, 7, 3),
            1.8540427497846785,
            79.822664728631,
        ),
        ({"size": (7, 3), "mode": "bicubic"}, (2, 3, 7, 3), 0.5476115695953137, 99.28378067754022),
        ({"scale": (1.7, 0.6), "mode": "bicubic"}, (2, 3, 15, 4), 0.03450348035512507, 238.12476498652543),
        (
            {"size": (1, 9), "mode": "bicubic", "align_corners": True},
            (2, 3, 1, 9),
            0.9018438681360951,
            32.4626628878865,
        ),
    ],
)
def test_images_as_torch(arguments, shape, weighted, slopes):
    x = np.sin(np.arange(432.0)).reshape(2, 3, 9, 8)
    d = np.cos(0.1 * np.arange(np.prod(shape))).reshape(shape)
    y = run(lambda t: ops.resize(t, **arguments), x)
    assert y.shape == shape
    np.testing.assert_allclose((y * d).sum(), weighted, rtol=1e-10, atol=1e-12)
    (dx,) = gradient(lambda t: ops.resize(t, **arguments), x, flow=d)
    np.testing.assert_allclose(np.abs(dx).sum(), slopes, rtol=1e-11)


def test_a_nan_stays_where_it_is():
    x = np.ones((1, 1, 1, 5))
    x[..., 2] = np.nan
    assert np.isnan(run(lambda t: ops.resize(t, scale=2), x)[0, 0, 0]).tolist() == [i in (4, 5) for i in range(10)]
    means = run(lambda t: ops.adaptive_avg_pool(t, (1, 3)), x)[0, 0, 0]  # windows of 2, 3 and 2
    assert np.isnan(means).tolist() == [False, True, False]


def test_what_stays_as_it_is_is_not_recorded():
    x = tensor(2, 3, 4, 5)
    assert ops.resize(x, (4, 5), mode="cubic") is x
    assert ops.resize(x, (4, 10), mode="linear").producer.operands[0] is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a size or a scale, got None and None"),
        ({"size": 3, "scale": 2}, "a size or a scale"),
        ({"size": (3, 3, 3)}, "one for each of 2 axes"),
        ({"size": 0}, "sizes >= 1, got 0"),
        ({"scale": 0.1}, "at least one element"),
        ({"scale": -1}, "at least one element"),
        ({"size": 3, "mode": "lanczos"}, "mode to be one of"),
        ({"size": 3, "align_corners": True}, "align_corners for linear or cubic"),
        ({"size": 3, "coordinates": "corner"}, "coordinates to be one of"),
        ({"size": 3, "nearest_mode": "up"}, "nearest_mode to be one of"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ShapeError, match=message):
        ops.resize(tensor(2, 3, 4, 5), **arguments)


def test_open_sizes():
    n, h = Dim.symbol("N"), Dim.symbol("H")
    assert ops.resize(tensor(n, 3, 4, 5), scale=2).shape == (n, 3, 8, 10)
    assert ops.pad(tensor(n, 4), ((0, 0), (1, 1)), mode="reflect").shape == (n, 6)
    with pytest.raises(ShapeError, match="give the placeholder that size"):
        ops.resize(tensor(2, 3, h, 5), scale=2)
