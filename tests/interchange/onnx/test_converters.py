"""Each family of converters against NumPy, with what ONNX' own cases leave out: modes, old forms, limits of the numbers."""

import numpy as np
import pytest
from onnx_text import run

from tapeprop.errors import GraphError

RANDOM = np.random.default_rng(7)
X = RANDOM.standard_normal((3, 4)).astype(np.float32)
Y = RANDOM.standard_normal((3, 4)).astype(np.float32)
IMAGES = RANDOM.standard_normal((2, 3, 4, 5)).astype(np.float32)
INF = np.float32(np.inf)


def same(found, wanted, tolerance=1e-6):
    found = np.asarray(found)
    assert found.shape == np.shape(wanted)
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


# ---- element by element


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Add(x, z) m = Mul(s, x) d = Sub(m, z) y = Div(d, s)", ((X + Y) * X - Y) / (X + Y)),
        ("a = Abs(x) e = Exp(x) s = Sqrt(a) l = Log(e) y = Max(s, l, z)", np.maximum(np.maximum(np.sqrt(abs(X)), X), Y)),
        ("s = Sum(x, z, x) m = Mean(s, z) y = Min(m, x)", np.minimum((2 * X + 2 * Y) / 2, X)),
        ("f = Floor(x) c = Ceil(x) y = Sub(c, f)", np.ceil(X) - np.floor(X)),
        ("s = Swish<alpha = 2.0>(x) y = Neg(s)", -X / (1 + np.exp(-2 * X))),
        ("y = Selu<alpha = 1.5, gamma = 2.0>(x)", 2 * np.where(X > 0, X, 1.5 * np.expm1(X))),
        ("y = Celu<alpha = 0.5>(x)", np.where(X > 0, X, 0.5 * np.expm1(X / 0.5))),
        ("y = HardSigmoid<alpha = 0.7, beta = 0.3>(x)", np.clip(0.7 * X + 0.3, 0, 1)),
        ("y = Shrink<bias = 0.1, lambd = 0.4>(x)", np.where(X < -0.4, X + 0.1, np.where(X > 0.4, X - 0.1, 0))),
    ],
)  # fmt: skip
def test_elementwise(body, wanted):
    inputs = {"x": X, "z": Y} if "z" in body else {"x": X}
    same(run(body, opset=24, **inputs), wanted)


def test_rounding_takes_halves_to_even_and_keeps_large_numbers():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 8388609.0, 2.0**40, -3.4e38, 1e-40], np.float32)
    same(run("y = Round(x)", x=x), np.round(x), 0)


def test_hyperbolic_functions_near_0_and_far_off():
    x = np.array([1e-12, -1e-4, 0.3, 2.0, 89.0, -89.0, 20.0], np.float32)
    wide = x.astype(np.float64)
    sinh, cosh = run("s = Sinh(x) c = Cosh(x)", outputs="s c", x=x)
    np.testing.assert_allclose(sinh, np.sinh(wide), rtol=1e-5)  # e^(x/2) squared doubles its error
    np.testing.assert_allclose(cosh, np.cosh(wide), rtol=1e-5)


@pytest.mark.parametrize("exponent", [np.float32(2), np.array([2], np.int64), np.array([[0.5], [1], [3]], np.float32)])
def test_power(exponent):
    same(run("y = Pow(x, e)", {"e": exponent}, x=abs(X)), abs(X) ** exponent)


def test_clip_of_crossed_bounds_gives_the_upper_one():
    same(run("y = Clip(x, low, high)", {"low": np.float32(1), "high": np.float32(-1)}, x=X), np.full(X.shape, -1.0))
    same(run("y = Clip(x, low)", {"low": np.float32(0.1)}, x=X), np.maximum(X, np.float32(0.1)))


def test_the_slope_of_prelu_broadcasts():
    slope = np.array([0.1, 0.2, 0.3], np.float32)
    wanted = np.where(IMAGES < 0, IMAGES * slope[:, None, None], IMAGES)
    same(run("y = PRelu(x, s)", {"s": slope[:, None, None]}, x=IMAGES), wanted)
    same(run("y = PRelu(x, s)", {"s": slope}, x=IMAGES), wanted)  # as PyTorch wrote it once


# ---- truth values


def test_truth_values_are_numbers():
    a, b = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    found = run("n = Not(a) c = And(a, b) d = Or(a, b) e = Xor(a, b)", outputs="n c d e", a=a, b=b)
    for result, wanted in zip(found, [~a, a & b, a | b, a ^ b], strict=True):
        same(result, wanted.astype(np.float32), 0)


