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
