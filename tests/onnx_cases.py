"""The cases of ONNX' conformance suite that concern us, and those that are excluded, each with its reason.

Node cases: the package onnx generates them in process: a model, mostly of one node, with inputs and outputs. Twins called `_expanded`,
in which an operator is written in others, are not counted, nor are cases without a float32 or float64 among inputs and outputs.
Stored cases: small models that lie in the package, of old versions of the operators; and nine whole networks.
"""

import functools
import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tapeprop.interchange.onnx import load_function
from tapeprop.interchange.onnx.converters import CONVERTERS

EMPTY = "an array without elements, which tapeprop refuses"
INTEGERS = "calculates whole numbers, which the ops do not"
NARROW = "a type narrower than float32, to which nothing is rounded here"
POSITIONS = "gives positions, whole numbers that the ops do not find"
NO_OP = "no op, nor a composition of ops"
PICKS = "elements by positions within each row: no op picks or scatters those"
SIGNAL = "signal processing, for which there are no ops"
QUANTISED = "quantised numbers, for which there are no ops"
CONTROL = "control flow, or a graph as an attribute, which is refused"
TYPES = "sequences, optionals or strings, which no tensor holds"
TRAINING = "an optimizer or a gradient as an operator: see Function.set_optimizer and backward"
OTHER_DOMAIN = "not of ONNX' own domain of operators"
RANDOM = "draws from a generator that the operator does not name"

