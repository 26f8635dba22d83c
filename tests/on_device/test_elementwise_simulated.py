"""The generated CUDA loop of elementwise ops: edge values, layouts, results over operands."""

import numpy as np
import pytest
from on_device.launches import DEVICE, run_launches, run_on
from ops.test_formulas import CASES

from tapeprop.ops import registry
from tapeprop.ops.expression import constant, encode, evaluate, exp, fma, inputs, where
from tapeprop.ops.formulas import FORMULAS
from tapeprop.ops.op import ArrayType, Call, Ref, cuda_launch, inverse

pytestmark = pytest.mark.cuda

x, y, z = inputs(3)
SPECIAL = [0.0, -0.0, 1, -1, 1e-40, 30, -30, 1000, -1000, np.inf, -np.inf, np.nan]


def call_of(roots, operands, dtype):
    """The call of expressions on operand arrays."""
    shape = np.broadcast_shapes(*(a.shape for a in operands))
    attributes = {"expressions": tuple(roots), "label": "test", "dtype": dtype, "formula": None}
    kinds = tuple(ArrayType(a.shape, str(a.dtype)) for a in operands)
    return Call(kinds, (ArrayType(shape, dtype),) * len(attributes["expressions"]), attributes)


def launches_of(call):
    return registry["elementwise"].cuda_rows(call, DEVICE)


def check(roots, operands, dtype, rtol=1e-6):
    call = call_of(roots, operands, dtype)
    found = run_launches(launches_of(call), call, operands)
    for value, expected in zip(found, registry["elementwise"].reference(call, *operands), strict=True):
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=0 if dtype == "float64" else 1e-30)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "attributes"), CASES)
def test_every_formula_and_its_gradients_on_edge_values(name, attributes, dtype):
    formula = FORMULAS[name]
    count = formula.operands(3 if formula.arity is None else None)
    random = np.random.default_rng(0)
    roots = [formula.expression(count, **attributes), *(formula.vjp(k, count, **attributes) for k in range(count))]
    operands = [random.uniform(-2, 2, 51).astype(dtype) for _ in range(count + 1)]
    for k, array in enumerate(operands[:count]):
        array[: len(SPECIAL)] = np.roll(SPECIAL, 5 * k)
        array[len(SPECIAL) : 2 * len(SPECIAL)] = SPECIAL  # ties
    call = call_of(roots, operands, dtype)
    found = run_launches(launches_of(call), call, operands)
    for value, expected in zip(found, registry["elementwise"].reference(call, *operands), strict=True):
        rtol = (
            1e-5 if dtype == "float32" else 1e-13
        )  # a function's last bits, as NumPy's of arrays and of numbers differ
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6 if dtype == "float32" else 1e-15)


def test_signs_of_zero_and_ties_of_the_first():
    zeros = np.array([0.0, -0.0, 0.0, -0.0, 5.0, np.nan], "float32")
    others = np.array([-0.0, 0.0, 0.0, -0.0, np.nan, 5.0], "float32")
    larger, smaller, negative = check(
        [FORMULAS[n].expression(2) for n in ("maximum", "minimum")] + [-x], [zeros, others], "float32"
    )
    for found in (larger, smaller):
        np.testing.assert_array_equal(np.signbit(found[:4]), np.signbit(zeros[:4]))
    np.testing.assert_array_equal(np.signbit(negative[:4]), ~np.signbit(zeros[:4]))


