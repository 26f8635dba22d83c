"""Ops made of a Numba kernel by `@tp.ops.kernel`: in graphs, in the catalogue's checks, and what can be wrong with them."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ops import test_catalogue as catalogue
from ops.test_add_an_op import CHECKS, check_cases

import tapeprop as tp
from tapeprop import ops
from tapeprop.compiler.gradient import gradients
from tapeprop.errors import CompileError, DTypeError, GraphError, ShapeError
from tapeprop.layers import Dense, Lambda, Layer
from tapeprop.ops import Sample
from tapeprop.ops.own.fingerprint import fingerprint

RNG = np.random.default_rng(2)
SMOOTH = 1e-6


def drawn(*shapes):
    return lambda random: [random.standard_normal(shape) for shape in shapes]


@ops.kernel
class Cube:
    """y = a x ** 3 + b, as a kernel for one worker."""

    flat = True

    def kernel(x, y, a=1.0, b=0):
        for i in range(x.size):
            y[i] = a * x[i] * x[i] * x[i] + b

    def gradient(x, dy, a):
        return 3.0 * a * x * x * dy

    def samples():
        return [Sample(drawn((3, 5)), {"a": 1.5, "b": 2}), Sample(drawn(()), {"a": 1.0, "b": 0})]


@ops.kernel
class Distances:
    """Squared distances of the rows of a (N, C) to those of b (M, C), and the nearest of them."""

    results = ("d", "nearest")

    def kernel(a, b, d, nearest, worker, workers):
        for i in range(a.shape[0] * worker // workers, a.shape[0] * (worker + 1) // workers):
            best = np.inf
            for j in range(b.shape[0]):
                total = 0.0
                for k in range(a.shape[1]):
                    total += (a[i, k] - b[j, k]) ** 2
                d[i, j] = total
                best = min(best, total)
            nearest[i] = best

    def shape(a, b):
        return (a.shape[0], b.shape[0]), (a.shape[0],)

    def gradient(a, b, d, nearest, dd, dnearest):
        flow = dd + ops.reshape(dnearest, (-1, 1)) * ops.where(d <= ops.reshape(nearest, (-1, 1)), 1.0, 0.0)
        rows = ops.reshape(ops.sum(flow, axis=1), (-1, 1))
        columns = ops.reshape(ops.sum(flow, axis=0), (-1, 1))
        return 2.0 * (rows * a - flow @ b), 2.0 * (columns * b - ops.transpose(flow) @ a)

    def reference(a, b):
        d = ((a[:, None] - b[None]) ** 2).sum(-1)
        return d, d.min(1)

    def samples():
        return [
            Sample(drawn((5, 3), (4, 3)), depth=3, gradient=(0, 1)),
            Sample(drawn((1, 7), (2, 7)), depth=7, gradient=(0, 1)),
        ]


def graph_of(function, shape=(None, 3), **options):
    node = tp.LayerNode(Lambda(function), name="own")
    return tp.LayerGraph({node: []}, root=node, term=node).build(shape, **{"dtype": "float64", **options})


OPS = pytest.mark.parametrize("op", [Cube, Distances], ids=lambda op: op.name)


@OPS
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_of_the_catalogue_holds_for_it(op, check, monkeypatch):
    monkeypatch.setattr(catalogue, "registry", {op.name: op})  # what loops over all ops sees this one
    check_cases(op, check)


# ---- in graphs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_and_gradient_in_a_graph(dtype):
    graph = graph_of(lambda x: Cube(ops.tanh(x), a=2.0), dtype=dtype)
    X = RNG.standard_normal((4, 3)).astype(dtype)
    wide = np.tanh(X.astype("float64"))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(graph(X), 2 * wide**3, rtol=16 * eps, atol=16 * eps)
    np.testing.assert_allclose(graph.backward(), 6 * wide**2 * (1 - wide**2), rtol=32 * eps, atol=32 * eps)
    assert graph(X).dtype == dtype
    assert "Cube" in str(graph.tape)
    assert not len(graph.diagnose())


def test_trained_in_a_layer_with_a_parameter_for_an_operand():
    class Centres(Layer):
        """The distance to the nearest of four learned points."""

        def __init__(self):
            self.points = self.parameter((4, 2), "he", name="points")

        def trace(self, x):
            return Distances(x, self.points)[1]

    dense, centres = tp.LayerNode(Dense(3, 2), name="dense"), tp.LayerNode(Centres(), name="centres")
    graph = tp.LayerGraph({dense: [centres], centres: []}, root=dense, term=centres, seed=0)
    graph.build((None, 3), dtype="float64", workers=2)
    X, y = RNG.standard_normal((8, 3)), np.zeros(8)
    assert tp.gradcheck(graph, X) < SMOOTH
    graph.set_optimizer(tp.optimizers.SGD(lr=0.05))
    losses = graph.fit(X, y, loss=tp.losses.MSE(), epochs=20, batch_size=4, metrics=(), verbose=0)
    first, last = losses["loss"][0], losses["loss"][-1]
    assert last < first / 2


def test_in_a_formula_of_placeholders():
    x = tp.placeholder((None, 2), name="x", dtype="float64")
    f = tp.function(outputs=ops.sum(Cube(x, a=2.0)), inputs=[x])
    for count in (3, 5):
        X = RNG.standard_normal((count, 2))
        value, (gradient,) = f.value_and_grad(X)
        np.testing.assert_allclose(value, 2 * (X**3).sum(), rtol=1e-12)
        np.testing.assert_allclose(gradient, 6 * X**2, rtol=1e-14)


def test_gradients_of_gradients_go_through_it():
    from ops.op_runner import run

    def slope(x):
        y = Cube(x)
        first = gradients({y: ops.as_tensor(np.ones(4))}, [x])[x]
        return gradients({first: ops.as_tensor(np.ones(4))}, [x])[x]

    X = RNG.standard_normal(4)
    np.testing.assert_allclose(run(slope, X), 6 * X, rtol=1e-14)


def test_two_calls_with_other_attributes_are_two_kernels():
    X = RNG.standard_normal((2, 3))
    graph = graph_of(lambda x: Cube(x, a=2.0) - Cube(x, a=1.0) + Cube(x, b=1) - Cube(x, b=1))
    np.testing.assert_allclose(graph(X), X**3, rtol=1e-13, atol=1e-13)  # 1 is added and taken away


def test_it_is_copied_and_pickled_by_name():
    assert copy.deepcopy(Cube) is Cube
    assert pickle.loads(pickle.dumps(Distances)) is Distances
    assert Cube.__doc__ == "y = a x ** 3 + b, as a kernel for one worker."


# ---- edits, and the cache


def edited(source, scope=None):
    """The class K of some source text, as a session makes it."""
    scope = {"ops": ops, "np": np, "__name__": "session", **(scope or {})}
    exec(source, scope)
    return scope["K"]


TIMES = """
@ops.kernel
class K:
    flat = True
    def kernel(x, y):
        for i in range(x.size):
            y[i] = {body}
