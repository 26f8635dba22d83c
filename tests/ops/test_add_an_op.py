"""docs/internals/add-an-op.md keeps its word: the file it shows is all that an op takes."""

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
from ops import test_catalogue as catalogue
from test_docs import fenced

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import Lambda
from tapeprop.ops import registry

PAGE = Path(__file__).parents[2] / "docs" / "internals" / "add-an-op.md"
BLOCKS = [block for block in fenced(PAGE.read_text(encoding="utf-8")) if block.language == "python"]
NAME = "cumulative_sum"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The page's file, written to an empty folder and imported; the registry is put back afterwards."""
    (source,) = [block.code for block in BLOCKS if block.mark == f"no-run file={NAME}.py"]
    (tmp_path / f"{NAME}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(registry)
    try:
        yield importlib.import_module(NAME)
    finally:
        sys.modules.pop(NAME, None)
        registry.clear()
        registry.update(known)


def test_the_page_uses_its_op(module, capsys):
    (usage,) = [block.code for block in BLOCKS if block.mark == "no-run"]
    exec(compile(usage, str(PAGE), "exec"), {})
    assert NAME in capsys.readouterr().out


def check_cases(op, check):
    """A check of the catalogue on every sample of `op`, in both dtypes where it takes one."""
    wanted = list(inspect.signature(check).parameters)
    assert set(wanted) <= {"op", "number", "dtype"}, f"{check.__name__} wants more than its cases"
    dtypes = ["float32", "float64"] if "dtype" in wanted else [None]
    numbers = range(len(op.samples())) if "number" in wanted else [None]
    for number in numbers:
        for dtype in dtypes:
            given = {"op": op, "number": number, "dtype": dtype}
            check(**{name: given[name] for name in wanted})


CHECKS = [check for name, check in vars(catalogue).items() if name.startswith("test_") and callable(check)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_check_of_the_catalogue_holds_for_it(module, check, monkeypatch):
    monkeypatch.setattr(catalogue, "registry", {NAME: registry[NAME]})  # what loops over all ops sees this one
    check_cases(registry[NAME], check)


def test_the_checks_of_the_catalogue_would_see_a_wrong_op(module, monkeypatch):
    op = registry[NAME]
    with monkeypatch.context() as patch:
        patch.setattr(type(op), "reference", lambda self, call, x: [x * 2.0])
        with pytest.raises(AssertionError):
            check_cases(op, catalogue.test_cpu_equals_reference_for_any_number_of_workers)
    monkeypatch.setattr(type(op), "vjp", lambda self, call, gradients, wanted: gradients)
    with pytest.raises(AssertionError):
        check_cases(op, catalogue.test_gradient_equals_central_differences)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
def test_value_and_gradient_in_a_graph(module, dtype, reverse):
    node = tp.LayerNode(Lambda(lambda x: ops.tanh(module.cumulative_sum(x, reverse=reverse))), name="sums")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4, 6), dtype=dtype)
    X = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(dtype)
    wide = X.astype(np.float64)
    sums = np.flip(np.cumsum(np.flip(wide, -1), -1), -1) if reverse else np.cumsum(wide, -1)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(graph(X), np.tanh(sums), rtol=16 * eps, atol=16 * eps)
    slope = 1 - np.tanh(sums) ** 2
    expected = np.cumsum(slope, -1) if reverse else np.flip(np.cumsum(np.flip(slope, -1), -1), -1)
    np.testing.assert_allclose(graph.backward(), expected, rtol=64 * eps, atol=64 * eps)
    if dtype == "float64":
        assert tp.gradcheck(graph, X) < 1e-6


def test_two_rows_cut_alike_need_no_barrier_and_share_their_memory(module):
    node = tp.LayerNode(Lambda(lambda x: module.cumulative_sum(module.cumulative_sum(x))), name="twice")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((3, 4))
    places = [row["results"] for row in graph.tape if row["span"] == "forward"]
    assert len(places) == 2
    assert places[0] == places[1]
    assert "4 rows, 2 barriers" in str(graph.tape)  # those at the ends of forward and backward


def test_errors_name_the_node(module):
    node = tp.LayerNode(Lambda(module.cumulative_sum), name="sums")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build()
    with pytest.raises(ShapeError, match=r"'sums'.*expected at least one axis, got a scalar"):
        graph(np.array(1.0))


def test_another_op_of_the_same_name_is_refused(module):
    with pytest.raises(GraphError, match="registered by cumulative_sum already"):
        ops.register(type("Other", (type(registry[NAME]),), {}))


def test_the_registry_is_as_before():
    assert NAME not in registry
    assert NAME not in sys.modules
