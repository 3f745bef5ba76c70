"""Where the images are that annotation files name: copies differ in folders and path prefixes."""

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath

from input_pipeline.io.files import AnyPath

PROBED_ROWS = 100


@dataclasses.dataclass(frozen=True)
class Places:
    """The location of images: a folder below --raw, and whether their paths lose a prefix."""

    folder: str
    shortened: bool
    prefixes: tuple[str, ...]

    def path(self, image: str) -> str:
        """The path below --raw of an image that the annotations name."""
        name = self.canonical(image) if self.shortened else image
        return f"{self.folder}/{name}" if self.folder else name

    def canonical(self, image: str) -> str:
        """The image without a prefix that some copies have and others lack."""
        prefixes = sorted(self.prefixes, key=len, reverse=True)
        prefix = next((p for p in prefixes if image.startswith(p)), "")
        return image.removeprefix(prefix)


def probe(
    raw: AnyPath, images: Sequence[str], folders: Sequence[str], prefixes: tuple[str, ...]
) -> Places:
    """The place that holds most of some images; if none is there, most folders of the first."""

    def score(place: Places) -> tuple[int, int]:
        found = sum((raw / place.path(image)).is_file() for image in images)
        parents = list(PurePosixPath(place.path(images[0])).parents)[:-1] if images else []
        return found, 0 if found else sum((raw / str(path)).is_dir() for path in parents)

    return max(
        (Places(folder, s, prefixes) for folder in folders for s in (False, True)), key=score
    )