"""


def test_an_edited_kernel_is_never_met_by_stale_code():
    X = np.full((1, 3), 2.0)
    for body, expected in (("x[i] * 2.0", 4), ("x[i] * 3.0", 6), ("x[i] * 2.0", 4)):
        assert graph_of(edited(TIMES.format(body=body))).predict(X)[0, 0] == expected


def test_an_edited_helper_or_constant_is_noticed():
    import numba

    X = np.full((1, 3), 2.0)
    times = {factor: numba.njit(edited(f"def K(v):\n    return v * {factor}")) for factor in (2.0, 5.0)}
    for factor, helper in times.items():
        scope = {"helper": helper, "OFFSET": factor}
        op = edited(TIMES.format(body="helper(x[i]) + OFFSET"), scope)
        assert graph_of(op).predict(X)[0, 0] == 3 * factor


def test_a_helper_may_be_defined_later():
    scope = {"ops": ops}
    exec(TIMES.format(body="later(x[i])") + "\nimport numba\n@numba.njit\ndef later(v):\n    return v + 1.0\n", scope)
    assert graph_of(scope["K"]).predict(np.zeros((1, 3)))[0, 0] == 1


def test_a_fingerprint_counts_what_code_says_and_reads():
    def made(body, **scope):
        exec(f"def f(x):\n    {body}", scope)
        return fingerprint(scope["f"], "f")

    same = made("return x + k", k=1)
    assert made("return  x + k  # the same", k=1) == same
    different = [
        made("return x + k", k=2), made("return x + k", k=1.0), made("return x + k", k=True), made("return x + m", m=1),
        made("return x - k", k=1), made("return x + k[0]", k=(1, 2)), made("return x + k[0]", k=np.array([1, 2])),
        made("return x + k[0]", k=np.array([1, 3])), made("return k(x)", k=lambda v: v + 1),
        made("return k(x)", k=lambda v: v + 2), made("return k.sin(x)", k=np), made("return [x + 1 for _ in (1,)]"),
        made("return [x + 2 for _ in (1,)]"),
    ]  # fmt: skip
    assert len({same, *different}) == 1 + len(different)


SCRIPT = """
import numpy as np
import tapeprop as tp
from tapeprop.layers import Lambda

@tp.ops.kernel
class Half:
    flat = True
    def kernel(x, y):
        for i in range(x.size):
            y[i] = x[i] * 0.5

