"""The generated elementwise loop against NumPy's value of the same expressions: layouts, workers, aliasing."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeprop.ops.elementwise.cpu import CLASSES, GRAIN, fields, loop, loop_text
from tapeprop.ops.expression import (
    Scalar,
    constant,
    encode,
    evaluate,
    exp,
    fma,
    input_scalar,
    inputs,
    sigmoid,
    sin,
    where,
)
from tapeprop.ops.formulas import FORMULAS

WORKERS = (1, 2, 3, 5, 8)
x, y, z = inputs(3)


@cache
def compiled(text: str, symbol: str):
    """A kernel as a callable of (row address, worker, workers)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1, jit=True
    )
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(engine.get_function_address(symbol))
    kernel.engine = engine
    return kernel


class Array(NamedTuple):
    """An operand: the view of the full shape, its class, and the flat memory it lies in."""

    view: np.ndarray
    kind: str
    memory: np.ndarray


def run(roots: Sequence[Scalar], ins: Sequence[Array], outs: Sequence[Array], workers: int = 1, **options) -> None:
    """Runs the kernel in place, one worker after the other, the last first: their order must not matter."""
    operands = [*ins, *outs]
    kinds = tuple(a.kind for a in operands)
    shape = outs[0].view.shape
    dtype = outs[0].view.dtype
    text = loop_text(
        symbol="kernel",
        expressions=encode(roots),
        inputs=len(ins),
        outputs=len(outs),
        dtype=str(dtype),
        classes=kinds,
        outer=len(shape) - 1,
        **options,
    )
    strides = []
    for view, kind, _ in operands:
        elements = [0] * len(shape) if kind == "scalar64" else [step // view.itemsize for step in view.strides]
        assert kind != "vector" or view.shape[-1] < 2 or elements[-1] == 1
        strides.append(elements if kind == "strided" else elements[:-1])
    words = fields(shape[-1], shape[:-1], kinds, [a.view.ctypes.data for a in operands], strides)
    row = np.array([0, 0, 0, 0, *words], np.int64)
    kernel = compiled(text, "kernel")
    for worker in reversed(range(workers)):
        kernel(row.ctypes.data, worker, workers)


def make(
    rng, shape: Sequence[int], kind: str, dtype, *, shared: Sequence[bool] = (), order=None, step: int = 2
) -> Array:
    """An operand with gaps between its rows. shared: the outer axes along which it is broadcast (stride 0)."""
    if kind == "scalar64":
        memory = rng.uniform(0.5, 2, 1)
        return Array(memory, kind, memory)
    outer, inner = list(shape[:-1]), shape[-1]
    order = list(range(len(outer))) if order is None else order
    own = [1 if axis < len(shared) and shared[axis] else size for axis, size in enumerate(outer)]
    width = {"vector": inner, "uniform": 1, "strided": inner * abs(step)}[kind]
    memory = rng.uniform(-2, 2, (*(own[axis] for axis in order), width + 3)).astype(dtype)
    view = memory[..., 1 : 1 + width].transpose(
        *np.argsort(order), len(outer)
    )  # one element after a gap: barely aligned
    if kind == "strided":
        view = view[..., ::step]
    return Array(np.broadcast_to(view, shape) if any(shared) or kind == "uniform" else view, kind, memory)


def check(roots: Sequence[Scalar], ins: Sequence[Array], outs: Sequence[Array], **options) -> None:
    """Values against NumPy, memory around the outputs untouched, the same bits for any number of workers."""
    dtype = outs[0].view.dtype
    expected = evaluate(roots, [a.view[0] if a.kind == "scalar64" else a.view.copy() for a in ins], dtype)
    before = [a.memory.copy() for a in (*ins, *outs)]
    first: list[np.ndarray] = []
    for workers in WORKERS:
        for array, memory in zip((*ins, *outs), before, strict=True):
            array.memory[...] = memory
        run(roots, ins, outs, workers, **options)
        found = [a.view.copy() for a in outs]
        first = first or found
        for a, b in zip(found, first, strict=True):
            np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{a.itemsize}"))
    tolerance = 8 * float(np.finfo(dtype).eps)
    for value, result, out, memory in zip(expected, first, outs, before[len(ins) :], strict=True):
        np.testing.assert_allclose(result, np.broadcast_to(value, result.shape), rtol=tolerance, atol=tolerance)
        shift = (out.view.ctypes.data - out.memory.ctypes.data) // out.view.itemsize
        flat = memory.reshape(-1)
        strides = [step // out.view.itemsize for step in out.view.strides]
        places = shift + sum((np.indices(out.view.shape)[k] * step for k, step in enumerate(strides)), np.int64(0))
        flat[places] = result
        np.testing.assert_array_equal(out.memory.reshape(-1), flat)  # nothing but the output was written


ROOTS = {
    1: [(x * 0.5,), (where(x <= 0, 0.0, x), x + 1.0), (sin(x) + x,)],
    2: [(x + y,), (fma(x, y, 1.5), y), (x * sigmoid(y),), (where(x < y, x, exp(y)) - y,)],
    3: [(fma(x, y, z),), (x + y, y * z), (where(z < x, y, sin(z)) * exp(z),)],
}
REGULAR = [kind for kind in CLASSES if kind != "gathered"]
LENGTHS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 1023, 1024, 1025, 2100)


@st.composite
def cases(draw):
    """(roots, dtype, lanes, shape, descriptions of inputs and of outputs, seed)."""
    count = draw(st.integers(1, 3))
    roots = draw(st.sampled_from(ROOTS[count]))
    outer = draw(st.integers(0, 3))
    inner = draw(st.sampled_from(LENGTHS))
    shape = (*draw(st.lists(st.integers(1, 4), min_size=outer, max_size=outer)), inner)
    order = st.permutations(range(outer))
    step = st.sampled_from((2, 3, -1, -2, 1))
    ins = [
        {
            "kind": draw(st.sampled_from(REGULAR)),
            "shared": draw(st.lists(st.booleans(), min_size=outer, max_size=outer)),
            "order": draw(order),
            "step": draw(step),
        }
        for _ in range(count)
    ]
    kind = st.sampled_from(("vector", "strided"))
    outs = [{"kind": draw(kind), "order": draw(order), "step": draw(step)} for _ in roots]
    dtype, lanes = draw(st.sampled_from(("float32", "float64"))), draw(st.sampled_from((None, 8, 4, 1)))
    return roots, dtype, lanes, shape, ins, outs


@settings(max_examples=150)
@given(cases(), st.integers(0, 2**32 - 1))
def test_any_layout_and_any_number_of_workers(case, seed):
    roots, dtype, lanes, shape, ins, outs = case
    rng = np.random.default_rng(seed)
    check(
        roots,
        [make(rng, shape, dtype=dtype, **description) for description in ins],
        [make(rng, shape, dtype=dtype, **description) for description in outs],
        lanes=lanes,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", [None, 4, 1])
def test_a_gathered_operand_is_read_where_its_table_says(dtype, lanes):
    rng = np.random.default_rng(0)
    x, y = inputs(2)
    source = rng.uniform(-1, 1, 50).astype(dtype)
    options = {"expressions": encode([x * y]), "inputs": 2, "outputs": 1, "dtype": dtype, "outer": 0, "lanes": lanes}
    kernel = compiled(loop_text(symbol="kernel", classes=("gathered", "vector", "vector"), **options), "kernel")
    for length in LENGTHS:
        table = rng.integers(0, 50, length).astype(np.int32)
        factor, out = rng.uniform(-1, 1, length).astype(dtype), np.full(length + 3, 7, dtype)
        places = [source.ctypes.data, factor.ctypes.data, out.ctypes.data]
        classes = ("gathered", "vector", "vector")
        words = fields(length, (), classes, places, [[table.ctypes.data], [], []])
        row = np.array([0, 0, 0, 0, *words], np.int64)
        for workers in WORKERS:
            out[:length] = np.nan
            for worker in reversed(range(workers)):
                kernel(row.ctypes.data, worker, workers)
            np.testing.assert_array_equal(out[:length], source[table] * factor)
            np.testing.assert_array_equal(out[length:], 7)
    with pytest.raises(ValueError, match="no outer dimensions"):
        loop_text(symbol="kernel", classes=("gathered", "vector", "vector"), **{**options, "outer": 1})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [1, 5, 16, 31, 1024, 3000])
def test_outputs_may_take_the_place_of_inputs(dtype, length):
    rng = np.random.default_rng(length)
    for shape in ((length,), (3, length)):
        for kind in ("vector", "strided"):
            a, b = (make(rng, shape, kind, dtype) for _ in range(2))
            check([x * y + 1.0, x - y], [a, b], [b, a])  # two outputs, each over the other's input


def test_a_run_of_one_element_may_overwrite_its_uniform_operand():
    rng = np.random.default_rng(0)
    a = make(rng, (5, 1), "uniform", "float32")
    check([x + 1.0], [a], [a._replace(kind="vector")])


def test_six_outer_dimensions_and_many_grains():
    rng = np.random.default_rng(0)
    shape = (2, 3, 1, 2, 2, 3, 40)
    ins = [make(rng, shape, "vector", "float32", order=[5, 3, 1, 0, 2, 4])]
    ins += [make(rng, shape, "uniform", "float32", shared=[True, False, True, False, True, False])]
    check([x * y + sin(x)], ins, [make(rng, shape, "vector", "float32")])
    shape = (3, 5 * GRAIN + 7)
    check(
        [x * y],
        [make(rng, shape, k, "float32") for k in ("vector", "uniform")],
        [make(rng, shape, "vector", "float32")],
    )


def test_hyper_parameters_round_once_to_the_working_type():
    """Adam's step in float32 with float64 scalars: the oracle rounds the scalars in the same place."""
    rng = np.random.default_rng(0)
    w, g, m, lr, beta = inputs(5)
    first = fma(beta, m - g, g)
    ins = [make(rng, (777,), kind, "float32") for kind in ("vector", "vector", "vector", "scalar64", "scalar64")]
    check([w - lr * first / (1 - beta), first], ins, [make(rng, (777,), "vector", "float32") for _ in range(2)])


def test_constants_and_unused_inputs():
    rng = np.random.default_rng(0)
    nowhere = Array(np.zeros(0, "float32"), "uniform", np.zeros(0, "float32"))
    ins = [make(rng, (20,), "vector", "float32"), nowhere._replace(view=np.broadcast_to(np.float32(0), (20,)))]
    check([constant(math.inf), x], ins, [make(rng, (20,), "vector", "float32") for _ in range(2)])


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_compiles_and_agrees_with_numpy(name):
    """Values and gradients, specials among the samples, float32 against the reference in float64."""
    formula = FORMULAS[name]
    count = formula.operands(3 if formula.arity is None else None)
    rng = np.random.default_rng(0)
    attributes = {"low": -1.0, "high": 1.5} if name == "clip" else {}
    roots = [formula.expression(count, **attributes), *(formula.vjp(k, count, **attributes) for k in range(count))]
    ins = [make(rng, (213,), "vector", "float32") for _ in range(count + 1)]
    if formula.domain[0] == 0.1 or name == "power":  # positive operands, apart from the specials
        for array in ins:
            array.view[...] = np.abs(array.view) + np.float32(0.1)
    special = np.array([0.0, -0.0, 1, -1, 1e-40, 30, -30, 1000, -1000, math.inf, -math.inf, math.nan], np.float32)
    for k, array in enumerate(ins[:count]):
        array.view[: special.size] = np.roll(special, 5 * k)
    outs = [make(rng, (213,), "vector", "float32") for _ in roots]
    run(roots, ins, outs)
    for root, out in zip(roots, outs, strict=True):
        expected = np.broadcast_to(evaluate([root], [a.view.astype(np.float64) for a in ins])[0], out.view.shape)
        with np.errstate(over="ignore"):
            expected = expected.astype(np.float32)
        # A difference of terms (1 - y^2, 1 + erf) keeps the absolute error of its terms, here up to 2e-6.
        np.testing.assert_allclose(out.view, expected, rtol=3e-5, atol=3e-6)


OPTIONS = {
    "expressions": encode([x + y]),
    "inputs": 2,
    "outputs": 1,
    "dtype": "float32",
    "classes": ("vector",) * 3,
    "outer": 0,
}


def test_the_builder_gives_the_same_text():
    kernel = loop(**OPTIONS)
    assert kernel.text == loop_text(symbol=kernel.symbol, **OPTIONS) == loop(**OPTIONS).text
    assert f'define void @"{kernel.symbol}"(i64' in kernel.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int64"}, "float32 or float64, not int64"),
        ({"classes": ("vector", "vector")}, "need 1 expressions and 3 classes; got 1 and 2"),
        ({"classes": ("vector", "vector", "uniform")}, "would be written many times"),
        ({"classes": ("vector", "dense", "vector")}, "got 'dense'"),
        ({"outer": 7}, "0 to 6 outer dimensions, got 7"),
        ({"expressions": encode([input_scalar(4)])}, "use input 4, but there are 2 inputs"),
        ({"outputs": 2}, "need 2 expressions"),
    ],
)
def test_descriptions_that_do_not_hold_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        loop_text(symbol="kernel", **{**OPTIONS, **change})
    with pytest.raises(ValueError, match="strided operand of 1 outer dimensions has 2 strides"):
        fields(4, [2], ["strided"], [0], [[4]])
