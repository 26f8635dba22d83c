"""Graphs that are exported to ONNX in tests: every layer, and what other evaluators and our own oracle make of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tapeprop as tp
from tapeprop import layers, ops
from tapeprop.compiler.interpret import interpret
from tapeprop.graph import GraphStructure
from tapeprop.ir import Parameter, Program, Span, Trace, reachable, recording
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, Lambda, Layer, PythonLayer

Case = tuple[Callable[[], Layer], tuple[int | None, ...]]

LINE, IMAGE, VOLUME = (None, 3, 11), (None, 3, 9, 8), (None, 3, 3, 4, 5)
OPEN = (None, 3, None, None)


def _of_rank(name: str, *arguments: Any, **options: Any) -> dict[str, list[Case]]:
    """A layer that there is for one to three axes."""
    shapes = {"1D": LINE, "2D": IMAGE, "3D": VOLUME}
    return {
        f"{name}{rank}": [(lambda c=f"{name}{rank}": getattr(layers, c)(*arguments, **options), shape)]
        for rank, shape in shapes.items()
    }


def _each(names: str, *cases: Case) -> dict[str, list[Case]]:
    return {names: list(cases)}


#: {layer: [(what makes it, an input shape)]}; a layer of the package without a case fails a test.
LAYERS: dict[str, list[Case]] = {
    **_of_rank("AdaptiveAvgPool", 1),
    **_of_rank("AvgPool", 3, 2, 1),
    **_of_rank("BatchNorm", 3),
    **_of_rank("Conv", 3, 4, 3, 2, 1),
    **_of_rank("ConvTranspose", 3, 4, 3, 2, 1, 1),
    **_of_rank("DepthConv", 3, 3, multiplier=2),
    **_of_rank("DropBlock"),
    **_of_rank("Dropout"),
    **_of_rank("GlobalAvgPool"),
    **_of_rank("GlobalMaxPool"),
    **_of_rank("LpPool", 2, 2, 2),
    **_of_rank("MaxPool", 3, 2, 1),
    **_of_rank("Pool", 2, 1, "avg"),
    "Dense": [(lambda: layers.Dense(5, 4), (None, 5)), (lambda: layers.Dense(5, 4, bias=False), (2, 5))],
    "DenseND": [
        (lambda: layers.DenseND(5, 4), (None, 3, 5)),
        (lambda: layers.DenseND(3, 4, axis=1), IMAGE),
        (lambda: layers.DenseND(3, 4, axis=1), OPEN),
        (lambda: layers.DenseND(5, 4), (None, None, 5)),
    ],
    "Dropout": [(layers.Dropout, (None, 5))],
    "Embedding": [(lambda: layers.Embedding(7, 4), (None, 3))],
    "Flatten": [(layers.Flatten, IMAGE), (layers.Flatten, (None, 5)), (layers.Flatten, OPEN)],
    "GlobalResponseNorm": [(lambda: layers.GlobalResponseNorm(3), IMAGE), (lambda: layers.GlobalResponseNorm(3), OPEN)],
    "GroupNorm": [
        (lambda: layers.GroupNorm(2, 6), (None, 6, 5, 4)),
        (lambda: layers.GroupNorm(2, 6, affine=False), (None, 6, None, None)),
        (lambda: layers.GroupNorm(1, 6), (None, 6, 5)),
        (lambda: layers.GroupNorm(2, 6), (None, 6)),
    ],
    "Identity": [(layers.Identity, (None, 5))],
    "InstanceNorm": [
        (lambda: layers.InstanceNorm(3), IMAGE),
        (lambda: layers.InstanceNorm(3, affine=True), OPEN),
        (lambda: layers.InstanceNorm(3, affine=True), (None, 3, 1, 9)),
    ],
    "Lambda": [(lambda: layers.Lambda(lambda x: tp.ops.l2norm(x[:, ::-1], 1, keepdims=True)), (None, 5))],
    "LayerNorm": [
        (lambda: layers.LayerNorm(5), (None, 3, 5)),
        (lambda: layers.LayerNorm((3, 5), bias=False), (None, 3, 5)),
        (lambda: layers.LayerNorm(5, elementwise_affine=False), (None, 5)),
    ],
    "LocalResponseNorm": [
        (lambda: layers.LocalResponseNorm(3, 0.1), IMAGE),
        (lambda: layers.LocalResponseNorm(2), OPEN),
    ],
    "Pad": [
        (lambda: layers.Pad(((1, 0), (2, 3)), value=0.5), OPEN),
        *(
            (lambda mode=mode: layers.Pad(((1, 0), (2, 3)), mode), IMAGE)
            for mode in ("reflect", "replicate", "circular")
        ),
    ],
    "PositionalEncoding": [(lambda: layers.PositionalEncoding(6, 9), (None, 4, 6))],
    "RMSNorm": [(lambda: layers.RMSNorm(5), (None, 3, 5)), (lambda: layers.RMSNorm((3, 5), 0.5), (None, 3, 5))],
    "Reshape": [(lambda: layers.Reshape(2, -1), (None, 6)), (lambda: layers.Reshape(6), (None, 2, 3))],
    "Sequential": [
        (lambda: layers.Sequential(layers.Dense(5, 4), ("act", Activation.ReLU()), layers.Dense(4, 2)), (None, 5))
    ],
    "Slice": [
        (lambda: layers.Slice((None, 1), (None, 3)), (None, 5)),
        (lambda: layers.Slice((None, None, 4, -1), steps=(None, -1, -2, -3)), IMAGE),
        (lambda: layers.Slice((0, -2, 1), (1, None, 5), (1, 1, 2)), (None, 3, 8, None)),
        (lambda: layers.Slice((None, 1, None, None), steps=(1, 1, -1, -1)), OPEN),
        (lambda: layers.Slice((-1, None)), (None, 5)),
    ],
    "StochasticDepth": [(layers.StochasticDepth, IMAGE)],
    "Transpose": [(lambda: layers.Transpose((0, 2, 3, 1)), OPEN)],
    "Upsample2D": [
        *((lambda mode=mode: layers.Upsample2D(2, mode=mode), IMAGE) for mode in ("nearest", "bilinear", "bicubic")),
        (lambda: layers.Upsample2D(2, mode="bilinear", align_corners=True), IMAGE),
        (lambda: layers.Upsample2D(None, (5, 11)), IMAGE),
        (lambda: layers.Upsample2D(None, (5, 11), mode="bilinear"), IMAGE),
        (lambda: layers.Upsample2D(1.3, mode="bilinear"), IMAGE),
    ],
    "Activation": [
        *(
            (cls, (None, 5))
            for name, cls in vars(Activation).items()
            if inspect.isclass(cls) and issubclass(cls, Layer)
        ),
        (lambda: Activation.LeakyReLU(0.3), (None, 5)),
        (lambda: Activation.ELU(0.7), (None, 5)),
        (lambda: Activation.GELU(True), (None, 5)),
        (lambda: Activation.Softmax(1), OPEN),
    ],
}
LAYERS["AdaptiveAvgPool2D"].append((lambda: layers.AdaptiveAvgPool2D((3, 5)), IMAGE))
LAYERS["AdaptiveAvgPool2D"].append((lambda: layers.AdaptiveAvgPool2D((3, 4)), IMAGE))
LAYERS["AvgPool2D"].append((lambda: layers.AvgPool2D(3, 2, 1, count_include_pad=False), OPEN))
LAYERS["AvgPool2D"].append((lambda: layers.AvgPool2D(3, 2, 1, ceil_mode=True), IMAGE))
LAYERS["AvgPool3D"].append((lambda: layers.AvgPool3D(2, 2, 1, count_include_pad=False), VOLUME))
LAYERS["BatchNorm1D"].append((lambda: layers.BatchNorm1D(5, epsilon=0.1), (None, 5)))
LAYERS["BatchNorm2D"].append((lambda: layers.BatchNorm2D(3), OPEN))
LAYERS["Conv1D"].append((lambda: layers.Conv1D(3, 4, 3, bias=False), (None, 3, None)))
LAYERS["Conv2D"].append((lambda: layers.Conv2D(4, 6, (3, 2), 1, ((1, 0), (0, 1)), 2, (1, 2)), (None, 4, None, None)))
LAYERS["ConvTranspose2D"].append(
    (lambda: layers.ConvTranspose2D(4, 6, 3, 2, groups=2, bias=False), (None, 4, None, None))
)
LAYERS["LpPool2D"].append((lambda: layers.LpPool2D(3, 3, 2, 1), OPEN))
LAYERS["MaxPool2D"].append((lambda: layers.MaxPool2D((2, 3), 2, ((0, 1), (1, 1)), ceil_mode=True), IMAGE))
LAYERS["MaxPool2D"].append((lambda: layers.MaxPool2D(2, 1, 2, dilation=4), IMAGE))
LAYERS["MaxPool3D"].append((lambda: layers.MaxPool3D(2, 1, dilation=2), VOLUME))
LAYERS["Pool2D"].append((layers.Pool2D, OPEN))

#: Layers without a case: those that nobody can export.
REFUSED = {"Layer": "has no trace", "PythonLayer": "is Python"}


def cases() -> list[tuple[str, int]]:
    """(layer, number of its case)."""
    return [(name, number) for name, found in LAYERS.items() for number in range(len(found))]


def graph_of(layer: Layer, name: str = "layer") -> tp.LayerGraph:
    """A graph of one node, with weights that are no zeros or ones."""
    node = tp.LayerNode(layer, name=name)
    return with_weights(tp.LayerGraph({node: []}, root=node, term=node, seed=0))


def with_weights(graph: Any, seed: int = 0) -> Any:
    """The graph with small random numbers in all floating parameters; variances are positive."""
    random = np.random.default_rng(seed)
    for key, parameter in graph.named_parameters():
        if parameter.dtype != "int64" and (
            "norm" in key.lower() or parameter.value.ndim == 1 or not parameter.trainable
        ):
            parameter.assign(random.uniform(0.5, 1.5, parameter.shape))
    return graph


def sized(shape: Sequence[int | None], batch: int) -> tuple[int, ...]:
    """A shape with numbers in the place of open sizes."""
    return tuple((batch if axis == 0 else 7 + axis) if size is None else size for axis, size in enumerate(shape))


def input_for(layer: str, shape: Sequence[int | None], batch: int, dtype: str = "float32") -> np.ndarray:
    """An array that the layer takes."""
    random = np.random.default_rng(batch)
    if layer == "Embedding":
        return random.integers(0, 7, sized(shape, batch)).astype(dtype)
    return random.standard_normal(sized(shape, batch)).astype(dtype)


def oracle(graph: GraphStructure, arrays: Sequence[np.ndarray], dtype: str = "float32") -> list[np.ndarray]:
    """The outputs of a graph in inference by the ops' references, in NumPy: no kernel is compiled."""
    random = Parameter((2,), np.zeros(2), trainable=False, dtype="int64")
    with recording(Trace(dtype, False, random)) as trace:
        leaves = [trace.input(i, array.shape, str(array.dtype)) for i, array in enumerate(arrays)]
        outputs, _ = graph.trace_all(leaves)
    return _run(trace, dict(zip(leaves, arrays)), outputs)


