"""Expression graphs: identity, safe rewrites, derivatives at the awkward places, printers, thousands of nodes."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading

import llvmlite.ir as ir
import numpy as np
import pytest

from tapeprop.ops.expression import (
    Scalar,
    absolute,
    constant,
    cos,
    cost,
    cuda_source,
    decode,
    derivative,
    emit,
    encode,
    equal,
    erf,
    evaluate,
    exp,
    expm1,
    floor,
    fma,
    input_scalar,
    inputs,
    inputs_of,
    less,
    less_equal,
    log,
    log1p,
    make,
    maximum,
    minimum,
    ordered,
    power,
    sigmoid,
    sin,
    sqrt,
    substitute,
    tan,
    tanh,
    to_text,
    where,
)
from tapeprop.ops.primitives import PRIMITIVES, numpy_fma, numpy_maximum, numpy_minimum, numpy_sigmoid
from tapeprop.ops.scalar.node import ARITY, _nodes
from tapeprop.targets.cpu.vector_math import VectorMath

INF, NAN = math.inf, math.nan
x, y, z = inputs(3)


def at(root: Scalar, *values: float, dtype: type = np.float64) -> float:
    """The value of an expression at one point."""
    return float(evaluate([root], [dtype(v) for v in values], dtype)[0])


def same(a: float, b: float) -> bool:
    """Equal, NaN and the sign of zero included."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


# ---- identity


def test_equal_expressions_are_one_object():
    assert sin(x) * 2 + y is sin(x) * 2 + y
    assert constant(0.0) is not constant(-0.0)
    assert constant(NAN) is constant(-NAN)
    assert x - y is not y - x
    assert copy.deepcopy(x * y) is x * y


def test_nodes_are_immutable_and_have_no_truth():
    with pytest.raises(AttributeError, match="immutable"):
        x.op = "add"
    with pytest.raises(TypeError, match="where"):
        bool(x < y)


def test_threads_make_one_object():
    found: list[Scalar] = []
    barrier = threading.Barrier(4)

    def build():
        barrier.wait()
        node = input_scalar(7)
        for k in range(300):
            node = node * 1.25 + k
        found.append(node)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(node is found[0] for node in found)


def test_nodes_die_with_their_last_use_even_deep_chains():
    gc.collect()
    before = len(_nodes)
    node = x
    for k in range(50_000):
        node = sin(node) * (k + 0.5)
    assert len(_nodes) > before + 50_000
    del node
    gc.collect()
    assert len(_nodes) <= before + 1  # the 0.5 may be in use elsewhere


def test_conditions_and_numbers_do_not_mix():
    with pytest.raises(TypeError, match=r"argument 0 of add must be a number; where\(c, 1, 0\)"):
        (x < y) + 1
    with pytest.raises(TypeError, match="argument 0 of select must be a condition"):
        where(x, 1, 2)
    with pytest.raises(ValueError, match="'cube' with 1 arguments"):
        make("cube", x)
    with pytest.raises(ValueError, match="from 0"):
        input_scalar(-1)


def test_numpy_numbers_are_operands():
    assert np.float32(2) * x is 2.0 * x
    assert x + np.float64(1.5) is x + 1.5


# ---- rewrites

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-320, 1e300, INF, -INF, NAN]


