"""Sliding-window inference over whole volumes, with memory for one slab of windows.

Overlapping windows are averaged with Gaussian weights. They are processed along the depth, and
slices that no later window covers are yielded immediately. Besides the batch of windows on the
devices, only the probabilities of one window depth are in memory, for volumes of any depth. The
positions, the weights and the zero padding of volumes smaller than a window are those of MONAI.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

Shape = tuple[int, int, int]

_SIGMA = 0.125  # standard deviation of the Gaussian, as a share of the window
_SMALLEST_WEIGHT = 1e-3


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis, evenly spaced; the last ends at the border."""
    step = max(int(window * (1 - overlap)), 1)
    last = max(length - window, 0)
    return [*range(0, last, step), last]


def weights(window: Shape) -> np.ndarray:
    """Weights exp(-r^2 / 2 sigma^2) around the center, at least 1e-3; float32 (D, H, W)."""
    axes = []
    for size in window:
        offset = np.arange(size, dtype=np.float32) - (size - 1) / 2
        axes.append(np.exp(-np.square(offset) / (2 * (_SIGMA * size) ** 2)))
    product = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    smallest = max(float(product[product > 0].min()), _SMALLEST_WEIGHT)
    return np.maximum(product, smallest).astype(np.float32)


def probabilities(
    read: Callable[[int, int], np.ndarray],
    shape: Shape,
    window: Shape,
    predict: Callable[[np.ndarray], np.ndarray],
    *,
    overlap: float,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Predicts a volume, slab by slab from top to bottom.

    Args:
      read: (start, stop) -> slices of the volume, float32 (d, H, W).
      shape: (D, H, W) of the volume.
      window: size of the windows in voxels.
      predict: float32 (batch_size, *window, 1) -> float32 (batch_size, *window, outputs).
      overlap: overlap of adjacent windows, as a share of a window, in [0, 1).
      batch_size: number of windows that are predicted together.

    Yields:
      Probabilities of the next slab, float32 (d, H, W, outputs); the depths add up to D.
    """
    padded = _by_axis(max, shape, window)
    before = _by_axis(lambda p, n: (p - n) // 2, padded, shape)
    importance = weights(window)[..., None]
    plane = list(
        itertools.product(*(starts(padded[axis], window[axis], overlap) for axis in (1, 2)))
    )
    inner = tuple(slice(before[axis], before[axis] + shape[axis]) for axis in (1, 2))
    tops = starts(padded[0], window[0], overlap)
    total: np.ndarray | None = None
    weight = np.zeros((window[0], *padded[1:], 1), np.float32)
    for top, following in zip(tops, [*tops[1:], padded[0]], strict=True):
        slab = _slab(read, top, shape, window, padded, before)
        for first in range(0, len(plane), batch_size):
            corners = plane[first : first + batch_size]
            batch = np.zeros((batch_size, *window, 1), np.float32)
            for row, (y, x) in enumerate(corners):
                batch[row, ..., 0] = slab[:, y : y + window[1], x : x + window[2]]
            outputs = predict(batch)
            if total is None:
                total = np.zeros((window[0], *padded[1:], outputs.shape[-1]), np.float32)
            for output, (y, x) in zip(outputs, corners, strict=False):
                part = (slice(None), slice(y, y + window[1]), slice(x, x + window[2]))
                total[part] += importance * output
                weight[part] += importance
        assert total is not None  # every slab has at least one window
        done = following - top
        finished = total[(slice(0, done), *inner)] / weight[(slice(0, done), *inner)]
        # a shallow volume has padding above and below
        inside = slice(max(before[0] - top, 0), before[0] + shape[0] - top)
        if len(finished[inside]):
            yield finished[inside]
        for array in (total, weight):
            array[: window[0] - done] = array[done:].copy()
            array[window[0] - done :] = 0


def _by_axis(function: Callable[[int, int], int], first: Shape, second: Shape) -> Shape:
    depth, height, width = map(function, first, second)
    return depth, height, width


def _slab(
    read: Callable[[int, int], np.ndarray],
    top: int,
    shape: Shape,
    window: Shape,
    padded: Shape,
    before: Shape,
) -> np.ndarray:
    """The slices of the padded volume that windows at ``top`` cover."""
    slab = np.zeros((window[0], *padded[1:]), np.float32)
    first = max(top - before[0], 0)
    last = min(top + window[0] - before[0], shape[0])
    offset = first + before[0] - top
    inner = tuple(slice(before[axis], before[axis] + shape[axis]) for axis in (1, 2))
    slab[(slice(offset, offset + last - first), *inner)] = read(first, last)
    return slab
