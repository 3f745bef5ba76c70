"""A row of a source of images and masks -> a sample: reads and checks both."""

import dataclasses
import functools
import io
import pathlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from input_pipeline.conversion import guard
from input_pipeline.conversion.label_classes import Classes
from input_pipeline.conversion.planned_rows import SampleWithNotes
from input_pipeline.io import dicom, files, images
from input_pipeline.io.exif import orientation, upright
from input_pipeline.io.label_pictures import read_label_picture
from input_pipeline.segmentation_records import SegmentationSample


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
class MakePicture:
    """Turns a row of image files into a sample.

    `root` is not part of the `repr`, so that a corpus is the same wherever its images are.
    """

    root: pathlib.Path = dataclasses.field(repr=False)
    classes: Classes

    def __call__(self, row: MaskRow) -> SampleWithNotes:
        """Raises an error with the reason for a row that cannot be used."""
        data, mask_data = (_read(self.root / name) for name in (row.image, row.mask))
        if data == mask_data:
            raise ValueError(f"the image and its mask {row.mask} are the same file")
        image, notes = images.normalise(data)
        if dicom.MIDDLE_FRAME in notes:
            raise ValueError("the image has several frames, its mask one: write them as files")
        with Image.open(io.BytesIO(image)) as stored:
            width, height = stored.size
            if orientation(stored) != 1:
                raise ValueError("the image is turned by its EXIF data: save it upright")
        try:
            picture = read_label_picture(mask_data)
            mask, mask_notes = self.classes.label_map_of_picture(picture)
            mask = _turned_like(data, mask, picture.orientation)
        except ValueError as error:
            raise ValueError(f"mask {row.mask}: {error}") from error
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
        changed = None if image == data else functools.partial(guard.file_varies, data)
        return SampleWithNotes(sample, (*notes, *mask_notes), changed)


def _read(path: pathlib.Path) -> bytes:
    try:
        return files.read_bytes(path)
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error


def _turned_like(data: bytes, mask: np.ndarray, stated: int) -> np.ndarray:
    """A mask upright, as its image is stored.

    Only the image may say that it is turned, because programs write masks without EXIF data: a mask
    of the size of either is of the pixels or of what is displayed, another one is uncertain.

    Args:
      data: the image file.
      mask: (H, W), not turned.
      stated: EXIF orientation of the mask.

    Raises:
      ValueError: it is uncertain how the mask lies.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            of_image, raw = orientation(image), image.size[::-1]
    except UnidentifiedImageError:  # DICOM
        return upright(mask, stated)
    if of_image == stated:
        return upright(mask, stated)
    displayed = upright(np.empty(raw, np.bool_), of_image).shape
    if stated == 1 and displayed != raw and mask.shape in (raw, displayed):
        return upright(mask, of_image) if mask.shape == raw else mask
    raise ValueError(
        f"its EXIF orientation is {stated} and that of the image {of_image}: save both upright, "
        "without EXIF orientation"
    )
