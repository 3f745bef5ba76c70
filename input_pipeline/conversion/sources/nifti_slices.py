"""The source `nifti_slices`: volumes with label volumes, cut into 2-D slices.

The processed archives of SLAug have this layout: `image_ID.nii.gz` beside `label_ID.nii.gz`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from input_pipeline.conversion import guard
from input_pipeline.conversion.label_classes import Classes
from input_pipeline.conversion.nifti_pairs import count_unused, labelled, read_labels, read_pair
from input_pipeline.conversion.planned_rows import (
    PlannedRow,
    RejectedSample,
    Rejection,
    SampleWithNotes,
    rejecting_invalid,
)
from input_pipeline.conversion.sources.base import Conversion, corpus_name, is_file, num_bytes
from input_pipeline.conversion.sources.masks import held_out
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.intensity_windows import MINMAX, Window, rescaled
from input_pipeline.io.nifti import NiftiVolume
from input_pipeline.segmentation_records import SCHEMA, SegmentationSample


@dataclass(frozen=True)
class NiftiOptions:
    """Flags of the `nifti_slices` source."""

    raw: Annotated[Path, "folder of the volumes"]
    modality: Annotated[str, "modality of all volumes: ct, mri"]
    classes: Annotated[
        str, "names of label values, as for the source masks: 'liver=6,spleen=1'; others count as 0"
    ]
    source: Annotated[str | None, "name of the domain (name of the folder)"] = None
    image_prefix: Annotated[str, "prefix of the id in image names (image_)"] = "image_"
    label_prefix: Annotated[str, "prefix of the id in label names (label_)"] = "label_"
    window: Annotated[
        str,
        "'-125,275': values that become 0 and 1; 'percentiles:0.5,99.5' or 'minmax' of the volume "
        "(minmax)",
    ] = MINMAX
    all_slices: Annotated[bool, "include slices before the first and after the last label"] = False
    held_out: Annotated[float, "fraction of the volumes for the split val (0.2)"] = 0.2


@dataclass(frozen=True)
class SliceRow:
    """A slice of a volume; `num_bytes` is the size of both files."""

    row: int
    id: str
    image: str
    label: str
    index: int
    num_bytes: int
    split: str
    modality: str
    source: str
    group: str


def open_nifti(options: NiftiOptions) -> Conversion:
    """Opens volumes as axial slices: headers give the axes right, anterior, superior.

    Raises:
      CorpusError: there are no volumes, or a flag is invalid.
      UserError: nibabel is not installed.
    """
    try:
        classes = Classes.parse(options.classes)
        window = Window.parse(options.window)
    except ValueError as error:
        raise CorpusError(
            f"--classes={options.classes} --window={options.window}: {error}"
        ) from None
    if not 0 <= options.held_out < 1:
        raise CorpusError(f"--held_out={options.held_out}: expected a share in [0, 1)")
    volumes = sorted(options.raw.glob(f"{options.image_prefix}*.nii*"))
    if not volumes:
        raise CorpusError(f"{options.raw} holds no {options.image_prefix}*.nii or .nii.gz")
    name = corpus_name(options.raw.resolve().name)
    used = [path for image in volumes for path in (image.name, _label_of(image, options).name)]
    return Conversion(
        name=name,
        rows=_rows(options, volumes, options.source or name),
        make_sample=MakeSlice(options.raw, classes, window),
        schema=SCHEMA,
        inputs=count_unused(options.raw, used),
        limits={guard.EMPTY: 1.0} if options.all_slices else {},
    )


def _label_of(image: Path, options: NiftiOptions) -> Path:
    return image.with_name(image.name.replace(options.image_prefix, options.label_prefix, 1))


def _rows(
    options: NiftiOptions, volumes: list[Path], source: str
) -> Iterator[PlannedRow[SliceRow] | Rejection]:
    ids = [path.name.removeprefix(options.image_prefix).split(".nii")[0] for path in volumes]
    val = held_out(ids, options.held_out)
    number = 0
    for path, volume in zip(volumes, ids, strict=True):
        label = _label_of(path, options)
        if not is_file(label):
            number += 1
            yield Rejection("no label volume of its name", number, f"{source}/{volume}", path.name)
            continue
        try:
            with rejecting_invalid(Rejection("", number + 1, f"{source}/{volume}", label.name)):
                labels = read_labels(NiftiVolume(label))
                if not (options.all_slices or labels.any()):
                    raise ValueError("all labels are 0, so no slice is used: --all_slices uses all")
        except RejectedSample as error:
            number += 1
            yield error.rejection
            continue
        size = num_bytes(path, label)
        indices = range(labels.shape[0])
        if not options.all_slices:
            used = np.flatnonzero(labels.any(axis=(1, 2)))
            indices = range(used.min(), used.max() + 1)
        for index in indices:
            number += 1
            row = SliceRow(
                row=number,
                id=f"{source}/{volume}/{index:04d}",
                image=path.name,
                label=label.name,
                index=index,
                num_bytes=size,
                split="val" if volume in val else "train",
                modality=options.modality,
                source=source,
                group=volume,
            )
            yield PlannedRow(
                row,
                row.split,
                row.id,
                number,
                path.name,
                (source, volume),
                4 * labels.shape[1] * labels.shape[2],
            )


@dataclass(frozen=True)
class MakeSlice:
    """Turns a row into a sample of float32 values in 0..1."""

    root: Path = field(repr=False)
    classes: Classes
    window: Window

    def __call__(self, row: SliceRow) -> SampleWithNotes:
        """Raises an error with the reason for a row that cannot be used."""
        pair = _load(self.root / row.image, self.root / row.label)
        limits = self.window.limits(pair.values)
        # radiological view: rows from front to back, the patient's right on the left
        pixels, labels = (v[row.index, ::-1, ::-1] for v in (pair.values, pair.labels))
        mask, notes = labelled(self.classes, labels)
        sample = SegmentationSample.from_array(
            rescaled(pixels, limits),
            mask,
            id=row.id,
            classes=self.classes.names,
            modality=row.modality,
            source=row.source,
            group=row.group,
            spacing=pair.spacing,
        )
        in_file = functools.partial(guard.varies, pixels, float(np.ptp(pair.values)))
        return SampleWithNotes(sample, notes, in_file)


_load = functools.lru_cache(maxsize=2)(read_pair)  # slices of a volume come in no fixed order
