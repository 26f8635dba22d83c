"""CIFAR-10 and CIFAR-100 from a folder of their files, in the binary or in the Python version.

The layout is the authors' (https://www.cs.toronto.edu/~kriz/cifar.html). The Python version is pickled, and loading a
pickle may run whatever program its writer chose; how that is prevented stands in `safe_pickle.py`.
"""

import os
from pathlib import Path

import numpy as np

from tapeprop.datasets.pixels import present
from tapeprop.datasets.safe_pickle import load_arrays

IMAGE_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
CIFAR10_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CIFAR100_FILES = {"train": ["train"], "test": ["test"]}
# Label bytes before the pixels of a record in the binary version, and keys in the Python version: (name, classes).
CIFAR10_LABELS = [("labels", 10)]
CIFAR100_LABELS = [("coarse_labels", 20), ("fine_labels", 100)]


def cifar10(
    folder: str | os.PathLike[str], split: str = "train", *, as_images: bool = True, normalize: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 from the folder that its archive unpacks to (`cifar-10-batches-bin` or `cifar-10-batches-py`).

    split: "train" (five files, 50000 images) or "test" (one file, 10000 images).
    Returns X (N, 3, 32, 32) float32 in [0, 1] and y (N,) int64, classes 0 to 9.
    as_images=False gives X as (N, 3072), all red, then all green, then all blue. normalize=False gives uint8.
    Raises FileNotFoundError where a file is missing and ValueError where one is not what it should be.
    """
    return _load("cifar10", Path(folder), CIFAR10_FILES, split, CIFAR10_LABELS, 0, as_images, normalize)


def cifar100(
    folder: str | os.PathLike[str],
    split: str = "train",
    *,
    labels: str = "fine",
    as_images: bool = True,
    normalize: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-100 from the folder that its archive unpacks to (`cifar-100-binary` or `cifar-100-python`).

    labels: "fine" (100 classes) or "coarse" (20 superclasses). Otherwise as `cifar10`.
    """
    if labels not in ("fine", "coarse"):
        raise ValueError(f"cifar100: labels must be 'fine' or 'coarse'; received {labels!r}")
    which = 1 if labels == "fine" else 0
    return _load("cifar100", Path(folder), CIFAR100_FILES, split, CIFAR100_LABELS, which, as_images, normalize)


def _load(
    caller: str,
    folder: Path,
    files: dict[str, list[str]],
    split: str,
    label_fields: list[tuple[str, int]],
    which: int,
    as_images: bool,
    normalize: bool,
) -> tuple[np.ndarray, np.ndarray]:
    if split not in files:
        raise ValueError(f"{caller}: split must be 'train' or 'test'; received {split!r}")
    parts = []
    for path in _find(folder, files[split]):
        read = _read_binary if path.suffix == ".bin" else _read_python
        pixels, labels = read(path, label_fields, which)
        classes = label_fields[which][1]
        if labels.min() < 0 or labels.max() >= classes:
            worst = labels.max() if labels.max() >= classes else labels.min()
            raise ValueError(f"{path}: expected labels 0 to {classes - 1}; received {worst}")
        parts.append((pixels, labels))
    samples = sum(len(labels) for _, labels in parts)
    form = (samples, *IMAGE_SHAPE) if as_images else (samples, PIXELS)
    X = np.empty(form, np.float32 if normalize else np.uint8)
    y = np.empty(samples, np.int64)
    start = 0
    for pixels, labels in parts:
        end = start + len(labels)
        X[start:end] = present(pixels, IMAGE_SHAPE, 255, as_images=as_images, normalize=normalize)
        y[start:end] = labels
        start = end
    return X, y


def _find(folder: Path, names: list[str]) -> list[Path]:
    """The files of the binary version, or where one of them is missing, those of the Python version."""
    for suffix in (".bin", ""):
        paths = [folder / f"{name}{suffix}" for name in names]
        if all(path.is_file() for path in paths):
            return paths
    binary = ", ".join(f"{name}.bin" for name in names)
    raise FileNotFoundError(
        f"{folder}: expected {binary}, or {', '.join(names)}; received a folder without all of them"
    )


def _read_binary(path: Path, label_fields: list[tuple[str, int]], which: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) and labels (N,), views of one (N, labels + 3072) uint8 array."""
    record = len(label_fields) + PIXELS
    size = path.stat().st_size
    if size == 0 or size % record:
        raise ValueError(f"{path}: expected a multiple of {record} bytes, one record per image; received {size}")
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    return records[:, len(label_fields) :], records[:, which]


def _read_python(path: Path, label_fields: list[tuple[str, int]], which: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3072) uint8 and labels (N,) int64."""
    batch = load_arrays(path)
    name, _ = label_fields[which]
    for key in ("data", name):
        if key not in batch:
            raise ValueError(f"{path}: expected an entry {key!r}; received {', '.join(map(repr, batch)) or 'none'}")
    pixels, labels = batch["data"], batch[name]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        received = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{path}: expected 'data' to be a uint8 array (N, {PIXELS}); received {received}")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError(f"{path}: expected {name!r} to be a list of integers; received {type(labels).__name__}")
    if not labels or len(labels) != len(pixels):
        raise ValueError(f"{path}: expected a label for each of {len(pixels)} images; received {len(labels)}")
    if max(labels) > np.iinfo(np.int64).max or min(labels) < np.iinfo(np.int64).min:
        raise ValueError(f"{path}: expected labels that are class numbers; received {max(labels, key=abs)}")
    return pixels, np.array(labels, np.int64)
