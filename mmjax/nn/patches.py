"""Pictures as rows of patches, and learned positions on a grid of another size."""

import jax
import numpy as np


def cut_patches(pixels: jax.Array, size: int) -> jax.Array:
    """[b H W 3] -> [b p size*size*3], patches and pixels within them in reading order."""
    b, height, width, channels = pixels.shape
    x = pixels.reshape(b, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * channels)


def resize_grid(x: np.ndarray, size: int) -> np.ndarray:
    """[g g d] -> [size size d] in float64, by torch's bicubic kernel: a = -0.75, corners not
    aligned, no antialias, the border repeated.

    Not `jax.image.resize`: its kernel has a = -0.5, and it smooths before it shrinks (MiniGPT-4
    reference, section 2).
    """
    rows, columns = (_bicubic(length, size) for length in x.shape[:2])
    return np.einsum("ig,jh,ghd->ijd", rows, columns, x.astype(np.float64))


def _bicubic(source: int, target: int) -> np.ndarray:
    """[target source]: how much each source place counts for each target place."""
    weights = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        first = int(np.floor(centre)) - 1
        for place in range(first, first + 4):
            # Places beyond the border count for the outermost one.
            weights[i, min(max(place, 0), source - 1)] += _cubic(abs(centre - place))
    return weights


def _cubic(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