def referee(model: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What ONNX' own evaluator makes of a model."""
    from onnx.reference import ReferenceEvaluator

    names = [value.name for value in model.graph.input]
    return ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))


def runtime(model: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], arrays, strict=True)))


def checked(model: Any) -> Any:
    """The model, after ONNX' checker and its shape inference have looked at it; both raise."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return model


def function_oracle(function: tp.Function, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a function by the ops' references, as `oracle`'s."""
    random = Parameter((2,), np.zeros(2), trainable=False, dtype="int64")
    with recording(Trace(function._network.options.dtype, False, random)) as trace:
        leaves = [trace.input(i, array.shape, str(array.dtype)) for i, array in enumerate(arrays)]
        outputs, _ = function._trace(leaves)
    return _run(trace, dict(zip(leaves, arrays)), outputs)


def _run(trace: Trace, feeds: dict[Any, np.ndarray], outputs: Sequence[Any]) -> list[np.ndarray]:
    feeds |= {t: s.value.astype(t.dtype) for s, t in trace.leaves.items() if isinstance(s, Parameter)}
    return interpret(Program([Span("run", reachable(outputs))], [], list(outputs)), feeds)[0]


def network() -> tp.LayerGraph:
    """Two roots, two terms, a graph inside, a layer in two nodes, a sequence with dropout."""
    shared = Conv2D(3, 4, 3)
    left, right = tp.LayerNode(shared, name="left"), tp.LayerNode(shared, name="right")
    inner_in, inner_out = tp.LayerNode(BatchNorm2D(4), name="norm"), tp.LayerNode(Activation.ReLU(), name="act")
    inner = tp.LayerGraph({inner_in: [inner_out]}, root=inner_in, term=inner_out)
    block = tp.LayerNode(inner, name="block")
    head = tp.SequentialNode(Flatten(), ("drop", Dropout(0.5)), Dense(144, 5), name="head")
    other = tp.LayerNode(Lambda(lambda x: ops.mean(x, (2, 3))), name="other")
    edges = {left: [block], right: [block], block: [head, other], head: [], other: []}
    return with_weights(tp.LayerGraph(edges, root=[left, right], term=[head, other], seed=0))


SHAPES = [(None, 3, 6, 6)] * 2


class Doubled(PythonLayer):
    """A layer that no ONNX operator is."""

    def forward(self, x):
        return 2 * x

    def backward(self, d_out):
        return 2 * d_out


def operators(model: Any) -> list[str]:
    """The names of a model's operators, in their order."""
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


def shape_of(value: Any) -> list[int | str]:
    """The sizes of an input or output of a model; names of open ones."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
