"""The source `mask_phantoms`: generated images with masks, each style a domain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from input_pipeline.conversion.planned_rows import PlannedRow
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.io.errors import CorpusError
from input_pipeline.phantoms.masks import STYLES, MaskPhantomRow, make_sample
from input_pipeline.segmentation_records import SCHEMA


@dataclass(frozen=True)
class PhantomOptions:
    """Flags of the source `mask_phantoms`."""

    style: Annotated[str, f"one of {', '.join(STYLES)}"]
    num_images: Annotated[int, "number of images (40)"] = 40
    image_size: Annotated[int, "side in pixels (96)"] = 96
    anatomy_seed: Annotated[int, "seed of the phantoms (0)"] = 0
    held_out: Annotated[float, "fraction of images for the split val (0.2)"] = 0.2


def open_phantoms(options: PhantomOptions) -> Conversion:
    """Raises CorpusError for an unknown style."""
    if options.style not in STYLES:
        raise CorpusError(f"style {options.style!r}; valid: {', '.join(STYLES)}")
    return Conversion("mask_phantoms", _rows(options), make_sample, SCHEMA)


def _rows(options: PhantomOptions) -> Iterator[PlannedRow[MaskPhantomRow]]:
    num_val = round(options.held_out * options.num_images)
    for index in range(options.num_images):
        name = f"phantom-{options.anatomy_seed}-{options.style}-{index:05d}"
        row = MaskPhantomRow(name, options.style, options.image_size)
        yield PlannedRow(row, "val" if index < num_val else "train", name)
