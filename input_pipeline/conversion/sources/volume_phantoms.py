"""The source `volume_phantoms`: generated volumes with labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from input_pipeline.conversion.planned_rows import PlannedRow
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.phantoms.volumes import VolumePhantomRow, make_sample
from input_pipeline.segmentation_records import SCHEMA


@dataclass(frozen=True)
class VolumePhantomOptions:
    """Flags of the source `volume_phantoms`."""

    num_volumes: Annotated[int, "number of volumes (8)"] = 8
    voxels: Annotated[int, "voxels along height and width (64)"] = 64
    anatomy_seed: Annotated[int, "seed of the phantoms (0)"] = 0
    held_out: Annotated[float, "fraction of volumes for the split val (0.25)"] = 0.25


def open_phantoms(options: VolumePhantomOptions) -> Conversion:
    """Never fails: there is no input."""
    return Conversion("volume_phantoms", _rows(options), make_sample, SCHEMA)


def _rows(options: VolumePhantomOptions) -> Iterator[PlannedRow[VolumePhantomRow]]:
    num_val = round(options.held_out * options.num_volumes)
    for index in range(options.num_volumes):
        name = f"volume-{options.anatomy_seed}-{index:05d}"
        row = VolumePhantomRow(name, options.voxels)
        yield PlannedRow(row, "val" if index < num_val else "train", name)
