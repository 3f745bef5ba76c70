"""A row of a source of images and masks -> a sample: reads and checks both."""

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image

from input_pipeline.conversion.planned_rows import SampleWithNotes, rejecting_invalid
from input_pipeline.io import images
from input_pipeline.segmentation_records import SegmentationSample

ANY_VALUE = "*"  # every mask value above 0 that is not named


@dataclasses.dataclass(frozen=True)
class MaskRow:
    """An image and its mask as files, both relative to a root.

    Attributes:
      row: number in the input, from 1.
      num_bytes: size of both files; a changed size changes the hash of the plan.
      group: patient; empty where unknown.
    """

    row: int
    id: str
    image: str
    mask: str
    num_bytes: int
    split: str
    modality: str
    source: str
    group: str


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a mask file: names in the order of label values, and their grey values."""

    names: tuple[str, ...]
    values: tuple[int | str, ...]  # ANY_VALUE at most once

    @classmethod
    def parse(cls, text: str) -> "Classes":
        """`vessel`: all values above 0. `liver,kidney`: 1 and 2. `disc=*,cup=128`: as given.

        Raises ValueError for anything else.
        """
        parts = [part.strip().partition("=") for part in text.split(",")]
        names = tuple(name.strip() for name, _, _ in parts)
        given = [value.strip() for _, sign, value in parts if sign]
        if not all(names) or len(set(names)) < len(names) or 0 < len(given) < len(names):
            raise ValueError("expected NAME,NAME,... or NAME=VALUE,NAME=VALUE,...")
        values: tuple[int | str, ...]
        if not given:
            values = (ANY_VALUE,) if len(names) == 1 else tuple(range(1, len(names) + 1))
        else:
            values = tuple(v if v == ANY_VALUE else int(v) for v in given)
        numbers = [v for v in values if isinstance(v, int)]
        if len(set(values)) < len(values) or any(not 0 < v < 256 for v in numbers):
            raise ValueError("values must differ and be 1 to 255, or * for all others")
        return cls(names, values)

    def label_map(self, grey: np.ndarray) -> np.ndarray:
        """uint8 grey values -> uint8 label values. Raises ValueError for a value of no class."""
        table = np.full(256, 255, np.uint8)
        if ANY_VALUE in self.values:
            table[1:] = self.values.index(ANY_VALUE) + 1
        for label, value in enumerate(self.values, 1):
            if isinstance(value, int):
                table[value] = label
        table[0] = 0
        labels = table[grey]
        if (labels == 255).any():
            strange = np.unique(grey[labels == 255]).tolist()
            known = dict(zip(self.names, self.values, strict=True))
            raise ValueError(f"mask values of no class: {strange[:5]}; the classes are {known}")
        return labels

    def label_map_of_some(self, values: np.ndarray) -> np.ndarray:
        """Values of any dtype -> uint8 label values; those of no class become 0."""
        labels = np.zeros(values.shape, np.uint8)
        for label, value in enumerate(self.values, 1):
            labels[values > 0 if value == ANY_VALUE else values == value] = label
        return labels


@dataclasses.dataclass(frozen=True)
class MakePicture:
    """Turns a row of image files into a sample.

    `root` is not part of the `repr`, so that a corpus is the same wherever its images are.
    """

    root: pathlib.Path = dataclasses.field(repr=False)
    classes: Classes

    def __call__(self, row: MaskRow) -> SampleWithNotes:
        """Raises RejectedSample, with the reason, for a row that cannot be used."""
        with rejecting_invalid(row):
            image, notes = images.normalise(_read(self.root / row.image))
            mask = self.classes.label_map(_grey(_read(self.root / row.mask)))
            height, width = Image.open(io.BytesIO(image)).size[::-1]
            if mask.shape != (height, width):
                raise ValueError(f"the image is {height} x {width}, its mask {mask.shape}")
            sample = SegmentationSample.from_encoded(
                image,
                mask,
                id=row.id,
                classes=self.classes.names,
                modality=row.modality,
                source=row.source,
                group=row.group,
            )
        return SampleWithNotes(sample, notes)


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error


def _grey(data: bytes) -> np.ndarray:
    """The values of a mask file, uint8 (H, W); palette indices as they are, of colours the red."""
    mask, _ = images.decode(data)
    pixels = np.asarray(mask.convert("L") if mask.mode == "1" else mask)
    return pixels if pixels.ndim == 2 else pixels[..., 0]