def test_comparisons_choose():
    body = "g = GreaterOrEqual(x, z) l = Less(x, t) c = And(g, l) y = Where(c, x, z)"
    same(run(body, {"t": np.float32(1)}, x=X, z=Y), np.where((Y <= X) & (X < 1), X, Y))
    found = run("y = Where(c, x, z)", c=X > 0, x=X, z=np.float32(3).reshape(1, 1))
    same(found, np.where(X > 0, X, 3))


def test_what_is_no_number_is_found():
    x = np.array([np.nan, INF, -INF, 0, 1], np.float32)
    nan, low = run("n = IsNaN(x) i = IsInf<detect_positive = 0>(x)", outputs="n i", opset=20, x=x)
    same(nan, [1, 0, 0, 0, 0])
    same(low, [0, 0, 1, 0, 0])


# ---- reductions


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ReduceSum", np.sum),
        ("ReduceMean", np.mean),
        ("ReduceMax", np.max),
        ("ReduceMin", np.min),
        ("ReduceProd", np.prod),
        ("ReduceL1", lambda x, **o: np.sum(abs(x), **o)),
        ("ReduceL2", lambda x, **o: np.sqrt(np.sum(x * x, **o))),
        ("ReduceSumSquare", lambda x, **o: np.sum(x * x, **o)),
        ("ReduceLogSum", lambda x, **o: np.log(np.sum(x, **o))),
        ("ReduceLogSumExp", lambda x, **o: np.log(np.sum(np.exp(x), **o))),
    ],
)
def test_reductions(name, wanted):
    x = abs(IMAGES) + np.float32(0.1)
    axes = {"a": np.array([-1, 1])}
    same(run(f"y = {name}<keepdims = 0>(x, a)", axes, opset=18, x=x), wanted(x, axis=(1, 3)), 1e-5)
    same(run(f"y = {name}(x)", opset=18, x=x), wanted(x, axis=(0, 1, 2, 3), keepdims=True), 1e-5)
    if name != "ReduceSum":  # whose axes are an input since version 13
        same(run(f"y = {name}<axes = [2]>(x)", opset=17, x=x), wanted(x, axis=(2,), keepdims=True), 1e-5)


def test_a_reduction_over_no_axes_still_does_the_rest():
    options = "<noop_with_empty_axes = 1, keepdims = 0>"
    body = f"a = ReduceSumSquare{options}(x) b = ReduceL2{options}(x) c = ReduceProd{options}(x)"
    for found, wanted in zip(run(body, outputs="a b c", opset=18, x=X), [X * X, abs(X), X], strict=True):
        same(found, wanted)


def test_the_logarithm_of_a_sum_of_powers_bears_infinities():
    x = np.array([[800, 801], [-INF, -INF], [INF, 0], [-900, -900]], np.float32)
    found = run("y = ReduceLogSumExp<axes = [1], keepdims = 0>(x)", x=x)
    same(found, [801 + np.log1p(np.exp(-1)), -np.inf, np.inf, -900 + np.log(2)])


def test_running_sums_do_not_spread_infinities():
    x = np.array([[1, 2, INF, 4, 5]], np.float32)
    body = "a = CumSum(x, k) b = CumSum<reverse = 1, exclusive = 1>(x, k)"
    forward, backward = run(body, {"k": np.int64(1)}, outputs="a b", x=x)
    same(forward, [[1, 3, np.inf, np.inf, np.inf]])
    same(backward, [[np.inf, np.inf, 9, 5, 0]])


def test_normalisation_by_a_norm_of_0_gives_zeros():
    x = np.array([[3, -4], [0, 0]], np.float32)
    one, two = run("a = LpNormalization<p = 1>(x) b = LpNormalization<axis = 1>(x)", outputs="a b", x=x)
    same(one, [[3 / 7, -4 / 7], [0, 0]])
    same(two, [[0.6, -0.8], [0, 0]])


# ---- products


def test_gemm_scales_transposes_and_adds():
    c = np.array([[1], [2], [3]], np.float32)
    body = "y = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(a, b, c)"
    a, b = RANDOM.standard_normal((4, 3)).astype(np.float32), RANDOM.standard_normal((4, 5)).astype(np.float32)
    same(run(body, {"c": c}, a=a, b=b), 0.5 * a.T @ b + 2 * c)


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,)), ((5, 1, 3, 4), (2, 4, 6))])
def test_matmul_of_vectors_and_stacks(shapes):
    a, b = (RANDOM.standard_normal(shape).astype(np.float32) for shape in shapes)
    same(run("y = MatMul(a, b)", a=a, b=b), a @ b, 1e-5)


