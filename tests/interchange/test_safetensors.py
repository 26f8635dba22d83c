"""Weight files: round trips, the reference implementation as second opinion, and files that are not to be trusted."""

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapeprop.errors import DTypeError, GraphError, WeightFileError
from tapeprop.interchange import safetensors
from tapeprop.interchange.safetensors import read, write

DTYPES = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()


def examples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    found = {f"{dtype}.{shape}": rng.integers(0, 2, shape).astype(dtype) for dtype in DTYPES for shape in [(), (3,)]}
    found["weight"] = rng.standard_normal((4, 3, 2))
    found["special"] = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    found["empty"] = np.zeros((0, 5), np.float32)
    found["ünïcode/λ"] = np.arange(6, dtype=np.int32).reshape(2, 3)
    return found


def file_of(header: Any, data: bytes = b"", padding: bytes = b"") -> bytes:
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + padding
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and a[key].tobytes() == b[key].tobytes()
        for key in a
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors, metadata = examples(), {"format": "pt", "über": "\n\"'\0"}
    write(tmp_path / "w", tensors, metadata)
    found, told = read(tmp_path / "w")
    assert same(found, tensors)
    assert told == metadata
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())


def test_nothing_is_written_and_read(tmp_path: Path) -> None:
    write(tmp_path / "w", {})
    assert (tmp_path / "w").read_bytes() == (8).to_bytes(8, "little") + b"{}      "
    assert read(tmp_path / "w") == ({}, {})


def test_layout_and_byte_order_of_arrays_do_not_matter(tmp_path: Path) -> None:
    a = np.arange(12.0).reshape(3, 4)
    write(tmp_path / "w", {"t": a.T, "big": a.astype(">f8"), "step": a[:, ::2], "back": a[::-1], "list": [1.5, 2.5]})
    found, _ = read(tmp_path / "w")
    assert same(
        found,
        {"t": a.T.copy(), "big": a, "step": a[:, ::2].copy(), "back": a[::-1].copy(), "list": np.array([1.5, 2.5])},
    )


def test_bytes_depend_on_contents_alone(tmp_path: Path) -> None:
    tensors = examples()
    write(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    write(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    write(tmp_path / "w", examples())
    with open(tmp_path / "w", "rb") as file:
        layout = safetensors.read_layout(file, tmp_path / "w")
    assert layout.start % 8 == 0
    for info in layout.tensors.values():
        assert info.begin % np.dtype(safetensors.DTYPES[info.dtype]).itemsize == 0


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC049, 0x7F80, 0xFF80, 0x0001, 0x8000], "<u2")
    (tmp_path / "w").write_bytes(file_of({"x": entry("BF16", [2, 3], [0, 12])}, bits.tobytes()))
    found, _ = read(tmp_path / "w")
    assert found["x"].dtype == np.float32
    assert found["x"].tolist() == [[1.0, -3.140625, np.inf], [-np.inf, 2.0**-133, -0.0]]
    assert np.signbit(found["x"][1, 2])


@pytest.mark.parametrize("value", [np.zeros(2, complex), np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]")])
def test_dtypes_without_a_name_are_refused(tmp_path: Path, value: np.ndarray) -> None:
    with pytest.raises(DTypeError, match="tensor 'x': expected dtype float64"):
        write(tmp_path / "w", {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 3])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(GraphError, match="tensor names"):
        write(tmp_path / "w", {name: np.zeros(1)})


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"a": None}])
def test_metadata_are_strings(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(GraphError, match="metadata"):
        write(tmp_path / "w", {}, metadata)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "w", {"x": np.ones(3)})
    before = (tmp_path / "w").read_bytes()

    def full(number: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "w", {"x": np.zeros(3)})
    assert (tmp_path / "w").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none/w'"):
        write(tmp_path / "none" / "w", {})


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "target", {})
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link", {"x": np.ones(3)})
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "target")[0]["x"].tolist() == [1, 1, 1]


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


# ---- the reference implementation