#: {operator: why all its cases are excluded}
OPERATORS: dict[str, str] = {
    **dict.fromkeys(["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Det", "Mod"], NO_OP),
    **dict.fromkeys(["ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", "TopK", "Unique"], POSITIONS),
    **dict.fromkeys(["Compress", "GatherElements", "GatherND", "ReverseSequence", "Scatter"], PICKS),
    **dict.fromkeys(["ScatterElements", "ScatterND", "TensorScatter"], PICKS),
    **dict.fromkeys(["BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "MelWeightMatrix", "STFT"], SIGNAL),
    **dict.fromkeys(["DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"], QUANTISED),
    **dict.fromkeys(["QuantizeLinear"], QUANTISED),
    **dict.fromkeys(["If", "Loop", "Scan", "SequenceMap"], CONTROL),
    **dict.fromkeys(["ConcatFromSequence", "OptionalGetElement", "SequenceAt", "SequenceConstruct"], TYPES),
    **dict.fromkeys(["SequenceEmpty", "SequenceInsert", "SplitToSequence", "StringNormalizer"], TYPES),
    **dict.fromkeys(["TfIdfVectorizer"], TYPES),
    **dict.fromkeys(["Adagrad", "Adam", "Gradient", "Momentum"], TRAINING),
    **dict.fromkeys(["ArrayFeatureExtractor", "Binarizer", "TreeEnsemble"], OTHER_DOMAIN),
    "Bernoulli": RANDOM,
    "BitCast": "the bits of a number as another one: no op",
    "CenterCropPad": "no converter: Slice and Pad say the same",
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "tapeprop has no recurrent layers yet"),
    **dict.fromkeys(("Attention", "FlexAttention", "LinearAttention"), "tapeprop has no attention layer yet"),
    "RotaryEmbedding": "belongs to attention, of which tapeprop has no layer yet",
    **dict.fromkeys(("GridSample", "AffineGrid", "DeformConv"), "sampling at computed places is no op of tapeprop"),
    "RoiAlign": "pooling of regions that data chooses is no op of tapeprop",
    "MaxUnpool": "needs the places of maxima, which tapeprop's pools do not give",
    "Col2Im": "adding up overlapping blocks is no op of tapeprop",
}
_OF_NARROW_TYPES = [
    "test_cast_BFLOAT16_to_FLOAT",
    "test_cast_FLOAT8E4M3FN_to_FLOAT",
    "test_cast_FLOAT8E4M3FNUZ_to_FLOAT",
    "test_cast_FLOAT8E5M2_to_FLOAT",
    "test_cast_FLOAT8E5M2FNUZ_to_FLOAT",
    "test_cast_UINT4_to_FLOAT",
    "test_cast_INT4_to_FLOAT",
    "test_cast_FLOAT4E2M1_to_FLOAT",
    "test_cast_UINT2_to_FLOAT",
    "test_cast_INT2_to_FLOAT",
    "test_cast_e8m0_FLOAT8E8M0_to_FLOAT",
    "test_cast_FLOAT_to_FLOAT16",
    "test_cast_DOUBLE_to_FLOAT16",
    "test_cast_FLOAT_to_BFLOAT16",
    "test_cast_FLOAT_to_FLOAT8E4M3FN",
    "test_cast_FLOAT_to_FLOAT8E4M3FNUZ",
    "test_cast_FLOAT_to_FLOAT8E5M2",
    "test_cast_FLOAT_to_FLOAT8E5M2FNUZ",
    "test_cast_FLOAT_to_UINT4",
    "test_cast_FLOAT_to_INT4",
    "test_cast_FLOAT_to_FLOAT4E2M1",
    "test_cast_FLOAT_to_UINT2",
    "test_cast_FLOAT_to_INT2",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FN",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FNUZ",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E5M2",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E5M2FNUZ",
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0",
    "test_castlike_FLOAT_to_BFLOAT16",
    "test_castlike_BFLOAT16_to_FLOAT",
    "test_castlike_FLOAT_to_FLOAT8E4M3FN",
    "test_castlike_FLOAT_to_FLOAT8E4M3FNUZ",
    "test_castlike_FLOAT8E4M3FN_to_FLOAT",
    "test_castlike_FLOAT8E4M3FNUZ_to_FLOAT",
    "test_castlike_FLOAT_to_FLOAT8E5M2",
    "test_castlike_FLOAT_to_FLOAT8E5M2FNUZ",
    "test_castlike_FLOAT8E5M2_to_FLOAT",
    "test_castlike_FLOAT8E5M2FNUZ_to_FLOAT",
    "test_castlike_FLOAT_to_UINT4",
    "test_castlike_FLOAT_to_INT4",
    "test_castlike_UINT4_to_FLOAT",
    "test_castlike_INT4_to_FLOAT",
    "test_castlike_FLOAT4E2M1_to_FLOAT",
    "test_castlike_FLOAT_to_FLOAT4E2M1",
    "test_castlike_FLOAT_to_UINT2",
    "test_castlike_FLOAT_to_INT2",
    "test_castlike_UINT2_to_FLOAT",
    "test_castlike_INT2_to_FLOAT",
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E4M3FN",
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E4M3FNUZ",
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E5M2",
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E5M2FNUZ",
]
_CASTS = [
    "FLOAT_to_FLOAT16",
    "FLOAT_to_DOUBLE",
    "FLOAT16_to_FLOAT",
    "FLOAT16_to_DOUBLE",
    "DOUBLE_to_FLOAT",
    "DOUBLE_to_FLOAT16",
]
_EMPTY_SETS = ["l1", "l2", "log_sum", "log_sum_exp", "max", "min", "prod", "sum", "sum_square"]
#: {case: why it is excluded}
CASES: dict[str, str] = {
    **dict.fromkeys(_OF_NARROW_TYPES, NARROW),
    **dict.fromkeys([f"test_castlike_{kind}" for kind in _CASTS], EMPTY),
    **dict.fromkeys([f"test_reduce_{kind}_empty_set" for kind in _EMPTY_SETS], EMPTY),
    "test_onehot_with_bfloat16_values": NARROW,
    "test_onehot_without_axis": INTEGERS,
    "test_pow_types_int32_float32": INTEGERS,
    "test_pow_types_int64_float32": INTEGERS,
    "test_reduce_sum_empty_set_non_reduced_axis_zero": EMPTY,
    "test_reshape_allowzero_reordered": EMPTY,
    "test_slice_start_out_of_bounds": EMPTY,
    "test_split_zero_size_splits_opset13": EMPTY,
    "test_split_zero_size_splits_opset18": EMPTY,
    "pytorch-operator/test_operator_non_float_params": INTEGERS,
    **dict.fromkeys(
        (
            "test_training_dropout",
            "test_training_dropout_default",
            "test_training_dropout_default_mask",
            "test_training_dropout_mask",
        ),
        "expects the very draws of NumPy's generator; training with Dropout is a layer's, not a file's",
    ),
    "test_causal_conv_with_state_kernel_size_one": "its state has no elements, which no tensor of tapeprop has",
    **dict.fromkeys(
        ("test_maxpool_with_argmax_2d_precomputed_pads", "test_maxpool_with_argmax_2d_precomputed_strides"),
        "asks for the places of maxima, which tapeprop's pools do not give",
    ),
}
#: Cases whose whole numbers are given as initialisers, as exporters write them: as data they would be refused.
AS_INITIALISERS = {"test_gather_negative_indices"}

#: Folders of the package's stored cases.
STORED = ("simple", "pytorch-converted", "pytorch-operator")
#: Whole networks, of opset 9, whose weights are made by nodes; in the folder light.
NETWORKS = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"),
    *("shufflenet", "squeezenet", "vgg19", "zfnet512"),
)
LIGHT = Path(find_spec("onnx").submodule_search_locations[0]) / "backend" / "test" / "data" / "light"
_FLOATS = {1, 11}  # TensorProto.FLOAT, DOUBLE