EQUATIONS = {
    "ij,jk,kl->il": [(2, 3), (3, 4), (4, 5)],
    "b...i,...ij->b...j": [(2, 6, 3), (6, 3, 4)],
    "...ij,...jk": [(2, 1, 3, 4), (5, 4, 2)],
    "iij,jk->ik": [(3, 3, 2), (2, 4)],
    "i,j->ij": [(3,), (4,)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation):
    arrays = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in zip("abc", EQUATIONS[equation])}
    found = run(f'y = Einsum<equation = "{equation}">({", ".join(arrays)})', **arrays)
    same(found, np.einsum(equation, *arrays.values()), 1e-5)


# ---- shapes and places


def test_shapes():
    body = """
        r = Reshape(x, to) t = Transpose<perm = [1, 0, 2]>(r) u = Unsqueeze(t, front) q = Squeeze(u, front)
        f = Flatten<axis = -1>(q) e = Expand(f, wide) y = Tile(e, twice)
    """
    known = {"to": [0, -1, 5], "front": [0], "wide": [2, 1, 5], "twice": [1, 2, 3]}
    found = run(body, {name: np.array(value) for name, value in known.items()}, x=IMAGES)
    flat = IMAGES.reshape(2, 12, 5).transpose(1, 0, 2).reshape(24, 5)
    same(found, np.tile(np.broadcast_to(flat, (2, 24, 5)), (1, 2, 3)), 0)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks_are_channels_and_back(mode):
    x = RANDOM.standard_normal((2, 12, 3, 5)).astype(np.float32)
    body = f'd = DepthToSpace<blocksize = 2, mode = "{mode}">(x) y = SpaceToDepth<blocksize = 2, mode = "{mode}">(d)'
    wide, back = run(body, outputs="d y", opset=28, x=x)
    same(back, x, 0)
    assert wide[1, 2, 4, 7] == x[1, 3 * 1 + 2 if mode == "DCR" else 4 * 2 + 1, 2, 3]


@pytest.mark.parametrize(
    ("key", "starts", "ends", "steps"),
    [
        (np.s_[:, ::-1], [-1], [-(2**63)], [-1]),
        (np.s_[:, 3:0:-2], [2**62], [0], [-2]),
        (np.s_[:, 1:], [1], [2**63 - 1], [1]),
        (np.s_[:, :-1], [-100], [-1], [1]),
        (np.s_[:, -2:], [-2], [100], [1]),
    ],
)
def test_slices(key, starts, ends, steps):
    known = {"s": starts, "e": ends, "a": [-1], "d": steps}
    found = run("y = Slice(x, s, e, a, d)", {name: np.array(value) for name, value in known.items()}, x=X)
    same(found, X[key], 0)


def test_parts_are_cut_and_joined_again():
    found = run("a, b, c = Split<axis = 1>(x, s) y = Concat<axis = -1>(c, a, b)", {"s": np.array([1, 1, 2])}, x=X)
    same(found, X[:, [2, 3, 0, 1]], 0)
    last = run("a, b, y = Split<axis = 3, num_outputs = 3>(x)", opset=18, x=IMAGES)
    same(last, IMAGES[..., 4:], 0)


def test_gather_by_known_numbers_and_by_data():
    known = {"one": np.int64(-1), "some": np.array([[0, -1], [2, 2]])}
    one, some = run("a = Gather<axis = 1>(x, one) b = Gather<axis = 2>(x, some)", known, outputs="a b", x=IMAGES)
    same(one, IMAGES[:, -1], 0)
    same(some, IMAGES[:, :, known["some"]], 0)
    fed = np.array([[2, 0], [1, 1]], np.int32)
    same(run("y = Gather<axis = 1>(x, i)", x=IMAGES, i=fed), IMAGES[:, fed], 0)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode):
    known = {"p": np.array([1, 2, 0, 1]), "v": np.float32(3), "a": np.array([-1, 1])}
    options = {"constant_values": 3} if mode == "constant" else {}
    found = run(f'y = Pad<mode = "{mode}">(x, p, v, a)', known, opset=19, x=IMAGES)
    same(found, np.pad(IMAGES, [(0, 0), (2, 1), (0, 0), (1, 0)], mode, **options), 0)


def test_negative_pads_cut():
    found = run("y = Pad(x, p)", {"p": np.array([-1, 2, 0, -3])}, x=X)
    same(found, np.pad(X[1:, :1], [(0, 0), (2, 0)]), 0)


def test_triangles():
    body = "u = Trilu(x, k) l = Trilu<upper = 0>(x)"
    x = np.where(X[0, 3] == X, INF, X)  # outside of the triangle nothing is left of it
    upper, lower = run(body, {"k": np.int64(1)}, outputs="u l", x=x)
    same(upper, np.triu(x, 1), 0)
    same(lower, np.tril(x), 0)


