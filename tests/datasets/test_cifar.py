"""CIFAR folders, made here in the binary and the Python version, whole and damaged and hostile."""

import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tapeprop.datasets import cifar10, cifar100

RNG = np.random.default_rng(0)
TRAIN_NAMES = [f"data_batch_{i}" for i in range(1, 6)]


def random_batch(images: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (images, 3072), dtype=np.uint8), RNG.integers(0, classes, images)


def write_binary(path: Path, pixels: np.ndarray, *labels: np.ndarray) -> None:
    path.write_bytes(np.column_stack([*labels, pixels]).astype(np.uint8).tobytes())


def python2_pickle(pixels: np.ndarray, **labels: np.ndarray) -> bytes:
    """What Python 2 wrote into the authors' files: protocol 2, every string a byte string."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}q\x01(" + text(b"batch_label") + text(b"training batch 1 of 5")
    for name, values in labels.items():
        out += text(name.encode()) + b"]q\x02(" + b"".join(number(int(value)) for value in values) + b"e"
    raw = pixels.tobytes()
    out += text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
    out += b"(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    out += b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + number(-1) + number(-1) + b"K\x00tb"
    return out + b"I00\nT" + struct.pack("<i", len(raw)) + raw + b"tbu."


@pytest.mark.parametrize("version", ["binary", "python 2", "pickle protocol 3", "pickle protocol 4"])
def test_cifar10(tmp_path: Path, version: str) -> None:
    batches = {name: random_batch(2 + i) for i, name in enumerate([*TRAIN_NAMES, "test_batch"])}
    for name, (pixels, labels) in batches.items():
        if version == "binary":
            write_binary(tmp_path / f"{name}.bin", pixels, labels)
        elif version == "python 2":
            (tmp_path / name).write_bytes(python2_pickle(pixels, labels=labels))
        else:
            content = {b"data": pixels, b"labels": labels.tolist(), b"filenames": ["a.png", b"b.png"]}
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol=int(version[-1])))

    X, y = cifar10(tmp_path)
    pixels = np.concatenate([batches[name][0] for name in TRAIN_NAMES])
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    np.testing.assert_array_equal(X, (pixels.reshape(-1, 3, 32, 32) / np.float32(255)).astype(np.float32))
    np.testing.assert_array_equal(y, np.concatenate([batches[name][1] for name in TRAIN_NAMES]))

    raw, y = cifar10(str(tmp_path), "test", as_images=False, normalize=False)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, batches["test_batch"][0])
    np.testing.assert_array_equal(y, batches["test_batch"][1])
    raw[:] = 0  # writable


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar100_has_two_kinds_of_labels(tmp_path: Path, version: str) -> None:
    for name in ("train", "test"):
        pixels, fine = random_batch(4, 100)
        coarse = RNG.integers(0, 20, 4)
        if version == "binary":
            write_binary(tmp_path / f"{name}.bin", pixels, coarse, fine)
        else:
            (tmp_path / name).write_bytes(python2_pickle(pixels, fine_labels=fine, coarse_labels=coarse))
        X, y = cifar100(tmp_path, name, normalize=False)
        np.testing.assert_array_equal(X, pixels.reshape(4, 3, 32, 32))
        np.testing.assert_array_equal(y, fine)
        np.testing.assert_array_equal(cifar100(tmp_path, name, labels="coarse")[1], coarse)


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    pixels, labels = random_batch(3)
    content = {"data": np.asfortranarray(pixels), "labels": labels.tolist()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    np.testing.assert_array_equal(cifar10(tmp_path, "test", as_images=False, normalize=False)[0], pixels)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_binary_files_of_a_wrong_size_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"test_batch\.bin: expected a multiple of 3073 bytes.*received {size}"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("version", ["binary", "python"])
def test_labels_out_of_range_are_refused(tmp_path: Path, version: str) -> None:
    pixels, labels = random_batch(2)
    labels[1] = 10
    if version == "binary":
        write_binary(tmp_path / "test_batch.bin", pixels, labels)
    else:
        (tmp_path / "test_batch").write_bytes(python2_pickle(pixels, labels=labels))
    with pytest.raises(ValueError, match=r"test_batch.*: expected labels 0 to 9; received 10"):
        cifar10(tmp_path, "test")


class Hostile:
    """Its pickle asks for a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


PIXELS, LABELS = random_batch(2)
GOOD = python2_pickle(PIXELS, labels=LABELS)


def dumped(protocol: int = 4, **entries: object) -> bytes:
    """A batch with some entries replaced; those come first."""
    return pickle.dumps(entries | {"data": PIXELS, "labels": LABELS.tolist()} | entries, protocol=protocol)


DAMAGED = {
    "empty": (b"", "expected a pickle"),
    "cut off": (GOOD[:-100], "expected a pickle"),
    "no pickle": (b"PNG" + GOOD, "expected a pickle"),
    "no dictionary": (pickle.dumps([1, 2]), "expected a pickled dictionary.*received list"),
    "keys that are no names": (pickle.dumps({(1, 2): 3}), "expected a pickled dictionary with names"),
    "no data": (pickle.dumps({"labels": [1]}), "expected an entry 'data'; received 'labels'"),
    "no labels": (pickle.dumps({"data": PIXELS}, protocol=4), "expected an entry 'labels'; received 'data'"),
    "data of another type": (dumped(data=PIXELS.astype(np.float32)), "expected a uint8 array"),
    "data of another shape": (dumped(data=PIXELS[:, :5].copy()), r"uint8 array \(N, 3072\); received uint8 \(2, 5\)"),
    "data that is no array": (dumped(data=[1]), "received list"),
    "objects for data": (dumped(data=np.array([None, {}], dtype=object)), "expected a uint8 array"),
    "too few labels": (dumped(labels=[1]), "expected a label for each of 2 images; received 1"),
    "labels of another type": (dumped(labels=[1, "2"]), "list of integers"),
    "labels beyond int64": (dumped(labels=[1, 2**70]), "class numbers"),
    "bytes that do not fill the shape": (
        GOOD.replace(b"J" + struct.pack("<i", 3072), b"J" + struct.pack("<i", 2**31 - 1)),
        "expected 4294967294 bytes.*received 6144",
    ),
    "a memo as large as memory": (b"\x80\x02Kcr\xff\xff\xff\x7f0.", "memo index"),
    "an instruction for any object": (b"\x80\x02c__builtin__\nobject\n)\x81.", "the instruction NEWOBJ"),
    "a persistent id": (b"Pid\n.", "the instruction PERSID"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_pickles_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    content, named = DAMAGED[damage]
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(tmp_path / 'test_batch'))}: .*{named}"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.mkdir, eval, np.load, np.save])
def test_a_pickle_runs_nothing(tmp_path: Path, function: object, protocol: int) -> None:
    target = tmp_path / "made-by-the-pickle"
    argument = f"__import__('os').mkdir({str(target)!r})" if function is eval else str(target)
    (tmp_path / "test_batch").write_bytes(dumped(protocol, labels=Hostile(function, argument), data=[]))
    with pytest.raises(ValueError, match="expected a pickle of plain data and arrays; received the name"):
        cifar10(tmp_path, "test")
    assert not target.exists()


def test_missing_files_and_wrong_choices_are_named(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(GOOD)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin.*data_batch_5"):
        cifar10(tmp_path)
    with pytest.raises(ValueError, match="received 'validation'"):
        cifar10(tmp_path, "validation")
    with pytest.raises(ValueError, match="received 'both'"):
        cifar100(tmp_path, labels="both")