SHAPES = [
    [(1,), (1,), (1, 1)],
    [(7, 5), (5,), (7, 1)],
    [(2, 3, 4), (3, 1), ()],
    [(3, 1, 5), (2, 3, 4, 5), (4, 1)],
    [(2, 1, 2, 1, 2), (1, 3, 1, 3, 1), (2, 3, 2, 3, 2)],
    [(70,), (1,), (70,)],
    [(0, 3), (3,), (1,)],
    [(3, 0), (0,), (3, 1)],
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_operands_broadcast(shapes, dtype):
    random = np.random.default_rng(0)
    operands = [random.uniform(0.5, 2, shape).astype(dtype) for shape in shapes]
    check([fma(x, y, z), x - y * z], operands, dtype)


def test_elements_beyond_two_to_the_31_are_found_by_64_bits():
    """The kernel for those, on a few elements."""
    random = np.random.default_rng(0)
    operands = [random.uniform(0.5, 2, shape) for shape in ((3, 1, 5), (2, 3, 4, 5))]
    out = np.full((2, 3, 4, 5), np.nan)
    launch = cuda_launch(
        "tapeprop.ops.elementwise.cuda:loop",
        [(Ref("operand", 0), (15,)), (Ref("operand", 1), (120,)), (Ref("result"), (120,))],
        [120, 3, inverse(3), 4, inverse(4), 5, inverse(5)],
        grid=(2, 1, 1),
        block=(4, 1, 1),
        expressions=encode([x * y]),
        dtype="float64",
        classes=(".*.*", "****"),
        axes=4,
        wide=True,
    )
    assert run_on({"operand": operands, "result": [out]}, [launch]) == 0
    np.testing.assert_array_equal(out, operands[0] * operands[1])


def test_a_hyper_parameter_of_float64_is_rounded_once():
    random = np.random.default_rng(0)
    weights, rate = random.standard_normal(37).astype("float32"), np.array([0.1])
    call = call_of([x - y * x], [weights, rate], "float32")
    (found,) = run_launches(launches_of(call), call, [weights, rate])
    np.testing.assert_array_equal(found, evaluate([x - y * x], [weights, np.float32(0.1)], np.float32)[0])


def test_constants_alone_and_operands_that_nobody_reads():
    random = np.random.default_rng(0)
    operands = [random.standard_normal(9).astype("float32") for _ in range(2)]
    check([constant(np.inf), constant(-0.0), constant(1e-300), y], operands, "float32")


@pytest.mark.parametrize("terms", [5, 30, 60])
def test_chains_of_any_length(terms):
    """Longer ones have fewer elements under way at once."""
    total = x
    for k in range(terms):
        total = total * y + float(k)
    random = np.random.default_rng(0)
    check([total, total - x], [random.uniform(-1, 1, 41) for _ in range(2)], "float64", rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_results_may_take_the_place_of_operands(dtype, size):
    """Each result in the place of the other's operand; a third operand is repeated."""
    random = np.random.default_rng(size)
    a, b, c = (random.uniform(0.5, 2, shape).astype(dtype) for shape in ((3, size), (3, size), (size,)))
    roots = [x * z + y, where(x < y, x, exp(-y))]
    call = call_of(roots, [a, b, c], dtype)
    expected = registry["elementwise"].reference(call, a, b, c)
    assert run_on({"operand": [a, b, c], "result": [b, a]}, launches_of(call)) == 0
    np.testing.assert_allclose([b, a], expected, rtol=1e-6)


def test_strided_and_gathered_operands():
    random = np.random.default_rng(0)
    source, table = random.standard_normal(40), random.integers(0, 40, 13).astype("int32")
    out = np.full(13, np.nan)
    launch = cuda_launch(
        "tapeprop.ops.elementwise.cuda:loop",
        [(Ref("operand", 0), (40,)), (Ref("operand", 0), (40,)), (Ref("operand", 1), (13,)), (Ref("result"), (13,))],
        [13, 39, -3],
        grid=(2, 1, 1),
        block=(4, 1, 1),
        expressions=encode([x - y]),
        dtype="float64",
        classes=("strided", "gathered"),
    )
    assert run_on({"operand": [source, table], "result": [out]}, [launch]) == 0
    np.testing.assert_array_equal(out, source[39::-3][:13] - source[table])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int64"}, "float32 or float64, not int64"),
        ({"classes": ("*", "**")}, "got '\\*\\*'"),
        ({"classes": ("*", "vector")}, "got 'vector'"),
        ({"classes": ("*",)}, "use input 1"),
    ],
)
def test_what_does_not_hold_together_is_refused(change, words):
    from tapeprop.ops.elementwise.cuda import loop

    with pytest.raises(ValueError, match=words):
        loop(**{"expressions": encode([x + y]), "dtype": "float32", "classes": ("*", "*"), **change})
