"""The nine networks that ONNX brings, with weights drawn at random, beside onnxruntime, which runs them as they are, in opset 9.

Their own cases are in tests/onnx_cases.py ("light/..."). There every weight of a tensor is the same, so that most of them give
0.001 for each class: a channel taken for another would not be seen.
"""

from pathlib import Path

import numpy as np
import onnx_cases
import pytest

from tapeprop.interchange.onnx import load_function

pytestmark = pytest.mark.conformance

#: Dense layers of 4,096 are made narrower, as 120 of VGG-19's 144 million weights are theirs.
WIDTH, NARROWER = 4096, 64


@pytest.mark.parametrize("name", onnx_cases.NETWORKS)
def test_network_with_random_weights(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = _drawn(name, np.random.default_rng(0))
    (value,) = model.graph.input
    x = np.random.default_rng(1).standard_normal([size.dim_value for size in value.type.tensor_type.shape.dim])
    x = x.astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {value.name: x})
    result = np.asarray(load_function(model)(x))
    assert result.shape == wanted.shape
    assert wanted.std() > 1e-3 * np.abs(wanted).max()  # classes differ
    # 20 to 121 layers deep, each with sums in another order: float32 leaves 1e-5 of the largest
    np.testing.assert_allclose(result, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max())


def _drawn(name, random):
    """The network up to its softmax, which random weights would drive to 0 and 1; with weights as He et al. 2015 draw them."""
    import onnx

    model = onnx.load(Path(onnx_cases.LIGHT) / f"light_{name}.onnx")
    graph = model.graph
    sizes = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    made = {node.output[0]: sizes[node.input[0]] for node in graph.node if node.op_type == "ConstantOfShape"}
    kept = [node for node in graph.node if node.op_type not in ("ConstantOfShape", "Softmax")]
    if graph.node[-1].op_type == "Softmax":
        kept[-1].output[0] = graph.output[0].name
    readers = {name: (node.op_type, place) for node in kept for place, name in enumerate(node.input)}
    arrays = {}
    for weight, shape in made.items():
        shape = [NARROWER if size == WIDTH and len(shape) < 3 else int(size) for size in shape]
        if len(shape) > 1:
            drawn = random.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        elif readers[weight] in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Unsqueeze", 0)):
            drawn = random.uniform(0.5, 1.5, shape)  # scales and variances
        else:
            drawn = 0.1 * random.standard_normal(shape)
        arrays[weight] = drawn.astype(np.float32)
    arrays |= {name: array for name, array in sizes.items() if name in readers}
    for field in (graph.node, graph.initializer):
        del field[:]
    graph.node.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    inputs = [value for value in graph.input if value.name not in sizes]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = 4  # initialisers need not be inputs
    return model
