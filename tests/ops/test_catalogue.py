"""What holds for every registered op, checked on the op's own samples.

Tolerances: a float64 kernel may differ from its reference by 1e-12 sqrt(depth) of the magnitudes that meet in a sum, depth being the
longest sum behind a result; a float32 kernel by 4 sqrt(depth) eps of them, eps = 2^-24 (random walk of rounding errors). Central
differences with step 1e-6 in float64 carry about 1e-10 / 1e-6 of relative error.
"""

from itertools import product

import numpy as np
import pytest
from ops.kernel_harness import run_rows

from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.interpret import call_of, interpret
from tapeprop.errors import GraphError
from tapeprop.ir import Input, Program, Span, Tensor, Trace, reachable, recording
from tapeprop.ops import registry
from tapeprop.ops.op import SIMULATED_DEVICE, Call, Device, Op, Ref, record
from tapeprop.runtime.linker import load
from tapeprop.runtime.memory import aligned
from tapeprop.targets.cpu.kernel import run_plain

pytestmark = pytest.mark.conformance
CASES = [
    pytest.param(op, number, id=f"{name}-{sample.attributes.get('label', '')}{number}")
    for name, op in sorted(registry.items())
    for number, sample in enumerate(op.samples())
]
WORKERS = (1, 2, 3, 5, 8)
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53}


def has_kernel(op: Op) -> bool:
    return not (op.alias or op.in_python)


def make_call(op: Op, number: int, dtype: str, seed: int = 0):
    """(call, operand arrays, attributes) of a sample in a dtype."""
    sample = op.samples()[number]
    arrays = [np.asarray(a) for a in sample.operands(np.random.default_rng(seed))]
    attributes = dict(sample.attributes)
    if attributes.get("dtype") == "float64":
        attributes["dtype"] = dtype
    fixed = op.fixed_float64
    arrays = [
        np.ascontiguousarray(a if a.dtype.kind != "f" or k in fixed else a.astype(dtype)).reshape(a.shape)
        for k, a in enumerate(arrays)
    ]
    with recording(Trace(dtype, True)):
        tensors = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        results = record(op, tensors, attributes)
    return call_of(results[0].producer, {}), arrays, sample, results, tensors


