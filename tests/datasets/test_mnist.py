"""idx files, made here, whole and damaged."""

import gzip
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tapeprop.datasets import mnist, read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[values.dtype.name], values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1], np.uint8)


def write_split(folder: Path, prefix: str, images: bytes, labels: bytes, mark: str = "-", end: str = "") -> None:
    (folder / f"{prefix}-images{mark}idx3-ubyte{end}").write_bytes(images)
    (folder / f"{prefix}-labels{mark}idx1-ubyte{end}").write_bytes(labels)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_both_names_plain_and_zipped(tmp_path: Path, mark: str, zipped: bool) -> None:
    pack = gzip.compress if zipped else bytes
    end = ".gz" if zipped else ""
    write_split(tmp_path, "train", pack(idx(IMAGES)), pack(idx(LABELS)), mark, end)
    write_split(tmp_path, "t10k", pack(idx(IMAGES[:2])), pack(idx(LABELS[:2])), mark, end)

    X, y = mnist(tmp_path)
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    np.testing.assert_array_equal(X, (IMAGES[:, None] / np.float32(255)).astype(np.float32))
    np.testing.assert_array_equal(y, LABELS)

    raw, y = mnist(str(tmp_path), "test", as_images=False, normalize=False)
    np.testing.assert_array_equal(raw, IMAGES[:2].reshape(2, 12))
    np.testing.assert_array_equal(y, LABELS[:2])
    raw[:] = 0  # writable


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 2, 2), (0, 4)])
def test_read_idx_every_number_type(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.arange(np.prod(shape)).reshape(shape) * 7 - 3).astype(dtype)
    (tmp_path / "file").write_bytes(idx(values))
    read = read_idx(tmp_path / "file")
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, values)


WHOLE = idx(IMAGES)
DAMAGED = {
    "empty": (b"", "an empty file"),
    "short magic": (b"\0\0\x08", "00 00 08"),
    "wrong magic": (b"PK\x03\x04", "50 4b 03 04"),
    "unknown number type": (b"\0\0\x0a\x01" + struct.pack(">I", 1) + b"x", "00 00 0a 01"),
    "no dimensions": (b"\0\0\x08\x00x", "received 0"),
    "too many dimensions": (b"\0\0\x08\xff" + bytes(4 * 255), "received 255"),
    "sizes cut off": (b"\0\0\x08\x03" + bytes(5), "received 5 bytes"),
    "values cut off": (WHOLE[:-1], "60 bytes.*received 59"),
    "values left over": (WHOLE + b"x", "60 bytes.*received (61|more)"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: str, zipped: bool) -> None:
    content, named = DAMAGED[damage]
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(path))}: expected.*{named}"):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(gzip.compress(WHOLE)[:-12], id="tail cut off"),
        pytest.param(gzip.compress(WHOLE)[:5], id="header cut off"),
        pytest.param(gzip.compress(WHOLE) + b"x", id="bytes left over"),
    ],
)
def test_damaged_gzip_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.gz: expected a whole gzip file"):
        read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path, zipped: bool) -> None:
    content = b"\0\0\x0e\x02" + struct.pack(">2I", 2**32 - 1, 2**32 - 1) + bytes(100)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected 147573952520956936200 bytes"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # the gzip reader's buffers take part of it
    finally:
        tracemalloc.stop()


def test_no_more_is_unzipped_than_the_header_announces(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(LABELS) + bytes(1 << 26)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="received more"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_mnist_refuses_what_is_not_images_and_labels(tmp_path: Path) -> None:
    write_split(tmp_path, "train", idx(IMAGES), idx(LABELS[:4]))
    with pytest.raises(ValueError, match=r"labels.*expected 5 labels.*got 4"):
        mnist(tmp_path)
    write_split(tmp_path, "train", idx(LABELS), idx(LABELS))
    with pytest.raises(ValueError, match=r"images.*expected uint8 values in 3 dimensions.*\(5,\)"):
        mnist(tmp_path)
    write_split(tmp_path, "train", idx(IMAGES), idx(LABELS.astype(np.int32)))
    with pytest.raises(ValueError, match=r"labels.*expected uint8 values in 1 dimensions.*int32"):
        mnist(tmp_path)
    write_split(tmp_path, "train", idx(IMAGES[:0]), idx(LABELS[:0]))
    with pytest.raises(ValueError, match=r"none empty.*\(0, 4, 3\)"):
        mnist(tmp_path)


def test_missing_files_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        mnist(tmp_path)
    with pytest.raises(ValueError, match="received 'validation'"):
        mnist(tmp_path, "validation")
