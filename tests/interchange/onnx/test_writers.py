"""Every op of the registry is written, with the values of its reference, or says why not."""

import math

import numpy as np
import onnx
import pytest
from onnx_export import checked, referee, runtime

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import to_model
from tapeprop.interchange.onnx.writers import WITHOUT, WRITERS
from tapeprop.interchange.onnx.writers.elementwise import NAMED, PRIMITIVES
from tapeprop.ir import Constant, Tensor
from tapeprop.ops import Sample, expression, record, registry
from tapeprop.ops import primitives as meanings
from tapeprop.ops.formulas import FORMULAS
from tapeprop.ops.op import ArrayType, Call

OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
#: What `patterns` makes of several instructions.
PATTERNS = {"batch_norm_inference", "layer_norm", "rms_norm", "instance_norm", "group_norm"}
#: {op: the number of results that are written}, where the others are for a gradient.
FORWARD = {"softmax_cross_entropy": 1, "weighted_cross_entropy": 1, "row_norm": 1}
WRITTEN = sorted(set(registry) & set(WRITERS))


def test_every_op_is_written_or_has_a_reason():
    assert set(registry) - set(WRITERS) == set(WITHOUT)
    assert set(WRITERS) - set(registry) == PATTERNS
    assert set(WITHOUT) <= set(registry)


def test_the_ops_name_operators_that_there_are():
    for name, op in registry.items():
        assert set(op.onnx) <= OPERATORS, name
        assert not op.onnx or name in WRITERS or name == "dropout", name  # which only a reader meets


def test_every_formula_and_every_primitive_is_written():
    assert set(NAMED) == set(FORMULAS)
    assert set(PRIMITIVES) == set(meanings.PRIMITIVES)


def arrays_of(sample: Sample) -> list[np.ndarray]:
    found = [np.asarray(a) for a in sample.operands(np.random.default_rng(0))]
    return [a.astype("float64" if a.dtype.kind == "f" else "int64") for a in found]