node = tp.LayerNode(Lambda(Half), name="half")
graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 2))
print(graph.predict(np.ones((1, 2))).tolist())
import sys
print("numba" in sys.modules)
"""


def test_in_a_script_and_cached_for_the_next_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    source = str(Path(tp.__file__).parents[1])
    environment = {**os.environ, "TAPEPROP_CACHE_DIR": str(tmp_path), "PYTHONPATH": source, "TAPEPROP_QUIET": "1"}
    printed = [
        subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for _ in range(2)
    ]
    assert [lines[0] for lines in printed] == ["[[0.5, 0.5]]"] * 2
    assert [lines[1] for lines in printed] == ["True", "False"]  # the second process compiles nothing


# ---- what can be wrong


def broken(text, header="kernel(x, y)", more=""):
    return f"@ops.kernel\nclass K:\n    flat = True\n    def {header}:\n        {text}\n{more}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y[0] = unknown(x[0])", r"op 'K': Numba cannot compile kernel\(\): NameError: name 'unknown' is not defined"),
        ("x[0] = 1.0", "it writes to an operand, which it may only read"),
        ("y[0] = np.zeros(3)[0]", "op='K'.*neither allocates"),
    ],
)
def test_a_kernel_that_does_not_compile(text, message):
    graph = graph_of(edited(broken(text)))
    with pytest.raises(CompileError, match=message):
        graph(np.ones((1, 3)))


def test_a_kernel_that_raises():
    graph = graph_of(edited(broken("raise ValueError('no')")))
    with pytest.raises(GraphError, match="node 'own': K: the kernel raised an exception"):
        graph.predict(np.ones((1, 3)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@ops.kernel\ndef K(x, y): pass", "expected a class, got <function K"),
        ("@ops.kernel\nclass K: pass", r"kernel K: expected a function kernel\(x, y\), got none"),
        ("@ops.kernel\nclass K:\n    kernel = 3", "expected kernel to be a function, got 3"),
        (broken("pass", "kernel(y)"), r"expected kernel\(operands, results.*got kernel\(y\)"),
        (broken("pass", "kernel(x, y, workers)"), "the two of the workers or neither"),
        (broken("pass", "kernel(x, y, *, a=1)"), "expected kernel"),
        (broken("pass", "kernel(self, x, y)"), "got self; leave it out"),
        (broken("pass", "kernel(x, y, a=[1, {}])"), "kernel K, a: expected a number, string, bool, None or a tuple"),
        (broken("pass", more="    results = 'y'\n"), "expected kernel"),
        (broken("pass", more="    def gradient(x, g): pass"), r"expected gradient\(\) to take some of x, y, dy, got g"),
    ],
)
def test_a_class_of_another_form(source, message):
    with pytest.raises(GraphError, match=message):
        edited(source)


def test_a_kernel_that_reads_what_has_no_value():
    op = edited(broken("y[0] = table['a']"), {"table": {"a": 1.0}})
    with pytest.raises(GraphError, match=r"kernel K: expected numbers.*got table, a dict; pass it as an operand"):
        graph_of(op)(np.ones((1, 3)))


def test_a_call_that_does_not_fit():
    x = tp.ops.as_tensor(np.ones((2, 3)))
    with pytest.raises(GraphError, match="Cube: expected 1 operands, x, got 2"):
        Cube(x, x)
    with pytest.raises(GraphError, match="Cube: expected the attributes a, b, got c"):
        Cube(x, c=1)
    with pytest.raises(GraphError, match=r"Cube, a: expected a number.*pass arrays as operands"):
        Cube(x, a=np.ones(3))
    with pytest.raises(DTypeError, match="Distances: expected operands of one floating dtype, got float64, float32"):
        Distances(x, ops.as_tensor(np.ones((2, 3), np.float32)))


def differentiated(more):
    graph = graph_of(edited(broken("y[0] = x[0]", more=more)))
    graph(np.ones((2, 3)))
    graph.backward()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("", GraphError, r"node 'own': K has no gradient; define gradient\(x, y, dy\) in the class, or stop_gradient"),
        (
            "    def gradient(dy): return ops.sum(dy)",
            ShapeError,
            r"gradient\(\): expected shape \(2, 3\) for operand 'x', got \(\)",
        ),
        ("    def gradient(dy): return dy, dy", GraphError, "one tensor for each of x, got 2"),
        (
            "    def gradient(dy): return ops.cast(dy, 'float32')",
            DTypeError,
            "expected float64 for operand 'x', got float32",
        ),
    ],
)
def test_a_gradient_that_is_missing_or_wrong(more, error, message):
    with pytest.raises(error, match=message):
        differentiated(more)


@pytest.mark.parametrize("shape", ["3", "(0,)", "None"])
def test_a_shape_that_is_none(shape):
    with pytest.raises(ShapeError, match=r"node 'own': K: expected shape\(\) to give a tuple of sizes >= 1, got"):
        graph_of(edited(broken("pass", more=f"    def shape(x): return {shape}")))