@pytest.mark.parametrize(
    ("simple", "build", "meaning"),
    [
        (x, lambda: x * 1, lambda v: v * 1.0),
        (x, lambda: 1 * x, lambda v: 1.0 * v),
        (x, lambda: x / 1, lambda v: v / 1.0),
        (-x, lambda: x * -1, lambda v: v * -1.0),
        (x * 0.25, lambda: x / 4, lambda v: v / 4.0),
        (x, lambda: x + -0.0, lambda v: v + -0.0),
        (x, lambda: -0.0 + x, lambda v: -0.0 + v),
        (x, lambda: x - 0.0, lambda v: v - 0.0),
        (x, lambda: make("neg", -x), lambda v: v),
        (abs(x), lambda: abs(-x), lambda v: abs(-v)),
        (abs(x), lambda: abs(abs(x)), lambda v: abs(abs(v))),
        (x - abs(x), lambda: x + -abs(x), lambda v: v - abs(v)),
        (abs(x) - x, lambda: -x + abs(x), lambda v: -v + abs(v)),
        (x + abs(x), lambda: x - -abs(x), lambda v: v + abs(v)),
        (x + 1, lambda: fma(x, 1, 1), lambda v: v + 1),
        (1 - x, lambda: fma(-1, x, 1), lambda v: 1 - v),
        (x * 3, lambda: fma(x, 3, -0.0), lambda v: v * 3 + -0.0),
        (x, lambda: where(x < 1, x, x), lambda v: v),
        (x, lambda: where(constant(1.0) < 2.0, x, y), lambda v: v),
        (x, lambda: x**1, lambda v: np.power(v, 1.0)),
        (constant(1.0), lambda: x**0, lambda v: np.power(v, 0.0)),
        (x * x, lambda: x**2, lambda v: np.power(v, 2.0)),
        (x * x * x, lambda: x**3, lambda v: np.power(v, 3.0)),
        ((x * x) * (x * x), lambda: x**4, lambda v: np.power(v, 4.0)),
        (1 / x, lambda: x**-1, lambda v: np.power(v, -1.0)),
    ],
)
def test_rewrites_keep_every_bit(simple, build, meaning):
    assert build() is simple
    with np.errstate(all="ignore"):
        for v in SPECIAL:
            assert same(at(build(), v), float(meaning(np.float64(v)))), v


def test_a_square_root_as_a_power_has_the_special_values_of_pow():
    """Annex F; NumPy takes sqrt for a scalar exponent 0.5, so its zeros and infinities are others."""
    cases = [(0.0, 0.0), (-0.0, 0.0), (INF, INF), (-INF, INF), (NAN, NAN), (-3.0, NAN), (16.0, 4.0)]
    assert all(same(at(x**0.5, v), root) for v, root in cases)
    assert "pow" not in {node.op for node in ordered([x**0.5])}


def test_unsafe_rewrites_are_not_made():
    assert (x + 0.0).op == "add"  # -0 + 0 = 0
    assert (x * 0).op == "mul"  # inf * 0 = NaN
    assert (x - x).op == "sub"
    assert (x / x).op == "div"
    assert (x / 3).op == "div"
    assert (x**-2).op == "pow"
    assert (0 - x).op == "sub"  # 0 - 0 = 0, -0 otherwise


def test_constants_fold_in_float64():
    assert constant(1.0) / 3 is constant(1 / 3)
    assert constant(1.0) / 0 is constant(INF)
    assert (constant(2.0) < 3).op == "less"


# ---- derivatives