def recorded_sample(name: str, sample: Sample, arrays: list[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
    """(placeholders, results); what an op takes as constants is constant."""
    leaves = [
        tp.constant(a, dtype=str(a.dtype))
        if name == "resample" and i
        else tp.placeholder(a.shape, f"x{i}", str(a.dtype))
        for i, a in enumerate(arrays)
    ]
    return leaves, list(record(name, leaves, sample.attributes))


def left_out(name: str, sample: Sample) -> str:
    """Why ONNX' own evaluator cannot judge a sample; "" where it can."""
    if name.endswith("_input_grad") and sample.attributes["groups"] > 1:
        return "its ConvTranspose knows no groups of several channels: onnxruntime judges them below"
    if sample.attributes.get("label") in ("erf", "gelu"):
        return "its Erf of float64 is that of float32: see test_the_error_function"
    if name == "whole_numbers" and not np.isfinite(arrays_of(sample)[0]).all():
        return "numbers that are no indices, at which our run stops"
    return ""


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("opset", [None, 17])
def test_values_are_those_of_the_reference(name, opset):
    judged = 0
    for sample in registry[name].samples():
        arrays = arrays_of(sample)
        leaves, results = recorded_sample(name, sample, arrays)
        call = Call(
            tuple(ArrayType(a.shape, str(a.dtype)) for a in arrays),
            tuple(ArrayType(r.shape, r.dtype) for r in results),
            sample.attributes,
        )
        results = results[: FORWARD.get(name)]
        inputs = [leaf for leaf in leaves if not isinstance(leaf.source, Constant)]
        model = checked(to_model(tp.function(results, inputs), opset=opset))
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        if left_out(name, sample):
            continue
        judged += 1
        found = referee(model, arrays[: len(inputs)])
        for value, wanted in zip(found, registry[name].reference(call, *arrays)):
            assert (value.shape, value.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-10)  # float64 throughout
    assert judged


@pytest.mark.parametrize("name", ["conv2d_input_grad", "conv3d_input_grad"])
def test_grouped_transposed_convolutions_in_onnxruntime(name):
    pytest.importorskip("onnxruntime")
    for sample in registry[name].samples():
        if sample.attributes["groups"] == 1:
            continue
        arrays = [a.astype("float32") for a in arrays_of(sample)]
        leaves = [tp.placeholder(a.shape, f"x{i}") for i, a in enumerate(arrays)]
        (result,) = record(name, leaves, sample.attributes)
        kinds = tuple(ArrayType(a.shape, "float32") for a in arrays)
        call = Call(kinds, (ArrayType(result.shape, "float32"),), sample.attributes)
        (found,) = runtime(to_model(tp.function(result, leaves)), arrays)
        np.testing.assert_allclose(found, registry[name].reference(call, *arrays)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(FORWARD))
def test_results_for_gradients_are_refused(name):
    sample = registry[name].samples()[0]
    leaves, results = recorded_sample(name, sample, arrays_of(sample))
    with pytest.raises(
        GraphError, match=f"op {name}: expected results that ONNX has, got result 1, which is for a gradient"
    ):
        to_model(tp.function(results[1], leaves))


# ---- formulas


def of_formula(function, *arrays: np.ndarray) -> tuple[np.ndarray, onnx.ModelProto]:
    """(what a formula of scalars gives in ONNX' evaluator, the model)."""
    leaves = [tp.placeholder(a.shape, f"x{i}", str(a.dtype)) for i, a in enumerate(arrays)]
    model = checked(to_model(tp.function(ops.compute(function, *leaves)[0], leaves)))
    return referee(model, arrays)[0], model


CORNERS = np.array([-np.inf, -3.0, -1e-3, -1e-12, -0.0, 0.0, 1e-12, 1e-3, 0.7, 3.0, np.inf, np.nan])


@pytest.mark.parametrize("name", sorted(meanings.PRIMITIVES))
def test_primitives(name):
    """At the ends and near 0 as well, where 1 + x and e^x - 1 lose what they are made for."""
    arity = expression.make.__globals__["ARITY"][name]
    if name == "select":
        function = lambda a, b, c: expression.where(a < b, b, c)  # noqa: E731
        meaning = lambda a, b, c: np.where(a < b, b, c)  # noqa: E731
    elif name in expression.make.__globals__["COMPARISONS"]:
        function = lambda a, b: expression.where(expression.make(name, a, b), 1.0, 0.0)  # noqa: E731
        meaning = lambda a, b: meanings.PRIMITIVES[name].numpy(a, b).astype("float64")  # noqa: E731
    else:
        function = lambda *xs: expression.make(name, *xs)  # noqa: E731
        meaning = meanings.PRIMITIVES[name].numpy
    arrays = [np.ascontiguousarray(a) for a in np.meshgrid(*[CORNERS] * arity)]
    with np.errstate(all="ignore"):
        found, _ = of_formula(function, *arrays)
        wanted = meaning(*arrays)
    rough = name in ("erf", "fma", "pow")  # float32 in ONNX' evaluator; rounded twice; inf * 0 and powers of NaN differ
    tolerance = 1e-6 if rough else 4e-16
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=1e-6 if rough else 0)


def test_the_error_function():
    """In float32, in which evaluators have it."""
    x = np.linspace(-4, 4, 41).astype("float32")
    found, _ = of_formula(expression.erf, x)
    np.testing.assert_allclose(found, [math.erf(v) for v in x], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formulas_in_float32_are_their_operators(name):
    formula = FORMULAS[name]
    x = tp.placeholder((3,), "x")
    attributes = {"low": -1.0, "high": 1.0} if name == "clip" else {}
    count = formula.arity or 3
    function = tp.function(getattr(ops, name)(*[x] * count, **attributes), [x])
    made = {node.op_type for node in checked(to_model(function)).graph.node} - {"Constant"}
    if formula.onnx and name != "mean_of":  # which ONNX' own evaluator does not broadcast
        assert formula.onnx in made
    assert len(made) <= 2


def test_numbers_of_a_formula_are_nodes_once():
    """Not initialisers: those are weights to whoever reads the model."""
    x = tp.placeholder((None, 3), "x")
    model = to_model(tp.function((x + 2.0) * (x - 2.0) / 3.0, [x]))
    numbers = [onnx.numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"]
    assert sorted(map(float, numbers)) == [2.0, 3.0]
    assert not model.graph.initializer


def test_numbers_too_large_for_a_node_are_initialisers():
    x = tp.placeholder((2**22 + 1,), "x")
    model = to_model(tp.function(x * tp.constant(np.arange(2**22 + 1)), [x]))
    assert [tensor.dims for tensor in model.graph.initializer] == [[2**22 + 1]]


def test_an_attribute_that_float32_does_not_hold_is_written_out_in_float64():
    x = tp.placeholder((3,), "x", "float64")
    for alpha, operators in ((0.25, {"LeakyRelu"}), (0.1, {"LessOrEqual", "Mul", "Where"})):
        model = to_model(tp.function(ops.leaky_relu(x, alpha=alpha), [x]))
        assert {node.op_type for node in model.graph.node} - {"Constant"} == operators


def test_a_formula_without_one_of_its_operands_keeps_the_shape():
    x, y = tp.placeholder((None, 1), "x"), tp.placeholder((None, 4), "y")
    model = checked(to_model(tp.function(ops.compute(lambda a, b: a * 2.0, x, y)[0], [x, y])))
    found = referee(model, [np.ones((3, 1), "f"), np.ones((3, 4), "f")])[0]
    assert found.tolist() == [[2.0] * 4] * 3


def test_old_opsets_get_simpler_operators():
    x = tp.placeholder((2, 4, 3), "x")
    formulas = {
        "Gelu": (20, ops.gelu(x)),
        "Mish": (18, ops.mish(x)),
        "GroupNormalization": (21, ops.group_norm(x, 2)),
        "RMSNormalization": (23, ops.rms_norm(x, 3)),
    }
    for operator, (since, y) in formulas.items():
        for opset in (since - 1, since):
            model = checked(to_model(tp.function(y, [x]), opset=opset))
            assert (operator in {node.op_type for node in model.graph.node}) == (opset == since)
