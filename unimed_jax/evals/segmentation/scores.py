"""Overlap and surface distance of two masks.

Masks are bool arrays of any number of dims; ``spacing`` is the distance between neighbors along
each of them, in mm (or 1 for pixels).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); NaN if the target is empty."""
    if not target.any():
        return float("nan")
    overlap = np.count_nonzero(prediction & target)
    return float(2 * overlap / (prediction.sum() + target.sum()))


def hausdorff95(prediction: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of the distances between the surfaces.

    The surface of a mask is what an erosion by the direct neighbors removes. NaN if the target is
    empty. If only the prediction is empty, the diagonal of the image, the largest possible
    distance: a miss is not ignored.
    """
    if not target.any():
        return float("nan")
    if not prediction.any():
        lengths = np.multiply(np.subtract(target.shape, 1), spacing)
        return float(np.sqrt(np.sum(lengths**2)))
    box = _bounding_box(prediction | target)
    surfaces = [_surface(mask[box]) for mask in (prediction, target)]
    directed = []
    for surface, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other, sampling=spacing)
        directed.append(np.percentile(distance[surface], 95))
    return float(max(directed))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around a mask: no distance within the mask leaves it."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)
