"""The handwritten digits that ship inside the package."""

from pathlib import Path

import numpy as np

from tapeprop.datasets.pixels import present

DATA = Path(__file__).parent / "data" / "digits.npz"


def digits(*, as_images: bool = True, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """1,797 real handwritten digits of 8x8 pixels, classes 0 to 9, about 180 of each.

    Returns X (1797, 1, 8, 8) float32 in [0, 1] and y (1797,) int64; fresh arrays at every call.
    as_images=False gives X as (1797, 64). normalize=False gives the grey values 0..16 as uint8.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), CC BY 4.0; see
    data/README.md.

    >>> X, y = digits()
    >>> X.shape, y.shape
    ((1797, 1, 8, 8), (1797,))
    """
    with np.load(DATA, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    return present(images, (1, 8, 8), 16, as_images=as_images, normalize=normalize), labels.astype(np.int64)