SMOOTH = {
    "add": x + y, "sub": x - y, "mul": x * y, "div": x / y, "fma": fma(x, y, x), "neg": -x, "abs": abs(x),
    "maximum": maximum(x, y), "minimum": minimum(x, y), "select": where(x < y, x * y, y), "sqrt": sqrt(x),
    "exp": exp(x), "expm1": expm1(x), "log": log(x), "log1p": log1p(x), "tanh": tanh(x), "sigmoid": sigmoid(x),
    "erf": erf(x), "sin": sin(x), "cos": cos(x), "tan": tan(x), "pow": power(x, y), "floor": floor(x) * y,
    "chain": exp(-x * x) * sin(y / x) + x**2.5,
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("variable", [0, 1])
def test_derivative_is_the_central_difference(name, variable):
    rng = np.random.default_rng(0)
    points = [rng.uniform(0.3, 0.9, 50), rng.uniform(1.1, 1.9, 50)]
    root, step = SMOOTH[name], 1e-6
    above, below = ([p + sign * step * (k == variable) for k, p in enumerate(points)] for sign in (1, -1))
    difference = (evaluate([root], above)[0] - evaluate([root], below)[0]) / (2 * step)
    found = evaluate([derivative(root, variable)], points)[0]
    np.testing.assert_allclose(np.broadcast_to(found, 50), np.broadcast_to(difference, 50), rtol=1e-7, atol=1e-8)


def test_every_primitive_has_a_row_and_a_test():
    assert set(PRIMITIVES) == set(ARITY)
    assert set(PRIMITIVES) <= {node.op for root in SMOOTH.values() for node in ordered([root])} | {
        "less_equal",
        "equal",
    }


def test_derivative_takes_a_seed_and_subexpressions():
    assert derivative(where(x <= 0, 0.0, x), 0, z) is where(x <= 0, 0.0, z)
    inner = sin(x)
    assert derivative(inner * inner + x, inner) is inner + inner
    assert derivative(y, 0) is constant(0.0)
    assert derivative(x, 0) is constant(1.0)


def test_the_branch_not_taken_cannot_poison_the_derivative():
    elu = where(x < 0, expm1(x), x)
    assert at(derivative(elu, 0), 1000.0) == 1.0
    relu = where(x <= 0, 0.0, x)
    for outer in (sqrt, log, lambda t: 1 / t, lambda t: t**1.5, lambda t: log(t) / t):
        assert at(derivative(outer(relu), 0), -1.0) == 0.0
    assert at(derivative(sqrt(sqrt(relu)), 0), -1.0) == 0.0


def test_kinks_ties_and_edges_of_derivatives():
    assert at(derivative(absolute(x), 0), 0.0) == 0.0
    assert at(derivative(absolute(x), 0), -0.0) == 0.0
    assert math.isnan(at(derivative(absolute(x), 0), NAN))
    for tie in (maximum(x, y), minimum(x, y)):
        assert at(derivative(tie, 0), 2.0, 2.0) == at(derivative(tie, 1), 2.0, 2.0) == 0.5
        assert at(derivative(tie, 0), INF, INF) == 0.5
    assert at(derivative(power(x, y), 0), 0.0, 0.0) == 0.0
    assert at(derivative(power(x, y), 1), 0.0, 0.0) == 0.0
    assert at(derivative(power(x, y), 1), 0.0, 2.0) == 0.0
    assert at(derivative(power(x, y), 0), 0.0, 1.0) == 1.0
    assert at(derivative(power(x, y), 0), -2.0, 3.0) == 12.0
    assert at(derivative(erf(x), 0), 1e200) == 0.0


# ---- rebuilding and encoding


def test_substitute_inputs_and_subexpressions():
    assert substitute(x * y + x, {0: y, 1: x}) is y * x + y  # at once, not one after the other
    assert substitute(x * y, {0: 1.0}) is y
    assert substitute(sin(x) * x, {sin(x): y}) is y * x
    assert substitute(power(x, y), {1: 2}) is x * x
    assert substitute(x, {x: z}) is z


def test_inputs_and_cost():
    shared = exp(x)
    assert inputs_of([shared * z, shared]) == (0, 2)
    assert inputs_of([constant(1)]) == ()
    assert cost([shared * z, shared]) == PRIMITIVES["exp"].flops + 1
    assert cost([x]) == 0


def test_encode_is_canonical_and_decodes_to_the_same_nodes():
    roots = [where(x <= -0.0, 0.0, fma(x, y, NAN)), sin(x), constant(-INF)]
    encoded = encode(roots)
    assert all(a is b for a, b in zip(decode(encoded), roots, strict=True))
    assert eval(repr(encoded)) == encoded
    assert hash(encoded) == hash(encode(roots))
    assert encode([x + 0.0]) != encode([x * 1 + constant(0.0) * -1])
    assert pickle.loads(pickle.dumps(roots))[0] is roots[0]


# ---- printers


def test_evaluate_keeps_the_dtype_and_broadcasts():
    a, b = np.ones((3, 1), np.float32), np.arange(4, dtype=np.float32)
    (result,) = evaluate([x * 0.1 + sin(y)], [a, b])
    assert result.dtype == np.float32
    assert result.shape == (3, 4)
    assert evaluate([x + y], {0: b, 1: 2.0})[0].dtype == np.float32
    every = [root for name, root in SMOOTH.items() if name != "chain"]
    for dtype in (np.float32, np.float64):
        assert {v.dtype for v in evaluate(every, [dtype(0.5), np.full(2, 1.5, dtype)])} == {np.dtype(dtype)}
    assert evaluate([constant(1) + 2], [])[0] == 3.0


def test_to_text_is_what_one_would_write():
    cases = {
        x - (y - z): "x0 - (x1 - x2)",
        x - y - z: "x0 - x1 - x2",
        (x + y) * z: "(x0 + x1) * x2",
        x / (y * z): "x0 / (x1 * x2)",
        (x**y) ** z: "(x0 ** x1) ** x2",
        x ** (y**z): "x0 ** x1 ** x2",
        -(x * y): "-(x0 * x1)",
        -x * y: "-x0 * x1",
        where(x <= 0, 0.1 * x, x): "where(x0 <= 0, 0.1 * x0, x0)",
        exp(x) / (1 + exp(x)): "t0 = exp(x0); t0 / (1 + t0)",
    }
    for root, text in cases.items():
        assert to_text(root).replace("** (x1 ** x2)", "** x1 ** x2") == text
    assert to_text(fma(x, y, z), ["scale", "x", "shift"]) == "fma(scale, x, shift)"


@pytest.mark.parametrize("name", SMOOTH)
def test_text_is_python_of_the_same_value(name):
    """Read back by Python over NumPy's functions."""
    space = {f: getattr(np, f) for f in "sqrt exp expm1 log log1p tanh sin cos floor where maximum minimum abs".split()}
    space |= {"erf": math.erf, "sigmoid": lambda v: 1 / (1 + np.exp(-v)), "fma": lambda a, b, c: a * b + c}
    for root in (SMOOTH[name], derivative(SMOOTH[name], 0)):
        space |= {"x0": np.float64(0.7), "x1": np.float64(1.3)}
        *bindings, last = to_text(root).split("; ")
        for binding in bindings:
            target, text = binding.split(" = ", 1)
            space[target] = eval(text, space)
        assert float(eval(last, space)) == pytest.approx(at(root, 0.7, 1.3), rel=1e-8)  # constants print 9 digits


def test_cuda_source_runs_as_python():
    """The text, with NumPy's functions for those of the language, computes what `evaluate` does, in float32."""

    class Cuda:
        selp = staticmethod(lambda condition, a, b: a if condition else b)

    language = {name: getattr(np, name) for name in "sqrt exp expm1 log log1p tanh sin cos power floor".split()}
    language |= {"cuda": Cuda, "number": np.float32, "product": np.multiply, "inf": math.inf, "nan": math.nan}
    language |= {"larger": numpy_maximum, "smaller": numpy_minimum, "sigmoid": numpy_sigmoid, "fma": numpy_fma}
    language["erf"] = lambda v: np.float32(math.erf(v))

    points = [(0.7, 1.3), (-0.5, 2.0), (2.0, 2.0), (0.0, -1.0), (INF, 1.0), (NAN, 1.0)]
    for name, forward in SMOOTH.items():
        roots = [forward, derivative(forward, 0), less_or_inf(forward)]
        lines = cuda_source(roots, ["x", "y"], ["a", "b", "c"])
        for point in points:
            space = {**language, "x": np.float32(point[0]), "y": np.float32(point[1])}
            with np.errstate(all="ignore"):
                exec("\n".join(lines), space)
            expected = [at(root, *point, dtype=np.float32) for root in roots]
            found = [float(space[result]) for result in "abc"]
            assert all(space[result].dtype == np.float32 for result in "abc"), name
            np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=f"{name} {point}")


