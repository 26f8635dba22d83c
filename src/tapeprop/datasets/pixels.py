"""What every image loader does with the pixels that it read."""

import numpy as np


def present(
    pixels: np.ndarray, image_shape: tuple[int, ...], largest: int, *, as_images: bool, normalize: bool
) -> np.ndarray:
    """The pixels in the form that the caller asked for, always a fresh, writable array.

    pixels: (N, ...) uint8. image_shape: (C, H, W). largest: the pixel value that becomes 1.0.
    Returns (N, C, H, W), or (N, C * H * W) without `as_images`; float32 in [0, 1], or uint8 without `normalize`.
    """
    features = int(np.prod(image_shape))
    shaped = pixels.reshape((len(pixels), *image_shape) if as_images else (len(pixels), features))
    if not normalize:
        return shaped.copy()
    return np.divide(shaped, largest, dtype=np.float32)
