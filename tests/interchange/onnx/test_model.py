"""Models as plain data: what is read, and what is refused, each with an error that names the place."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import drawn, elementwise, mlp, model, node

from tapeprop.errors import CycleError, GraphError, WeightFileError
from tapeprop.interchange.onnx.model import read


def one(op="Relu", inputs="x", outputs="y", weights=None, **attributes):
    """A model of one node."""
    return model([node(op, inputs, outputs, "it", **attributes)], {"x": ("N", 4)}, ["y"], weights)


def initialiser(dims, kind=TensorProto.FLOAT, **fields):
    """mlp() with its first weight replaced by a tensor of these fields."""
    proto = mlp()
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(TensorProto(name="w1", dims=dims, data_type=kind, **fields))
    return proto


# ---- what is read


def test_path_bytes_and_proto_give_the_same(tmp_path: Path) -> None:
    proto = mlp()
    onnx.save(proto, tmp_path / "m.onnx")
    found = [
        read(source) for source in (proto, proto.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx"))
    ]
    for other in found:
        assert [n.name for n in other.nodes] == ["first", "relu_r", "second", "add_y"]
        assert [(v.name, v.dtype, v.shape) for v in other.inputs] == [("x", "float32", ("N", 6))]
        np.testing.assert_array_equal(other.initializers["w1"], drawn(8, 6))
        assert other.opset == onnx_models.OPSET


@pytest.mark.parametrize(
    "array",
    [
        drawn(2, 3), drawn(2, 3).astype(np.float64), np.arange(-3, 3, dtype=np.int8), np.arange(3, dtype=np.int16),
        np.arange(3, dtype=np.int32), np.array([2**62, -1]), np.arange(3, dtype=np.uint8), np.array([2**16 - 1], np.uint16),
        np.array([2**32 - 1], np.uint32), np.array([2**64 - 1], np.uint64), np.array([True, False]), np.float32(2.5),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
@pytest.mark.parametrize("raw", [True, False])
def test_initialisers_are_what_onnx_reads(array, raw) -> None:
    tensor = numpy_helper.from_array(array, "w1")
    if not raw:
        tensor = helper.make_tensor("w1", tensor.data_type, array.shape, array.ravel().tolist())
    proto = mlp()
    proto.graph.initializer[0].CopyFrom(tensor)
    found = read(proto).initializers["w1"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, numpy_helper.to_array(tensor))


@pytest.mark.parametrize("raw", [True, False])
def test_float16_is_widened_exactly(raw) -> None:
    array = np.array([1 / 3, -65504.0, np.inf, 6e-8], np.float16)
    tensor = (
        numpy_helper.from_array(array, "w1")
        if raw
        else helper.make_tensor("w1", TensorProto.FLOAT16, [4], array.tolist())
    )
    proto = mlp()
    proto.graph.initializer[0].CopyFrom(tensor)
    found = read(proto).initializers["w1"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))


def test_nodes_may_come_in_any_order() -> None:
    proto = mlp()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert [n.name for n in read(proto).nodes] == ["first", "relu_r", "second", "add_y"]


def test_external_data_is_read(tmp_path: Path) -> None:
    found = read(onnx_models.with_external_data(tmp_path)).initializers
    for name, array in read(mlp()).initializers.items():
        np.testing.assert_array_equal(found[name], array)


def test_tied_weights_may_share_a_region(tmp_path: Path) -> None:
    path = onnx_models.with_external_data(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    path.write_bytes(proto.SerializeToString())
    found = read(path).initializers
    np.testing.assert_array_equal(found["twin"], found["w1"])


# ---- files that are no models


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.onnx")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"PK\x03\x04" * 10, b"<html>", bytes(64)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(WeightFileError, match="expected an ONNX"):
        read(data)


def test_cut_files_are_refused() -> None:
    data = mlp().SerializeToString()
    for length in range(1, len(data)):
        with pytest.raises(GraphError):
            read(data[:length])


def test_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(500):  # ModelProto.graph.node.attribute.g.node.attribute.g ...
        for tag in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            length, size = len(data), b""
            while True:
                size += bytes([length & 127 | 128 * (length > 127)])
                length >>= 7
                if not length:
                    break
            data = bytes([tag]) + size + data
    with pytest.raises(WeightFileError, match="expected an ONNX model"):
        read(b"\x3a" + b"\x04" + data)


def test_files_above_two_gibibytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)  # a hole: it takes no room
    tracemalloc.start()
    with pytest.raises(WeightFileError, match=r"large.onnx: expected an ONNX file below 2 GiB.*save_as_external_data"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# ---- tensors that are not what they claim


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (initialiser([2**40, 2**40], raw_data=b"1234"), "a shape that can be addressed"),
        (initialiser([2**62, 0], raw_data=b""), "a shape that can be addressed"),
        (initialiser([2**40], raw_data=b"1234"), "4,398,046,511,104 bytes for float32 .*, got 4 bytes"),
        (initialiser([-1], raw_data=b""), "sizes >= 0"),
        (initialiser([1] * 65, raw_data=b"1234"), "at most 64 sizes"),
        (initialiser([2], raw_data=b"1234"), "8 bytes for float32"),
        (initialiser([1], raw_data=b"1234", float_data=[1.0]), "4 bytes and float_data"),
        (initialiser([2], float_data=[1.0]), "2 numbers in float_data"),
        (initialiser([1], int64_data=[1]), "1 numbers in float_data"),
        (initialiser([1], TensorProto.INT8, int32_data=[128]), "numbers from -128 to 127"),
        (initialiser([1], TensorProto.BOOL, raw_data=b"\x02"), "bytes 0 and 1"),
        (initialiser([1], TensorProto.BOOL, int32_data=[2]), "numbers from 0 to 1"),
        (initialiser([1], TensorProto.BFLOAT16, raw_data=b"12"), "got bfloat16: convert the model's weights to float32"),
        (initialiser([1], TensorProto.FLOAT8E4M3FN, raw_data=b"1"), "got float8e4m3fn"),
        (initialiser([1], TensorProto.INT4, raw_data=b"1"), "got int4"),
        (initialiser([1], TensorProto.STRING, string_data=[b"1"]), "got string"),
        (initialiser([1], TensorProto.COMPLEX64, raw_data=b"12345678"), "got complex64"),
        (initialiser([1], 99, raw_data=b"1234"), "got data type 99"),
        (initialiser([1], 0, raw_data=b"1234"), "got unknown"),
        (initialiser([1], segment=TensorProto.Segment(begin=0, end=1)), "a tensor in one piece"),
    ],
)  # fmt: skip
def test_false_tensors_are_refused(proto, text) -> None:
    with pytest.raises(WeightFileError, match=rf"the model: initialiser 'w1': expected .*{text}"):
        read(proto)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "/etc/hostname"}, "external data in the model's folder, got '/etc/hostname'"),
        ({"location": "../weights.bin"}, "in the model's folder, got '../weights.bin'"),
        ({"location": "a/../../weights.bin"}, "in the model's folder"),
        ({"location": "..\\\\weights.bin"}, "in the model's folder"),
        ({"location": "C:weights.bin"}, "in the model's folder"),
        ({"location": "\\\\\\\\host\\\\share\\\\w"}, "in the model's folder"),
        ({"location": ""}, "in the model's folder, got ''"),
        ({"location": "."}, "in the model's folder"),
        ({"location": "w\0"}, "in the model's folder"),
        ({"location": "link.bin"}, "a link that leads out of it"),
        ({"location": "folder/weights.bin"}, "a link that leads out of it"),
        ({"location": "none.bin"}, "No such file or directory"),
        ({"location": "pipe"}, "no regular file"),
        ({"location": "inside"}, "no regular file"),
        ({"offset": "-4"}, "offset as a number of bytes"),
        ({"offset": "1e3"}, "offset as a number of bytes"),
        ({"length": "9" * 30}, "length as a number of bytes"),
        ({"offset": "9" * 19}, "got 192 bytes from byte 9,999,999,999,999,999,999 on"),
        ({"length": "4"}, "got 4 bytes from byte 0 on"),
        ({"offset": "400"}, "got 192 bytes from byte 400 on"),
    ],
)
def test_false_external_data_is_refused(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "model"
    outside.mkdir()
    (folder / "inside").mkdir(parents=True)
    (outside / "weights.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(outside / "weights.bin")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    path = onnx_models.with_external_data(folder)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(WeightFileError, match="initialiser 'w1'") as caught:
        read(path)
    assert text.replace("\\\\", "\\") in str(caught.value)


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    data = onnx_models.with_external_data(tmp_path).read_bytes()
    with pytest.raises(WeightFileError, match="give load the path of the file"):
        read(data)


def test_one_region_cannot_be_taken_many_times(tmp_path: Path) -> None:
    """A thousand tensors of shapes of their own, each all of one file: a gigabyte in a small model."""
    size = 2**20
    (tmp_path / "weights.bin").write_bytes(bytes(size))
    proto = elementwise()
    for i in range(1000):
        proto.graph.initializer.append(
            TensorProto(
                name=f"t{i}",
                dims=[1] * (i % 60) + [size // 4 - i],
                data_type=TensorProto.FLOAT,
                data_location=TensorProto.EXTERNAL,
                external_data=[
                    onnx.StringStringEntryProto(key="location", value="weights.bin"),
                    onnx.StringStringEntryProto(key="length", value=str(size - 4 * i)),
                ],
            )
        )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    tracemalloc.start()
    with pytest.raises(WeightFileError, match=r"initialiser 't1'.*regions that overlap"):
        read(tmp_path / "m.onnx")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


# ---- models that make no sense, or are not read


def changed(edit, proto=None):
    proto = proto or mlp()
    edit(proto)
    return proto


def _cycle(proto):
    proto.graph.node[0].input[0] = "m"


def _sparse(proto):
    proto.graph.sparse_initializer.add().values.name = "s"


def _loop(proto):
    proto.graph.node[1].CopyFrom(helper.make_node("Loop", ["x"], ["r"], "round", body=proto.graph))


def _function(proto):
    proto.functions.add().name = "gelu"


def _twice(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])


def _sequence(proto):
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))


def _half(proto):
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16


def _negative(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -6


def _attribute_twice(proto):
    proto.graph.node[0].attribute.append(proto.graph.node[0].attribute[0])


@pytest.mark.parametrize(
    ("edit", "error", "text"),
    [
        (_cycle, CycleError, "without cycles, got first -> relu_r -> second -> first"),
        (_sparse, GraphError, "'s', which is sparse"),
        (_loop, GraphError, r"'round' \(Loop\): expected an operator without graphs of its own, got control flow"),
        (_function, GraphError, "functions of the model's own, 'gelu'.*inline_local_functions"),
        (_twice, GraphError, "initialisers with names that differ, got 'w1'"),
        (_sequence, GraphError, "input 'x': expected a tensor, got a sequence"),
        (_half, GraphError, "input 'x': expected .*got bfloat16"),
        (_negative, GraphError, "input 'x': expected at most 64 sizes >= 0"),
        (_attribute_twice, GraphError, r"'first' \(Gemm\): expected attributes with names that differ, got 'transB' twice"),
        (lambda p: p.graph.input.append(p.graph.input[0]), GraphError, "inputs with names that differ, got 'x'"),
        (lambda p: p.graph.ClearField("output"), GraphError, "a model with an output, got none"),
        (lambda p: setattr(p.graph.output[0], "name", "z"), GraphError, "output 'z': expected a node that gives it"),
        (lambda p: p.graph.node[1].input.__setitem__(0, "z"), GraphError, "'relu_r'.*'z', which nothing makes"),
        (lambda p: p.graph.node[1].output.__setitem__(0, "a"), GraphError, "'a', which is an output of 'first' as well"),
        (lambda p: p.graph.node[1].output.__setitem__(0, "x"), GraphError, "'x', which is an input or initialiser"),
        (lambda p: p.graph.node[1].input.append("x"), GraphError, "expected the inputs that the operator has, got 2 inputs"),
        (lambda p: p.graph.node[0].attribute.add(name="beta", type=2, i=1), GraphError, "attribute 'beta' of type FLOAT"),
        (lambda p: p.graph.node[0].attribute.add(name="gamma", type=2), GraphError, "attributes that Gemm has here, got gamma"),
        (lambda p: p.graph.node[0].attribute.add(name="beta", type=1, f=np.nan), GraphError, "'beta', got NaN"),
        (lambda p: p.graph.node[0].attribute.add(name="beta", type=1, ref_attr_name="b"), GraphError, "the name of another"),
        (lambda p: p.graph.node[0].attribute.add(name="beta"), GraphError, "got undefined"),
        (lambda p: p.ClearField("opset_import"), WeightFileError, "names the version of its operators, got none"),
        (lambda p: setattr(p.opset_import[0], "version", 3), GraphError, "version 13 or later, got opset 3.*export the model again"),
        (lambda p: setattr(p.opset_import[0], "version", 999), GraphError, "got opset 999: install a newer onnx"),
        (lambda p: p.opset_import.add(domain="ai.onnx", version=14), GraphError, "one version of the operators of 'ai.onnx'"),
    ],
)  # fmt: skip
def test_false_models_are_refused(edit, error, text) -> None:
    proto = changed(edit)
    with pytest.raises(error, match=text):
        read(proto)


def test_a_required_attribute_is_missed() -> None:
    with pytest.raises(GraphError, match=r"'it' \(Concat\): expected attribute 'axis', got none"):
        read(one("Concat", "x x"))


def test_long_attributes_are_refused() -> None:
    with pytest.raises(GraphError, match="at most 4,096 entries in attribute 'perm', got 5,000"):
        read(one("Transpose", perm=[0] * 5000))


def test_long_names_are_cut() -> None:
    proto = one("Concat", "x x")
    proto.graph.node[0].name = "n" * 10**6
    with pytest.raises(GraphError) as caught:
        read(proto)
    assert len(str(caught.value)) < 400


def test_names_are_utf8() -> None:
    data = mlp().SerializeToString().replace(b"second", b"\xff\xfecond")
    with pytest.raises(WeightFileError, match="names in UTF-8"):
        read(data)


def test_long_chains_are_read() -> None:
    nodes = [node("Relu", f"x{i}", f"x{i + 1}") for i in range(20_000)]
    assert len(read(model(nodes, {"x0": (1,)}, ["x20000"])).nodes) == 20_000