def test_the_reference_reads_ours(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    reference = pytest.importorskip("safetensors")
    write(tmp_path / "w", examples(), {"a": "b"})
    assert same(numpy.load_file(tmp_path / "w"), examples())
    with reference.safe_open(tmp_path / "w", "numpy") as file:
        assert file.metadata() == {"a": "b"}


def test_we_read_the_reference(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(examples(), tmp_path / "w", {"a": "b"})
    found, metadata = read(tmp_path / "w")
    assert same(found, examples())
    assert metadata == {"a": "b"}


def test_the_order_of_tensors_is_the_reference_s(tmp_path: Path) -> None:
    """With one metadata entry, since the reference writes several in the order of a hash."""
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {key: array for key, array in examples().items() if array.dtype.kind == "f"}
    numpy.save_file(tensors, tmp_path / "theirs", {"a": "b"})
    write(tmp_path / "ours", tensors, {"a": "b"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


# ---- files that are not to be trusted

EIGHT = bytes(8)
BIG = 2**62
DEEP = b'{"a":' * 100_000
FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "at least 8 bytes, got 0"),
    "half a length": (b"\x02\0\0", "at least 8 bytes, got 3"),
    "a length without a header": (b"\x02" + bytes(7), "a header of at most 0 bytes in a file of 8, got 2"),
    "a header longer than the file": (b"\xff" * 8 + b"{}", "a header of at most 2 bytes"),
    "an empty header": (file_of(b""), "begins with '{'"),
    "a header that begins with a space": (file_of(b" {}"), "begins with '{'"),
    "a list": (file_of([]), "begins with '{'"),
    "no JSON": (file_of(b'{"a"'), "JSON without faults"),
    "more after the object": (file_of(b"{} {}"), "JSON without faults"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "JSON without faults"),
    "deep nesting": (file_of(DEEP), "nested too deep"),
    "a number of 5000 digits": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "JSON without faults"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN, which JSON does not have"),
    "one name twice": (
        file_of(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "the key 'a' twice",
    ),
    "one key twice": (
        file_of(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "the key 'dtype' twice",
    ),
    "half a surrogate pair": (
        file_of(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "a name in UTF-8",
    ),
    "metadata that are a list": (file_of({"__metadata__": []}), "an object of strings"),
    "metadata with a number": (file_of({"__metadata__": {"a": 1}}), "hold strings, got 'a': 1"),
    "an entry that is a number": (file_of({"a": 3}), "tensor 'a': expected an object of dtype"),
    "an entry without dtype": (file_of({"a": {"shape": [], "data_offsets": [0, 0]}}), "tensor 'a': expected an object"),
    "an entry with more": (file_of({"a": {**entry(), "more": 1}}, EIGHT), "tensor 'a': expected an object"),
    "an unknown dtype": (file_of({"a": entry("F8")}, EIGHT), "tensor 'a': expected a dtype out of .*got 'F8'"),
    "a dtype that is a list": (file_of({"a": entry([])}, EIGHT), "a dtype out of"),
    "a shape that is a number": (file_of({"a": entry(shape=2)}, EIGHT), "a shape of at most"),
    "a negative size": (file_of({"a": entry(shape=[-1, -2])}, EIGHT), "a shape of at most"),
    "a size that is no int": (file_of({"a": entry(shape=[2.0])}, EIGHT), "a shape of at most"),
    "a size that is true": (file_of({"a": entry(shape=[2, True])}, EIGHT), "a shape of at most"),
    "a size of 65 bits": (file_of({"a": entry(shape=[2**64])}, EIGHT), "a shape of at most"),
    "sizes that wrap to 2": (file_of({"a": entry(shape=[2**32, 2**32, 2])}, EIGHT), "a shape that can be addressed"),
    "huge beside zero": (file_of({"a": entry(shape=[0, BIG, BIG], offsets=[0, 0])}), "a shape that can be addressed"),
    "too many axes": (file_of({"a": entry(shape=[1] * 65)}, EIGHT), "a shape of at most 64"),
    "one offset": (file_of({"a": entry(offsets=[0])}, EIGHT), "data_offsets"),
    "an offset that is a string": (file_of({"a": entry(offsets=["0", 8])}, EIGHT), "data_offsets"),
    "offsets backwards": (file_of({"a": entry(offsets=[8, 0])}, EIGHT), "expected 8 bytes"),
    "a negative offset": (file_of({"a": entry(offsets=[-8, 0])}, EIGHT), "data_offsets"),
    "offsets that disagree with the shape": (
        file_of({"a": entry(offsets=[0, 12])}, bytes(12)),
        "expected 8 bytes .*got 12",
    ),
    "a tensor of a terabyte": (
        file_of({"a": entry(shape=[2**38], offsets=[0, 2**40])}),
        "1,099,511,627,776 bytes of data, got 0",
    ),
    "a hole at the start": (
        file_of({"a": entry(offsets=[8, 16])}, bytes(16)),
        "begin at 0, got 8, which leaves a hole",
    ),
    "a hole between": (file_of({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "tensor 'b': .*leaves a hole"),
    "an overlap": (file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "tensor 'b': .*overlaps"),
    "one place twice": (file_of({"a": entry(), "b": entry()}, EIGHT), "tensor 'b': .*overlaps"),
    "an empty tensor inside another": (
        file_of({"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, EIGHT),
        "tensor 'b': .*overlaps",
    ),
    "data cut short": (file_of({"a": entry()}, bytes(7)), "8 bytes of data, got 7"),
    "data left over": (file_of({"a": entry()}, bytes(9)), "bytes are left over"),
    "no tensor, but data": (file_of({}, b"x"), "0 bytes of data, got 1"),
    "a bool of 2": (file_of({"a": entry("BOOL", [2], [0, 2])}, b"\1\2"), "tensor 'a': expected bytes 0 and 1 .*got 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_at_no_cost(tmp_path: Path, fault: str) -> None:
    data, message = FAULTS[fault]
    (tmp_path / "w.safetensors").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(WeightFileError, match=message) as caught:
            read(tmp_path / "w.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 20 * len(data)
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "w.safetensors") in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_longest_header_is_the_reference_s(tmp_path: Path) -> None:
    length = safetensors.LONGEST_HEADER + 1
    with open(tmp_path / "w", "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(8 + length)  # a sparse file
    with pytest.raises(WeightFileError, match="at most 100,000,000 bytes"):
        read(tmp_path / "w")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "w", {"x": np.ones(100_000)})
    with open(tmp_path / "w", "rb") as file:
        layout = safetensors.read_layout(file, tmp_path / "w")
        os.truncate(tmp_path / "w", 50_000)
        with pytest.raises(WeightFileError, match=r"tensor 'x': expected 800,000 bytes.*the file shrank"):
            safetensors.read_arrays(file, layout)


def flipped(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncated(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def overwritten(data: bytearray, rng: random.Random) -> None:
    """Another number, word or bracket somewhere in the header."""
    header = int.from_bytes(data[:8], "little")
    word = rng.choice(
        [b"9", b"-1", b"0", b"1e9", b"[", b"]", b"{", b"}", b",", b'"', b"null", b"true", b"F64", b"99999999999"]
    )
    place = rng.randrange(8, 8 + header)
    data[place : place + len(word)] = word


def edited(data: bytearray, rng: random.Random) -> None:
    """The header made longer or shorter, and its length with it."""
    header = int.from_bytes(data[:8], "little")
    place = rng.randrange(8, 8 + header)
    if rng.random() < 0.5:
        cut = rng.randint(1, 12)
        del data[place : min(place + cut, 8 + header)]
    else:
        data[place:place] = bytes(rng.choices(b'0123456789,:[]{}" -aF', k=rng.randint(1, 6)))
    data[:8] = (len(data) - bytes_of_data - 8).to_bytes(8, "little")


def rearranged(data: bytearray, rng: random.Random) -> None:
    """A valid header with one value changed."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    info = header[rng.choice([key for key in header if key != "__metadata__"])]
    values = [
        0,
        -1,
        1,
        2,
        3,
        2**31,
        2**63,
        2**64,
        1.5,
        None,
        True,
        "F32",
        "F64",
        "I16",
        [],
        [0],
        [2, 3],
        [0, 4],
        [4, 0],
    ]
    key = rng.choice(["dtype", "shape", "data_offsets"])
    if isinstance(info[key], list) and info[key] and rng.random() < 0.7:
        info[key][rng.randrange(len(info[key]))] = rng.choice(values)
    else:
        info[key] = rng.choice(values)
    data[: 8 + length] = file_of(header)


bytes_of_data = 8 * 4 + 4 * 6 + 2 * 3 + 2


def test_mutations_are_refused_or_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    """The format has no checksum, so a changed number in the data is a valid file; what else is read has to be what an
    independent reader finds. We may be stricter than that, never laxer.
    """
    numpy = pytest.importorskip("safetensors.numpy")
    reference = pytest.importorskip("safetensors")
    rng, path = random.Random(11), tmp_path / "w.safetensors"
    tensors = {
        "a.weight": np.arange(4.0).reshape(2, 2),
        "a.bias": np.arange(6, dtype=np.float32),
        "half": np.array([1, 2, 3], np.float16),
        "flag": np.array([True, False]),
        "none": np.zeros((2, 0), np.int8),
    }
    write(path, tensors, {"made": "by hand"})
    valid = path.read_bytes()
    assert sum(array.nbytes for array in tensors.values()) == bytes_of_data
    outcomes = {"refused": 0, "read": 0}
    for _ in range(2000):
        data = bytearray(valid)
        rng.choice([flipped, flipped, truncated, overwritten, edited, rearranged])(data, rng)
        path.write_bytes(data)
        try:
            found, metadata = read(path)
        except WeightFileError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert same(found, numpy.load(bytes(data))), bytes(data)
        with reference.safe_open(path, "numpy") as file:
            assert metadata == (file.metadata() or {})
    assert min(outcomes.values()) > 100, outcomes
