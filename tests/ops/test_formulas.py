"""The table of formulas: values against plain NumPy, gradients against differences, the conventions at every edge."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tapeprop.ops.expression import constant, evaluate, inputs, inputs_of, where
from tapeprop.ops.formulas import FORMULAS, Formula

INF, NAN = math.inf, math.nan
VARIANTS: dict[str, list[dict]] = {
    "clip": [{}, {"low": -1.0}, {"low": 0.0, "high": 2.0}, {"high": 0.0}],
    "leaky_relu": [{}, {"alpha": 0.0}, {"alpha": 0.3}, {"alpha": -0.5}, {"alpha": 2.0}],
    "elu": [{}, {"alpha": 0.5}, {"alpha": -0.5}],
    "gelu": [{}, {"approximate": True}],
}
CASES = [(name, attributes) for name in FORMULAS for attributes in VARIANTS.get(name, [{}])]
erf = np.vectorize(math.erf, otypes=[float])


def softplus(x):
    return np.logaddexp(x, 0)


def gelu(x, approximate=False):
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


# Written from the papers, not from the table.
NUMPY = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "power": np.power,
    "negate": np.negative, "reciprocal": np.reciprocal, "square": np.square, "sqrt": np.sqrt, "exp": np.exp,
    "log": np.log, "sin": np.sin, "cos": np.cos, "tan": np.tan, "erf": erf, "abs": np.abs, "sign": np.sign,
    "clip": lambda x, low=None, high=None: np.clip(x, low, high),
    "select": lambda c, a, b: np.where(c != 0, a, b),
    "maximum": lambda *xs: np.max(xs, axis=0), "minimum": lambda *xs: np.min(xs, axis=0),
    "sum_of": lambda *xs: np.sum(xs, axis=0), "mean_of": lambda *xs: np.mean(xs, axis=0),
    "product_of": lambda *xs: np.prod(xs, axis=0), "difference": lambda x, *rest: x - np.sum(rest, axis=0),
    "relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x, alpha=0.01: np.where(x > 0, x, alpha * x),
    "elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "softplus": softplus,
    "swish": lambda x: x / (1 + np.exp(-x)), "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6, "gelu": gelu,
    "mish": lambda x: x * np.tanh(softplus(x)),
}  # fmt: skip


def draw(formula: Formula, count: int, size: int = 200, **attributes) -> list[np.ndarray]:
    """Samples of the domain, away from kinks."""
    rng = np.random.default_rng(0)
    spans = formula.domain if isinstance(formula.domain[0], tuple) else [formula.domain] * count
    points = np.array([rng.uniform(low, high, size) for low, high in spans])
    if formula.kinks is not None:
        complete = formula.complete(attributes)
        points = points[:, ~formula.kinks(*points, distance=1e-3, **complete)]
    assert points.shape[1] > size / 2
    return list(points)


def counts(formula: Formula) -> tuple[int, ...]:
    return (1, 2, 3, 5) if formula.arity is None else (formula.arity,)


def value(name: str, *xs: float, dtype: type = np.float64, **attributes) -> float:
    return float(evaluate([FORMULAS[name].expression(len(xs), **attributes)], [dtype(x) for x in xs], dtype)[0])


def gradient(name: str, *xs: float, dy: float = 1.0, index: int = 0, dtype: type = np.float64, **attributes) -> float:
    root = FORMULAS[name].vjp(index, len(xs), **attributes)
    return float(evaluate([root], [dtype(x) for x in (*xs, dy)], dtype)[0])


def test_every_formula_is_tested():
    assert set(NUMPY) == set(FORMULAS)
    for name, formula in FORMULAS.items():
        assert formula.name == name
        assert formula.doc


@pytest.mark.parametrize(("name", "attributes"), CASES)
def test_values_are_numpys(name, attributes):
    formula = FORMULAS[name]
    for count in counts(formula):
        xs = draw(formula, count, **attributes)
        found = evaluate([formula.expression(count, **attributes)], xs)[0]
        np.testing.assert_allclose(found, NUMPY[name](*xs, **attributes), rtol=1e-13, atol=1e-15)
        narrow = evaluate([formula.expression(count, **attributes)], [x.astype(np.float32) for x in xs])[0]
        assert narrow.dtype == np.float32


@pytest.mark.parametrize(("name", "attributes"), CASES)
def test_gradients_are_central_differences(name, attributes):
    formula, step = FORMULAS[name], 1e-6
    for count in counts(formula):
        xs = draw(formula, count, **attributes)
        dy = np.random.default_rng(1).uniform(-2, 2, xs[0].shape)
        root = formula.expression(count, **attributes)
        for index in range(count):
            above, below = ([x + s * step * (k == index) for k, x in enumerate(xs)] for s in (1, -1))
            difference = dy * (evaluate([root], above)[0] - evaluate([root], below)[0]) / (2 * step)
            found = evaluate([formula.vjp(index, count, **attributes)], [*xs, dy])[0]
            np.testing.assert_allclose(np.broadcast_to(found, dy.shape), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "attributes"), CASES)
def test_gradient_from_the_output_is_the_gradient(name, attributes):
    formula = FORMULAS[name]
    through_output = formula.from_output(**attributes)
    if through_output is None:
        return
    assert set(inputs_of([through_output])) <= {0, 1}
    x = draw(formula, 1, **attributes)[0]
    dy = np.random.default_rng(1).uniform(-2, 2, x.shape)
    y = evaluate([formula.expression(**attributes)], [x])[0]
    expected = evaluate([formula.vjp(0, **attributes)], [x, dy])[0]
    found = evaluate([through_output], [dy, y])[0]
    np.testing.assert_allclose(found, np.broadcast_to(expected, x.shape), rtol=1e-12, atol=1e-14)


def test_which_gradients_need_only_the_output():
    found = {name for name, formula in FORMULAS.items() if formula.from_output() is not None}
    saved = set("relu relu6 leaky_relu elu selu sigmoid tanh exp sqrt tan reciprocal".split())
    assert found == saved | {"negate", "sign", "clip"}  # whose gradient needs neither, clip without bounds
    assert FORMULAS["clip"].from_output(low=0.0) is None
    assert FORMULAS["leaky_relu"].from_output(alpha=-0.1) is None  # the output's sign no longer tells the branch
    assert FORMULAS["elu"].from_output(alpha=-0.1) is None


# ---- conventions

ONE_OPERAND = [(name, attributes) for name, attributes in CASES if FORMULAS[name].arity == 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "attributes"), ONE_OPERAND)
def test_nan_goes_through_values(name, attributes, dtype):
    assert math.isnan(value(name, NAN, dtype=dtype, **attributes))


@pytest.mark.parametrize("name", ["maximum", "minimum", "sum_of", "mean_of", "product_of", "difference"])
def test_nan_goes_through_merges(name):
    for place in range(3):
        xs = [1.0, 2.0, 3.0]
        xs[place] = NAN
        assert math.isnan(value(name, *xs))


@pytest.mark.parametrize(("name", "attributes"), ONE_OPERAND)
def test_gradients_at_nan_are_nan_or_dy(name, attributes):
    """Only constants (sign) are 0 there."""
    found = gradient(name, NAN, dy=3.0, **attributes)
    scale = 1.0507009873554805 if name == "selu" else 1.0
    assert math.isnan(found) or found in (3.0 * scale, -3.0) or name == "sign"


# The limit at -inf and inf: (value, gradient) each.
ENDS = {
    "relu": ((0, 0), (INF, 1)), "relu6": ((0, 0), (6, 0)), "leaky_relu": ((-INF, 0.01), (INF, 1)),
    "elu": ((-1, 0), (INF, 1)), "selu": ((-1.7580993408473766, 0), (INF, 1.0507009873554805)),
    "sigmoid": ((0, 0), (1, 0)), "tanh": ((-1, 0), (1, 0)), "softplus": ((0, 0), (INF, 1)),
    "swish": ((0, 0), (INF, 1)), "hard_swish": ((0, 0), (INF, 1)), "gelu": ((0, 0), (INF, 1)),
    "mish": ((0, 0), (INF, 1)), "erf": ((-1, 0), (1, 0)), "abs": ((INF, -1), (INF, 1)),
    "exp": ((0, 0), (INF, INF)), "sign": ((-1, 0), (1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ENDS)
def test_infinities_and_huge_arguments_give_the_limit(name, dtype):
    eps = float(np.finfo(dtype).eps)
    for attributes in [{}, {"approximate": True}] if name == "gelu" else [{}]:
        for sign, (end, slope) in zip((-1, 1), ENDS[name], strict=True):
            for x in (INF, 1e4, 1e20, float(np.finfo(dtype).max)):
                # Where the value grows without bound it is slope * x.
                with np.errstate(all="ignore"):
                    linear = float(dtype(slope) * dtype(sign * x))
                expected = end if abs(end) < INF or name == "exp" else linear
                found = value(name, sign * x, dtype=dtype, **attributes)
                assert found == pytest.approx(expected, rel=2 * eps)
                found = gradient(name, sign * x, dtype=dtype, **attributes)
                assert found == pytest.approx(slope, rel=2 * eps)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "swish", "mish", "gelu", "tanh", "elu", "selu"])
def test_thousand_is_no_trouble_in_float32(name):
    for x in (-1000.0, -100.0, 100.0, 1000.0):
        assert math.isfinite(value(name, x, dtype=np.float32))
        assert math.isfinite(gradient(name, x, dtype=np.float32))


def test_kinks():
    zero = {"relu": 0.0, "abs": 0.0, "sign": 0.0, "relu6": 0.0, "leaky_relu": 0.01, "elu": 1.0}
    for name, slope in zero.items():
        assert gradient(name, 0.0) == gradient(name, -0.0) == slope, name
    assert gradient("relu6", 6.0) == 0.0
    assert gradient("clip", 1.0, low=1.0, high=2.0) == gradient("clip", 2.0, low=1.0, high=2.0) == 1.0
    assert gradient("hard_swish", -3.0) == 0.0
    assert gradient("softplus", 0.0) == 0.5
    assert value("sign", 0.0) == value("sign", -0.0) == 0.0


def test_the_dead_side_ignores_an_infinite_gradient():
    for name, x in (("relu", -1.0), ("relu6", 7.0), ("clip", 5.0), ("hard_swish", -4.0)):
        attributes = {"low": 0.0, "high": 1.0} if name == "clip" else {}
        assert gradient(name, x, dy=INF, **attributes) == 0.0
    through_output = FORMULAS["relu"].from_output()
    assert float(evaluate([through_output], [INF, 0.0])[0]) == 0.0


def test_ties_share_the_gradient_equally():
    assert [gradient("maximum", 2, 2, index=i) for i in range(2)] == [0.5, 0.5]
    assert [gradient("minimum", 1, 5, 1, 1, dy=3, index=i) for i in range(4)] == [1, 0, 1, 1]
    assert [gradient("maximum", INF, 1, INF, index=i) for i in range(3)] == [0.5, 0, 0.5]
    assert [gradient("maximum", 0.0, -0.0, index=i) for i in range(2)] == [0.5, 0.5]
    assert all(math.isnan(gradient("maximum", 1, NAN, 2, index=i)) for i in range(3))
    assert gradient("maximum", 1.0, dy=3.0) == 3.0


def test_merges_run_from_left_to_right():
    assert value("difference", 10, 3, 2) == 5
    assert value("difference", 4) == 4
    assert value("mean_of", 1, 5, 11) == pytest.approx(17 / 3, rel=0, abs=0)
    tiny = 2.0**-53
    assert value("sum_of", 1, tiny, tiny) == 1.0  # another order would give 1 + 2^-52
    assert value("product_of", 1e300, 1e300, 1e-300) == INF


def test_product_gradient_needs_no_division():
    assert gradient("product_of", 0, 3, 5, index=0) == 15
    assert gradient("product_of", 0, 0, 5, index=0) == 0


def test_power_edges():
    assert value("power", NAN, 0.0) == 1.0
    assert value("power", 1.0, NAN) == 1.0
    assert gradient("power", 0.0, 0.0) == 0.0
    assert gradient("power", -2.0, 3.0) == 12.0
    assert gradient("power", 0.0, 2.0, index=1) == 0.0
    assert math.isnan(value("power", -8.0, 1 / 3))


def test_select_takes_any_number_but_zero_for_true():
    assert [value("select", c, 1, 2) for c in (0.0, -0.0, 0.1, -3, NAN)] == [2, 2, 1, 1, 1]
    assert FORMULAS["select"].vjp(0) is constant(0.0)
    assert [gradient("select", 1, 7, 8, dy=5, index=i) for i in range(3)] == [0, 5, 0]


def test_relu_backward_is_one_choice():
    dy, y = inputs(2)
    assert FORMULAS["relu"].from_output() is where(y <= 0, 0.0, dy)
    assert FORMULAS["relu"].vjp(0) is where(dy <= 0, 0.0, y)  # there x is input 0 and dy input 1


def test_errors_name_the_formula():
    with pytest.raises(TypeError, match="relu takes 1 operand"):
        FORMULAS["relu"].expression(2)
    with pytest.raises(TypeError, match="maximum takes at least one"):
        FORMULAS["maximum"].expression(0)
    with pytest.raises(TypeError, match="elu has no attribute beta; it has alpha"):
        FORMULAS["elu"].expression(beta=1)