@dataclass(frozen=True)
class Case:
    """A model, pairs of (inputs, outputs), and how near they have to be."""

    name: str
    model: object
    data_sets: tuple
    rtol: float = 1e-3
    atol: float = 1e-7


@functools.cache
def cases():
    """{name: case} of all cases in scope; those that are stored are called by their folder and name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the suite's own arithmetic: casts that overflow
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    made = {
        case.name: Case(case.name, case.model, tuple(case.data_sets), case.rtol, case.atol)
        for case in found
        if case.model is not None and _counts(case)
    }
    return {**made, **_stored(), **_networks()}


def _counts(case):
    graph = case.model.graph
    kinds = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    return "_expanded" not in case.name and bool(kinds & _FLOATS)


def _stored():
    import onnx
    import onnx.backend.test

    found = {}
    root = Path(onnx.backend.test.__file__).parent / "data"
    for folder in (path for kind in STORED for path in sorted((root / kind).iterdir())):
        name = f"{folder.parent.name}/{folder.name}"
        model = onnx.load(folder / "model.onnx")
        sets = [
            tuple(
                [_tensor(path.read_bytes()) for path in sorted(data.glob(f"{what}_*.pb"), key=_number)]
                for what in ("input", "output")
            )
            for data in sorted(folder.glob("test_data_set_*"))
        ]
        found[name] = Case(name, model, tuple(sets))
    return found


def _networks():
    """As onnx.backend.test.runner feeds them: with a ramp from 0 to 1."""
    import onnx

    found = {}
    for name in NETWORKS:
        model = onnx.load(LIGHT / f"light_{name}.onnx")
        held = {entry.name for entry in model.graph.initializer}
        (value,) = [value for value in model.graph.input if value.name not in held]
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        ramp = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
        settings = json.loads((LIGHT.parent / "real" / f"test_{name}" / "data.json").read_text())
        expected = _tensor((LIGHT / f"light_{name}_output_0.pb").read_bytes())
        sets = (([ramp], [expected]),)
        found[f"light/{name}"] = Case(f"light/{name}", model, sets, settings["rtol"], settings["atol"])
    return found


def _number(path):
    return int(path.stem.rpartition("_")[2])


def _tensor(data):
    import onnx

    proto = onnx.TensorProto()
    proto.ParseFromString(data)
    return proto


def reason(case):
    """Why a case is excluded; "" where it has to pass."""
    return CASES.get(case.name) or next(
        (OPERATORS[n.op_type] for n in case.model.graph.node if n.op_type in OPERATORS), ""
    )


def check(case):
    """Runs a case. AssertionError where a result is another one; GraphError where the model is not read.

    Sizes, axes and the like, which the suite feeds, are made initialisers: real models have them there.
    """
    for inputs, expected in case.data_sets:
        model, given = _with_initialisers(case, [_array(value) for value in inputs])
        run = load_function(model)
        results = run(*given)
        results = results if isinstance(results, list | tuple) else [results]
        assert len(results) == len(expected)
        for result, wanted in zip(results, map(_array, expected)):
            found = np.asarray(result)
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found.astype(wanted.dtype), wanted, rtol=case.rtol, atol=case.atol)


def _array(value):
    import onnx

    return (
        onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    )  # arrays, and lists of such


def _with_initialisers(case, inputs):
    """(the model with the inputs that have to be known as initialisers, the other inputs)."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    known = set()
    for node in model.graph.node:
        found = CONVERTERS.get("Resize" if node.op_type == "Upsample" else node.op_type)  # which it is converted to
        for place, name in enumerate(node.input):
            if found and (found.needs(place) or (place in found.either and case.name in AS_INITIALISERS)):
                known.add(name)
    held = {entry.name for entry in model.graph.initializer}
    given = []
    for value, array in zip([value for value in model.graph.input if value.name not in held], inputs):
        if value.name in known:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        else:
            given.append(array)
    return model, given