@pytest.mark.parametrize(("op", "number"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cpu_equals_reference_for_any_number_of_workers(op, number, dtype):
    if not has_kernel(op):
        return
    call, arrays, sample, _, _ = make_call(op, number, dtype)
    with np.errstate(all="ignore"):
        exact = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        expected = op.reference(_in_float64(call), *exact)
    first = None
    for workers in WORKERS:
        found = run_rows(op.cpu_rows(call), call, arrays, workers)
        for value, wanted, kind in zip(found, expected, call.results, strict=True):
            wanted = np.asarray(wanted).reshape(kind.shape)
            if value.dtype.kind != "f":
                np.testing.assert_array_equal(value, wanted)
                continue
            compare(value, wanted, exact, str(value.dtype), sample.depth, dtype)
        bits = [v.tobytes() for v in found]
        first = first or bits
        assert bits == first, f"{workers} workers give other bits than one"


def compare(value, wanted, operands, kind, depth, dtype):
    """Asserts the bound of the module's head; what is not finite must agree exactly."""
    wanted = np.asarray(wanted, np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(value[~finite], wanted.astype(kind)[~finite])
    largest = max([1.0, *(float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in operands if a.dtype.kind == "f")])
    magnitude = np.maximum(np.abs(wanted), largest * max(1.0, largest if depth > 1 else 1.0))
    factor = 4.0 * EPSILON["float32"] * 2 if dtype == "float32" else 1e-12
    bound = factor * np.sqrt(depth) * magnitude
    with np.errstate(invalid="ignore"):
        error = np.abs(value.astype(np.float64) - wanted)
    assert (error[finite] <= bound[finite]).all(), f"worst error {np.max(error[finite] / bound[finite]):.2g} bounds"


def _in_float64(call: Call) -> Call:
    from tapeprop.ops.op import ArrayType

    def wide(kind):
        return ArrayType(kind.shape, "float64") if kind.dtype == "float32" else kind

    attributes = dict(call.attributes)
    if attributes.get("dtype") == "float32":
        attributes["dtype"] = "float64"
    return Call(tuple(map(wide, call.operands)), tuple(map(wide, call.results)), attributes)


@pytest.mark.parametrize(("op", "number"), CASES)
def test_kernel_body_as_plain_python_equals_the_compiled_one(op, number):
    if not has_kernel(op):
        return
    call, arrays, _, _, _ = make_call(op, number, "float64")
    launches = op.cpu_rows(call)
    generated = ["elementwise.cpu:loop" in launch.kernel.builder for launch in launches]
    if all(generated):
        return  # generated IR has no Python body; its twin is the expression printed to NumPy
    if any(generated):
        return  # rows of both kinds: the test of the op's own runs those that have a body
    compiled = run_rows(launches, call, arrays, 1)
    plain = run_rows(launches, call, arrays, 1, run=run_plain)
    for a, b in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "number"), CASES)
def test_gradient_equals_central_differences(op, number):
    call, arrays, sample, results, tensors = make_call(op, number, "float64")
    wanted = [k for k in sample.gradient if arrays[k].dtype == np.float64]
    if not wanted:
        return
    rng = np.random.default_rng(1)
    floats = [t for t in results if t.dtype == "float64"]
    with recording(Trace("float64", True)):
        seeds = {t: Tensor(t.shape, "float64", source=Input(100 + i)) for i, t in enumerate(floats)}
        try:
            found = gradients(seeds, [tensors[k] for k in wanted])
        except GraphError as refusal:  # an op may refuse to be differentiated, but then its samples must not ask for it
            pytest.fail(f"{op.name}: {refusal}; its sample lists operands to differentiate")
    weights = {t: rng.uniform(0.5, 1.5, t.shape) for t in floats}
    feeds = dict(zip(tensors, arrays, strict=True)) | {seeds[t]: w for t, w in weights.items()}
    outputs = [found[tensors[k]] for k in wanted if tensors[k] in found]
    values, _ = interpret(Program([Span("all", reachable([*outputs, *results]))], [], outputs), feeds)
    analytic = dict(zip([k for k in wanted if tensors[k] in found], values, strict=True))

    def objective(changed):
        made = op.reference(call, *changed)
        return sum(float(np.sum(w * np.asarray(made[t.index]).reshape(t.shape))) for t, w in weights.items())

    for k in wanted:
        gradient = analytic.get(k, np.zeros(arrays[k].shape))
        flat = arrays[k].reshape(-1)
        for i in rng.choice(flat.size, size=min(flat.size, 24), replace=False):
            step = 1e-6 * max(1.0, abs(flat[i]))
            sides = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k].reshape(-1)[i] += sign * step
                with np.errstate(all="ignore"):
                    sides.append(objective(moved))
            difference = (sides[0] - sides[1]) / (2 * step)
            scale = max(1.0, float(np.abs(gradient).max()), abs(sides[0]) * 1e-2)
            assert abs(gradient.reshape(-1)[i] - difference) <= 1e-5 * abs(difference) + 1e-7 * scale * 10


def test_every_op_has_launches_for_a_device():
    """No GPU is needed for that: what they compute is for tests/on_device."""
    limits = (2**31 - 1, 2**16 - 1, 2**16 - 1)
    for name, op in registry.items():
        if not has_kernel(op) or op.cpu_only:
            continue
        for number, device in product(range(len(op.samples())), (Device(), SIMULATED_DEVICE)):
            call = make_call(op, number, "float32")[0]
            on_processor = {launch.kernel for launch in op.cpu_rows(call)}
            for launch in op.cuda_rows(call, device):
                assert launch.kernel not in on_processor, name
                assert all(1 <= n <= most for n, most in zip(launch.grid, limits, strict=True)), name
                assert 1 <= np.prod(launch.block) <= 1024, name
                count, dtype = launch.scratch or (0, "uint8")
                room = {"scratch": [count * np.dtype(dtype).itemsize]}
                room |= {"operand": [a.nbytes for a in call.operands], "result": [a.nbytes for a in call.results]}
                for item in launch.fields:
                    if isinstance(item, Ref):
                        assert 0 <= item.offset <= room[item.kind][item.index], name


def test_every_op_has_samples_and_names_no_operand_that_it_lacks():
    for name, op in registry.items():
        samples = op.samples()
        assert samples, name
        for sample in samples:
            arrays = sample.operands(np.random.default_rng(0))
            assert all(0 <= k < len(arrays) for k in sample.gradient), name


def test_rows_name_only_operands_results_and_scratch():
    for op in registry.values():
        if not has_kernel(op):
            continue
        call, _, _, _, _ = make_call(op, 0, "float32")
        for launch in op.cpu_rows(call):
            for item in launch.fields:
                if isinstance(item, Ref) and item.kind in ("operand", "result"):
                    kind = (call.operands if item.kind == "operand" else call.results)[item.index]
                    assert 0 <= item.offset <= kind.nbytes
            assert load([launch.kernel])[launch.kernel] > 0
    assert aligned(3).nbytes == 3