def test_one_hot_counts_from_both_ends():
    known = {"d": np.int64(3), "v": np.array([-1, 5], np.float32)}
    found = run("y = OneHot<axis = 1>(i, d, v)", known, i=np.array([[0, 2], [-1, 3]]))
    wanted = np.full((2, 3, 2), -1.0)
    wanted[0, 0, 0] = wanted[0, 2, 1] = wanted[1, 2, 0] = 5
    same(found, wanted, 0)


# ---- losses


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_weigh_classes_and_leave_a_label_out(reduction):
    labels = RANDOM.integers(0, 3, (2, 4, 5))
    labels[0, 0] = 7
    weights = np.array([0.5, 2, 1], np.float32)
    options = f'<reduction = "{reduction}", ignore_index = 7>'
    body = f"loss, l = SoftmaxCrossEntropyLoss{options}(x, t, w) again = NegativeLogLikelihoodLoss{options}(l, t, w)"
    found = run(body, {"w": weights}, outputs="loss l again", x=IMAGES, t=labels)
    logs = IMAGES - np.log(np.exp(IMAGES).sum(1, keepdims=True))
    each = np.where(labels == 7, 0, weights[labels % 7])
    losses = -each * np.take_along_axis(logs, (labels % 7)[:, None], 1)[:, 0]
    wanted = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / each.sum()}[reduction]
    same(found[0], wanted, 1e-5)
    same(found[1], logs, 1e-5)
    same(found[2], wanted, 1e-5)


# ---- types


def test_casts():
    whole, truth = run("a = Cast<to = 1>(i) b = Cast<to = 9>(a)", outputs="a b", i=np.array([0, -3, 5]))
    assert str(whole.dtype) == str(truth.dtype) == "float32"
    same(whole, [0, -3, 5], 0)
    same(truth, [0, 1, 1], 0)
    wide = run("y = Cast<to = 11>(x)", x=X)
    assert str(wide.dtype) == "float64"
    same(wide, X, 0)


def test_a_model_in_float64():
    x = X.astype(np.float64)
    found = run("m = MatMul(x, w) y = Tanh(m)", {"w": x.T}, x=x)
    assert found.dtype == np.float64
    same(found, np.tanh(x @ x.T), 1e-14)


# ---- refusals


@pytest.mark.parametrize(
    ("body", "known", "message"),
    [
        ("y = Softmax<axis = 2>(x)", {}, r"'Softmax_0' \(Softmax\): expected an axis from -2 to 1, got 2"),
        ('y = Gelu<approximate = "erf">(x)', {}, 'approximate to be "none" or "tanh", got \'erf\''),
        ("y = Cast<to = 10>(x)", {}, "to cast data to, got float32 to float16: leave the cast out"),
        ("y = Cast<to = 99>(x)", {}, "a type of numbers, got 99"),
        ('y = Pad<mode = "other">(x, k)', {"k": [0] * 4}, "mode to be one of constant, edge, reflect, wrap"),
        ('y = Pad<mode = "edge">(x, k)', {"k": [2**30, 0, 0, 0]}, "axes of at most 4194304 elements here, got 1073741824"),
        ("y = Pad(x, k)", {"k": [0] * 3}, "4 widths, two for each axis, got 3"),
        ("y = Squeeze(x, k)", {"k": [0]}, r"axes of size 1, got axes \[0\] of \(3, 4\)"),
        ("y = Gather(x, k)", {"k": [3]}, "whole numbers from -3 to 2"),
        ("y = Reshape(x, k)", {"k": [5, -1]}, "'Reshape_0'.*the sizes beside -1 must divide it"),
        ("y = Slice(x, k, k)", {"k": [0]}, "expected at least one element"),
        ("y = Expand(x, k)", {"k": [2, 4]}, r"a shape that \(3, 4\) broadcasts with"),
        ('y = Einsum<equation = "ijk">(x)', {}, "3 letters|letters for an operand of 2 axes"),
        ("y = OneHot(x, k, x)", {"k": [3]}, "input 2 to be known when the model is read, got the tensor 'x'"),
        ("a, y = Split<num_outputs = 3>(x)", {}, "3 outputs, got 2"),
        ("y = Erff(x)", {}, r"'Erff_0': expected an operator that tapeprop reads \(docs/onnx.md\), got Erff"),
    ],
)  # fmt: skip
def test_refusals(body, known, message):
    with pytest.raises(GraphError, match=message):
        run(body, {name: np.array(value) for name, value in known.items()}, opset=20, x=X)