def less_or_inf(root: Scalar) -> Scalar:
    """Something with infinite constants and both other comparisons."""
    return where(less(root, INF), where(less_equal(root, -INF), -INF, root), where(equal(root, INF), 1.0, 2.0))


def test_emit_takes_values_of_nodes_computed_before():
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.DoubleType()]), "f")
    vector = VectorMath(ir.IRBuilder(function.append_basic_block()), 64, 1)
    before = vector.value(3.0)
    (result,) = emit([exp(x) * 1.0], vector, {exp(x): before})
    assert result is before
    assert not function.entry_basic_block.instructions
    with pytest.raises(KeyError, match="input 0"):
        emit([x], vector, {1: before})


# ---- size


def test_thousands_of_levels():
    node = x
    for k in range(5_000):
        node = where(node < k, node * 1.0001 + y, tanh(node))
    gradient = derivative(node, 1)
    (again,) = decode(encode([gradient]))
    assert again is gradient
    assert np.isfinite(at(gradient, 0.1, 0.2))
    assert len(to_text(node)) < 200 * len(ordered([node]))
    assert len(cuda_source([node], ["x", "y"], ["r"])) < 60_000
    assert inputs_of([substitute(gradient, {1: z})]) == (0, 2)
    assert pickle.loads(pickle.dumps(gradient)) is gradient
    assert "args" in repr(node)
