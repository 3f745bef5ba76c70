"""A network's answer for a whole volume, window by window, with memory for one band of windows.

Windows overlap and are averaged with Gaussian weights. They are visited along the depth, and what
no further window reaches is handed on at once: besides the batch of windows on the devices, only
the probabilities of one window's depth are in memory, however deep the volume is. Positions and
weights are MONAI's, as is the padding with 0 of a volume that is smaller than a window.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

Shape = tuple[int, int, int]

_SIGMA = 0.125  # of the Gaussian, as a share of the window
_SMALLEST_WEIGHT = 1e-3


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: evenly, but for the last, which ends at the border."""
    step = max(int(window * (1 - overlap)), 1)
    last = max(length - window, 0)
    return [*range(0, last, step), last]


def weights(window: Shape) -> np.ndarray:
    """float32 of the window's shape: exp(-r^2 / 2 sigma^2) about its centre, at least 1e-3."""
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
    """The averaged answers, from the top to the bottom of the volume.

    Args:
      read: (start, stop) -> these slices of the volume, float32 (d, H, W).
      shape: of the volume, (D, H, W).
      window: that ``predict`` takes.
      predict: float32 (batch_size, *window, 1) -> float32 (batch_size, *window, outputs).
      overlap: of neighbouring windows, as a share of the window, in [0, 1).
      batch_size: windows that are predicted together.

    Yields:
      float32 (d, H, W, outputs), one band after the other; their depths add up to D.
    """
    padded = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
    before = tuple((p - n) // 2 for p, n in zip(padded, shape, strict=True))
    importance = weights(window)[..., None]
    plane = list(
        itertools.product(*(starts(padded[axis], window[axis], overlap) for axis in (1, 2)))
    )
    inner = tuple(slice(before[axis], before[axis] + shape[axis]) for axis in (1, 2))
    tops = starts(padded[0], window[0], overlap)
    total: np.ndarray | None = None
    weight = np.zeros((window[0], *padded[1:], 1), np.float32)
    for top, following in zip(tops, [*tops[1:], padded[0]], strict=True):
        band = _band(read, top, shape, window, padded, before)
        for first in range(0, len(plane), batch_size):
            places = plane[first : first + batch_size]
            batch = np.zeros((batch_size, *window, 1), np.float32)
            for row, (y, x) in enumerate(places):
                batch[row, ..., 0] = band[:, y : y + window[1], x : x + window[2]]
            answers = predict(batch)
            if total is None:
                total = np.zeros((window[0], *padded[1:], answers.shape[-1]), np.float32)
            for answer, (y, x) in zip(answers, places, strict=False):
                part = (slice(None), slice(y, y + window[1]), slice(x, x + window[2]))
                total[part] += importance * answer
                weight[part] += importance
        done = following - top
        finished = total[(slice(0, done), *inner)] / weight[(slice(0, done), *inner)]
        # of a shallow volume, the padding above and below
        own = slice(max(before[0] - top, 0), before[0] + shape[0] - top)
        if len(finished[own]):
            yield finished[own]
        for array in (total, weight):
            array[: window[0] - done] = array[done:].copy()
            array[window[0] - done :] = 0


def _band(
    read: Callable[[int, int], np.ndarray],
    top: int,
    shape: Shape,
    window: Shape,
    padded: Shape,
    before: Shape,
) -> np.ndarray:
    """The slices of the padded volume that windows at ``top`` see."""
    band = np.zeros((window[0], *padded[1:]), np.float32)
    first = max(top - before[0], 0)
    last = min(top + window[0] - before[0], shape[0])
    place = first + before[0] - top
    inner = tuple(slice(before[axis], before[axis] + shape[axis]) for axis in (1, 2))
    band[(slice(place, place + last - first), *inner)] = read(first, last)
    return band
