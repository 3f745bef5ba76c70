"""Equal and nearly equal images: by checksum, and by the Hamming distance of perceptual hashes."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from input_pipeline.inspection.scan import ScannedImage
from input_pipeline.io.perceptual_hash import COPY_DISTANCE

_MAX_PAIRS = 1 << 22  # candidate pairs compared at a time: bounds memory


@dataclasses.dataclass(frozen=True)
class Group:
    """Images (indices, ascending) that are copies of each other; `exact` if byte for byte."""

    members: tuple[int, ...]
    exact: bool


def near_pairs(hashes: np.ndarray, max_distance: int) -> np.ndarray:
    """All pairs of hashes at most `max_distance` bits apart.

    Two hashes that differ in at most d bits agree wholly in one of d + 1 bands of bits: only hashes
    that share a band are compared. With 17 bands of 15 bits that is one pair in some two thousand,
    if bits are even.

    Args:
      hashes: uint8 (n, 32).
      max_distance: 0 <= d < 64.

    Returns:
      int64 (pairs, 2), each i < j, sorted.
    """
    if not 0 <= max_distance < 64:
        raise ValueError(f"max_distance is {max_distance}, expected 0 to 63")
    if len(hashes) < 2:
        return np.empty((0, 2), np.int64)
    bits = np.unpackbits(hashes, axis=1)
    words = np.ascontiguousarray(hashes).view(np.uint64)
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(max_distance + 1):
        # Every (d + 1)th bit: neighbouring frequencies are alike, and would fill a band unevenly.
        packed = np.packbits(bits[:, band :: max_distance + 1], axis=1)
        keys = np.zeros((len(hashes), 32), np.uint8)
        keys[:, : packed.shape[1]] = packed
        _, bucket = np.unique(keys, axis=0, return_inverse=True)
        for left, right in _pairs_within(bucket.reshape(-1)):
            distance = np.bitwise_count(words[left] ^ words[right]).sum(axis=1)
            near = distance <= max_distance
            pairs.append(np.sort(np.stack([left[near], right[near]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _pairs_within(bucket: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices in the same bucket, in parts of bounded size."""
    order = np.argsort(bucket, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(bucket[order]) != 0])
    ends = np.r_[starts[1:], len(order)]
    # The k-th part pairs each index with the k-th after it, as long as both are in one bucket.
    position = np.arange(len(order))
    end_of = np.repeat(ends, ends - starts)
    alive, step = position[position + 1 < end_of], 1
    while len(alive):
        for begin in range(0, len(alive), _MAX_PAIRS):
            part = alive[begin : begin + _MAX_PAIRS]
            yield order[part], order[part + step]
        step += 1
        alive = alive[alive + step < end_of[alive]]


def groups(images: Sequence[ScannedImage], max_distance: int = COPY_DISTANCE) -> list[Group]:
    """Groups of images that are linked by equality or nearness, largest first."""
    if not images:
        return []
    hashes = np.stack([image.phash for image in images])
    pairs = near_pairs(hashes, max_distance)
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(images), len(images)))
    _, component = connected_components(links, directed=False)
    members: dict[int, list[int]] = {}
    for index, number in enumerate(component.tolist()):
        members.setdefault(number, []).append(index)
    alike = [
        Group(tuple(group), exact=len({images[index].sha256 for index in group}) == 1)
        for group in members.values()
        if len(group) > 1
    ]
    return sorted(alike, key=lambda group: (-len(group.members), group.members))


@dataclasses.dataclass(frozen=True)
class Leak:
    """An image for training that is, or nearly is, one for evaluation; `distance` in bits."""

    image: int
    evaluation: int
    distance: int


def leaks(
    images: Sequence[ScannedImage],
    evaluation: Sequence[ScannedImage],
    max_distance: int = COPY_DISTANCE,
) -> list[Leak]:
    """The nearest evaluation image of every image that has one within reach."""
    if not images or not evaluation:
        return []
    hashes = np.stack([image.phash for image in (*images, *evaluation)])
    nearest: dict[int, Leak] = {}
    for left, right in near_pairs(hashes, max_distance).tolist():
        if left < len(images) <= right:
            distance = int(np.bitwise_count(hashes[left] ^ hashes[right]).sum())
            leak = Leak(left, right - len(images), distance)
            if left not in nearest or distance < nearest[left].distance:
                nearest[left] = leak
    return [nearest[index] for index in sorted(nearest)]


def in_evaluation(
    images: Sequence[ScannedImage], evaluation: Sequence[ScannedImage], leaks: Sequence[Leak]
) -> dict[int, str]:
    """Reasons to exclude leaked images, by index in `images`."""
    reasons = {}
    for leak in leaks:
        other = evaluation[leak.evaluation]
        kind = "equal to" if images[leak.image].sha256 == other.sha256 else "nearly equal to"
        reasons[leak.image] = f"{kind} {other.id} of {other.corpus}"
    return reasons


def in_other_splits(images: Sequence[ScannedImage], groups: Sequence[Group]) -> dict[int, str]:
    """Reasons to exclude images of a `train` split that are also in another split, by index."""
    reasons = {}
    for group in groups:
        others = [images[index] for index in group.members if images[index].split != "train"]
        for index in group.members if others else ():
            if images[index].split == "train":
                kind = "equal to" if group.exact else "nearly equal to"
                reasons[index] = f"{kind} {others[0].id} of split {others[0].split}"
    return reasons
