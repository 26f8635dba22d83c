"""ONNX models written as text, for tests: `model("y = Relu(x)", x="float[N,3]")`."""

import numpy as np
from onnx import numpy_helper, parser

from tapeprop.interchange.onnx import load_function

KINDS = {"float32": "float", "float64": "double", "int64": "int64", "int32": "int32", "bool": "bool", "uint8": "uint8"}


def model(body, initialisers=None, outputs="y", opset=17, **inputs):
    """A ModelProto. body: nodes; initialisers: {name: array}; inputs: {name: type and shape}."""
    head = f'<ir_version: 10, opset_import: ["": {opset}]>'
    given = ", ".join(f"{kind} {name}" for name, kind in inputs.items())
    made = ", ".join(f"float {name}" for name in outputs.split())
    found = parser.parse_model(f"{head} graph ({given}) => ({made}) {{ {body} }}")
    for name, array in (initialisers or {}).items():
        found.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return found


def typed(array):
    """The type of an input that an array fits."""
    kind = KINDS[str(array.dtype)]
    return f"{kind}[{','.join(map(str, array.shape))}]" if np.ndim(array) else kind  # "[]" is of any number of axes


def run(body, initialisers=None, outputs="y", opset=17, **arrays):
    """What a model of these nodes makes of these inputs."""
    kinds = {name: typed(array) for name, array in arrays.items()}
    return load_function(model(body, initialisers, outputs, opset, **kinds))(*arrays.values())
