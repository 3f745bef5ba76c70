"""Overlap and surface distance of two regions, and intervals of their means.

Regions are bool arrays of any number of dims; ``spacing`` is the distance between neighbours along
each of them, in mm (or 1 for pixels).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

NUM_RESAMPLES = 1000
LEVEL = 0.95


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); NaN where the truth has no such region."""
    if not truth.any():
        return float("nan")
    return float(2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()))


def hausdorff95(found: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of the distances between the surfaces.

    A surface is what an erosion by the direct neighbours takes away. NaN where the truth has no
    such region; where only ``found`` is empty, the diagonal of the image, the largest distance
    that there can be: a miss is not left out.
    """
    if not truth.any():
        return float("nan")
    if not found.any():
        lengths = np.multiply(np.subtract(truth.shape, 1), spacing)
        return float(np.sqrt(np.sum(lengths**2)))
    window = _window(found | truth)
    surfaces = [_surface(region[window]) for region in (found, truth)]
    directed = []
    for surface, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other, sampling=spacing)
        directed.append(np.percentile(distance[surface], 95))
    return float(max(directed))


def _window(region: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a region: distances outside of it play no part."""
    return ndimage.find_objects(region.astype(np.uint8))[0]


def _surface(region: np.ndarray) -> np.ndarray:
    return region & ~ndimage.binary_erosion(region)


def mean_interval(
    values: np.ndarray, groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the values that are numbers, and its percentile bootstrap interval (95 %).

    Whole groups (patients) are drawn with replacement, 1,000 times; the draws are a function of the
    seed and the number of groups. NaN where no value is a number.
    """
    defined = np.isfinite(values)
    if not defined.any():
        return (float("nan"),) * 3
    _, group = np.unique(np.asarray(groups)[defined], return_inverse=True)
    sums = np.bincount(group, weights=values[defined])
    counts = np.bincount(group)
    rng = np.random.default_rng(seed)
    share = np.full(len(sums), 1 / len(sums))
    draws = rng.multinomial(len(sums), share, size=NUM_RESAMPLES)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(sums.sum() / counts.sum()), float(low), float(high)
