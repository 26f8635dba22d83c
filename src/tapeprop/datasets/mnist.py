"""MNIST, and whatever else is stored as idx files (Fashion-MNIST, KMNIST, EMNIST), plain or gzipped.

An idx file is two zero bytes, a byte for the number type, a byte for the number of dimensions, the dimensions as
big-endian 32-bit integers, and the values in row-major order, big-endian (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tapeprop.datasets.pixels import present

NUMBER_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_DIMENSIONS = 32
GZIP_MAGIC = b"\x1f\x8b"
GZIP_BEST_RATIO = 1032  # deflate codes at most 258 bytes in 2 bits
CHUNK_BYTES = 1 << 20
PREFIXES = {"train": "train", "test": "t10k"}


def mnist(
    folder: str | os.PathLike[str], split: str = "train", *, as_images: bool = True, normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of an MNIST-like folder: `train-images-idx3-ubyte` and its kin, plain or `.gz`.

    split: "train" or "test" (the files that begin with `t10k`).
    Returns X (N, 1, H, W) float32 in [0, 1] and y (N,) int64; MNIST has N = 60000 or 10000, H = W = 28.
    as_images=False gives X as (N, H * W). normalize=False gives the grey values 0..255 as uint8.
    Raises FileNotFoundError where a file is missing and ValueError where one is not what it should be.
    """
    if split not in PREFIXES:
        raise ValueError(f"mnist: split must be 'train' or 'test'; received {split!r}")
    images_path = _find(Path(folder), f"{PREFIXES[split]}-images", 3)
    labels_path = _find(Path(folder), f"{PREFIXES[split]}-labels", 1)
    images = _read_bytes(images_path, dimensions=3)
    labels = _read_bytes(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, as {images_path} has images; got {len(labels)}"
        )
    X = present(images, (1, *images.shape[1:]), 255, as_images=as_images, normalize=normalize)
    return X, labels.astype(np.int64)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an idx file, plain or gzipped: any shape, uint8, int8, int16, int32, float32 or float64.

    The header is checked against the file's size before memory is taken; a gzipped file is read in pieces, and no
    more of it than the header announces and one byte.
    Raises ValueError naming the file, what was expected and what came.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not zipped:
            return _read(path, file, most_bytes=size, exact=True)
        try:
            with gzip.open(file, "rb") as unzipped:
                return _read(path, unzipped, most_bytes=size * GZIP_BEST_RATIO, exact=False)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file; received one that is damaged ({error})") from error


def _read(path: Path, file: BinaryIO | gzip.GzipFile, *, most_bytes: int, exact: bool) -> np.ndarray:
    """most_bytes: how many bytes the file can hold, header included; `exact` where it holds just so many."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in NUMBER_TYPES:
        raise ValueError(
            f"{path}: expected an idx file, which begins with 00 00 and a number type of 08, 09, 0b, 0c, 0d or 0e; "
            f"received {magic.hex(' ') or 'an empty file'}"
        )
    number_type, dimensions = np.dtype(NUMBER_TYPES[magic[2]]), magic[3]
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"{path}: expected 1 to {MOST_DIMENSIONS} dimensions; received {dimensions}")
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise ValueError(f"{path}: expected {dimensions} sizes of 4 bytes after the magic; received {len(sizes)} bytes")
    shape = struct.unpack(f">{dimensions}I", sizes)
    expected = math.prod(shape) * number_type.itemsize
    room = most_bytes - len(magic) - len(sizes)
    if expected > room or (exact and expected < room):
        received = f"{room}" if exact else f"at most {room} (all that its compressed size can hold)"
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {shape}, {number_type.name}; received {received}"
        )
    values = _take(file, expected + 1)
    if len(values) != expected:
        received = "more" if len(values) > expected else f"{len(values)}"
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {shape}, {number_type.name}; received {received}"
        )
    return np.frombuffer(values, number_type).reshape(shape).astype(number_type.newbyteorder("="), copy=False)


def _take(file: BinaryIO | gzip.GzipFile, most: int) -> bytearray:
    """Up to `most` bytes. Memory grows with what comes, not with what a header promised."""
    taken = bytearray()
    while len(taken) < most:
        piece = file.read(min(CHUNK_BYTES, most - len(taken)))
        if not piece:
            break
        taken += piece
    return taken


def _read_bytes(path: Path, dimensions: int) -> np.ndarray:
    values = read_idx(path)
    if values.dtype != np.uint8 or values.ndim != dimensions or values.size == 0:
        raise ValueError(
            f"{path}: expected uint8 values in {dimensions} dimensions, none empty; "
            f"received {values.dtype} of shape {values.shape}"
        )
    return values


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    """The file under its two usual names, with or without `.gz`."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: expected one of {', '.join(names)}; received a folder without any of them")
