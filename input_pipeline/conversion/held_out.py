"""Keeps the images of test sets out of a corpus: by their names, and by how they look.

A name tells the patient or article as well, so that all their images stay out. A picture that
equals a test image, or nearly does, stays out whatever its name is.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.conversion.planned_rows import Rejection, SampleWithNotes, SourceRow
from input_pipeline.io import images
from input_pipeline.io.perceptual_hash import COPY_DISTANCE, perceptual_hash

IN_SET = "in the test set"  # the beginning of reasons


def _reason(test_set: str, how: str, what: str) -> str:
    """`conversion.json` counts reasons up to the colon."""
    return f"{IN_SET} {test_set} by {how}: {what}"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A rule without a list: a regular expression for paths of the images of a whole test set."""

    test_set: str
    pattern: str


@dataclasses.dataclass(frozen=True)
class Names:
    """The images of test sets by the names that they have in one source.

    Attributes:
      identity: regular expression for a path, with groups `key` (the image) and, where paths tell
        it, `group` (the patient); as of `UnimedPart`.
      by: `group` or `image`.
      listed: identity -> (test set, how it was found: `name`, ...).
      folders: rules without a list.
    """

    identity: str = r"(?P<key>.+)"
    by: str = "group"
    listed: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    folders: tuple[Folder, ...] = ()

    def leave_out(self, rows: Iterable[SourceRow | Rejection]) -> Iterator[SourceRow | Rejection]:
        """The rows; those of test sets become rejections."""
        for row in rows:
            why = "" if isinstance(row, Rejection) else self.why(path_of(row.source, row.id))
            if why and isinstance(row, SourceRow):
                yield Rejection(why, row.row, row.id, row.image)
            else:
                yield row

    def why(self, path: str) -> str:
        """Why an image is left out; empty if it is not."""
        for folder in self.folders:
            if re.search(folder.pattern, path):
                return _reason(folder.test_set, "folder", path)
        match = re.search(self.identity, path) if self.listed else None
        found = self.listed.get(identity(match, self.by)) if match else None
        return _reason(found[0], found[1], path) if found else ""


def identity(match: re.Match[str], by: str) -> str:
    """The group, if there is one and it is requested; otherwise the key of the image."""
    return (by == "group" and match.groupdict().get("group")) or match["key"]


def path_of(source: str, row_id: str) -> str:
    """The path that names an image: its id without the source and the hash of its texts."""
    return re.sub("#[0-9a-f]{8}$", "", row_id.removeprefix(f"{source}/"))


@dataclasses.dataclass(frozen=True, repr=False)
class Pictures:
    """N pictures of test sets, by their hashes.

    Attributes:
      sha256: of the files, in any order.
      hashes: perceptual hashes, uint8 (N, 32).
      sets: the test set of each.
      ids: the name of each in it.
    """

    sha256: frozenset[bytes]
    hashes: np.ndarray
    sets: tuple[str, ...]
    ids: tuple[str, ...]

    def __repr__(self) -> str:
        """The same for the same pictures, because the hash of a plan is made of it."""
        digest = hashlib.sha256(self.hashes.tobytes())
        digest.update(repr((sorted(self.sha256), self.sets)).encode())
        return f"Pictures({digest.hexdigest()})"

    @functools.cached_property
    def _words(self) -> np.ndarray:
        return np.ascontiguousarray(self.hashes).view(np.uint64)

    def find(self, data: bytes) -> str:
        """Why an image (a file) is left out: the nearest picture within reach; empty for none."""
        if not len(self.hashes):
            return ""
        found = perceptual_hash(images.decode(data)[0]).view(np.uint64)
        distances = np.bitwise_count(self._words ^ found).sum(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] > COPY_DISTANCE:
            return ""
        equal = hashlib.sha256(data).digest() in self.sha256
        how = "equal file" if equal else "nearly equal picture"
        return _reason(self.sets[nearest], how, self.ids[nearest])


@dataclasses.dataclass(frozen=True)
class WithoutPictures:
    """Makes samples as another function does, and refuses those with an image of a test set."""

    make_sample: Callable[[Any], SampleWithNotes]
    pictures: Pictures

    def __call__(self, row: Any) -> SampleWithNotes:
        """Raises ValueError for the image of a test set."""
        made = self.make_sample(row)
        if why := self.pictures.find(made.sample.image):
            raise ValueError(why)
        return made


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The images that stay out, and facts about them for `conversion.json`."""

    names: Names
    pictures: Pictures
    facts: Mapping[str, Any]
