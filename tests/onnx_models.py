"""Small ONNX models, made in process, that several tests of the reader share."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def model(nodes, inputs, outputs, weights=None, opset=OPSET):
    """A ModelProto. inputs: {name: shape} in float32, or {name: (shape, TensorProto type)}; weights: {name: array}."""
    typed = {name: kind if isinstance(kind, tuple) and len(kind) == 2 and isinstance(kind[0], tuple) else (kind, TensorProto.FLOAT)
             for name, kind in inputs.items()}  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in typed.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(op, inputs, outputs, name="", **attributes):
    """A NodeProto; inputs and outputs as words."""
    return helper.make_node(
        op, inputs.split(), outputs.split(), name or f"{op.lower()}_{outputs.split()[0]}", **attributes
    )


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.5


def mlp():
    """(N, 6) -> (N, 3): two dense layers."""
    nodes = [
        node("Gemm", "x w1 b1", "a", "first", transB=1),
        node("Relu", "a", "r"),
        node("MatMul", "r w2", "m", "second"),
        node("Add", "m b2", "y"),
    ]
    weights = {"w1": drawn(8, 6), "b1": drawn(8), "w2": drawn(8, 3), "b2": drawn(3)}
    return model(nodes, {"x": ("N", 6)}, ["y"], weights)


def elementwise():
    """Operators that the skeleton of the reader knows, with a shape that is worked out on the way."""
    nodes = [
        node("Constant", "", "half", value=numpy_helper.from_array(np.float32(0.5), "half")),
        node("Mul", "x half", "a"),
        node("LeakyRelu", "a", "b", alpha=0.2),
        node("Transpose", "b", "t", perm=[0, 2, 1]),
        node("Flatten", "t", "f", axis=1),
        node("Add", "f bias", "g"),
        node("Sigmoid", "g", "y"),
    ]
    return model(nodes, {"x": ("N", 3, 4)}, ["y"], {"bias": drawn(12)})


def convolutional():
    """(N, 3, 8, 8) -> (N, 5): convolutions, batch norm, a residual, pools, with attributes of every kind."""
    nodes = [
        node("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c1 scale shift mean variance", "n1", epsilon=1e-3, momentum=0.8),
        node("Relu", "n1", "r1"),
        node("Conv", "r1 w2", "c2", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=4),
        node("Add", "c2 r1", "s"),
        node("MaxPool", "s", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ]
    weights = {
        "w1": drawn(4, 3, 3, 3), "b1": drawn(4), "scale": 1 + drawn(4), "shift": drawn(4), "mean": drawn(4),
        "variance": np.abs(drawn(4)) + 0.5, "w2": drawn(4, 1, 3, 3), "w3": drawn(5, 4), "b3": drawn(5),
    }  # fmt: skip
    return model(nodes, {"x": ("N", 3, 8, 8)}, ["y"], weights)


def squeeze_and_excite():
    """x scaled channel by channel by numbers made of its means."""
    nodes = [
        node("Conv", "x w", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "c", "g"),
        node("Conv", "g w1 b1", "a", kernel_shape=[1, 1]),
        node("Relu", "a", "r"),
        node("Conv", "r w2 b2", "s", kernel_shape=[1, 1]),
        node("HardSigmoid", "s", "h", alpha=1 / 6),
        node("Mul", "c h", "y"),
    ]
    weights = {"w": drawn(4, 2, 3, 3), "w1": drawn(2, 4, 1, 1), "b1": drawn(2), "w2": drawn(4, 2, 1, 1), "b2": drawn(4)}
    return model(nodes, {"x": ("N", 2, 6, 6)}, ["y"], weights)


def transformer():
    """One block of attention and one of a GELU, as PyTorch exports them: sizes by Shape, heads by Reshape and Transpose."""
    length, features, heads = 4, 6, 2
    nodes = [
        node("LayerNormalization", "x g1 b1", "n", axis=-1, epsilon=1e-5),
        node("Shape", "n", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch zero1", "batch1"),
        node("Concat", "batch1 heads", "split", axis=0),
        node("Concat", "batch1 whole", "join", axis=0),
    ]
    for part in "qkv":
        nodes += [
            node("MatMul", f"n w{part}", f"{part}0", f"/block/{part}/MatMul"),
            node("Add", f"b{part} {part}0", f"{part}1", f"/block/{part}/Add"),
            node("Reshape", f"{part}1 split", f"{part}2"),
            node("Transpose", f"{part}2", part, perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", "q k", "scores"),
        node("Mul", "scores scale", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "p v", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back join", "joined"),
        node("Add", "joined x", "sum"),
        node("Div", "sum root", "e0"),
        node("Erf", "e0", "e1"),
        node("Add", "e1 one", "e2"),
        node("Mul", "sum e2", "e3"),
        node("Mul", "e3 half", "y"),
    ]
    weights = {
        "g1": 1 + drawn(features), "b1": drawn(features), "zero": np.array(0), "zero1": np.array([0]),
        "heads": np.array([length, heads, features // heads]), "whole": np.array([length, features]),
        "scale": np.float32(0.577), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5),
        **{f"w{part}": drawn(features, features, seed=i) for i, part in enumerate("qkv")},
        **{f"b{part}": drawn(features, seed=9 + i) for i, part in enumerate("qkv")},
    }  # fmt: skip
    return model(nodes, {"x": ("N", length, features)}, ["y"], weights)


def with_external_data(folder, proto=None):
    """The path of a model in a folder whose weights lie in a file of their own."""
    path = folder / "model.onnx"
    onnx.save(
        proto or mlp(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path
