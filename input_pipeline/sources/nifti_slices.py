"""The source `nifti_slices`: volumes with label volumes, cut into 2-D slices.

SLAug's processed archives have this layout: `image_ID.nii.gz` beside `label_ID.nii.gz`.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from input_pipeline.errors import CorpusError, UserError
from input_pipeline.rows import Planned, RejectedSample, Rejection
from input_pipeline.segmentation.convert import Classes
from input_pipeline.segmentation.records import SCHEMA, SegmentationSample
from input_pipeline.sources.base import Conversion, corpus_name
from input_pipeline.sources.masks import held_out

if TYPE_CHECKING:
    import nibabel


@dataclass(frozen=True)
class NiftiOptions:
    """Flags of the `nifti_slices` source."""

    raw: Annotated[Path, "folder of the volumes"]
    modality: Annotated[str, "of all volumes: ct, mri"]
    classes: Annotated[
        str, "names of label values, as of the source masks: 'liver=6,spleen=1'; others count as 0"
    ]
    source: Annotated[str | None, "name of the domain (of the folder)"] = None
    image_prefix: Annotated[str, "before the id in the names of images (image_)"] = "image_"
    label_prefix: Annotated[str, "before the id in the names of labels (label_)"] = "label_"
    window: Annotated[
        str, "'-125,275': values that become 0 and 1; 'minmax': those of the volume (minmax)"
    ] = "minmax"
    all_slices: Annotated[bool, "also those before the first and after the last label"] = False
    held_out: Annotated[float, "share of the volumes for the split val (0.2)"] = 0.2


@dataclass(frozen=True)
class SliceRow:
    """A slice of a volume; `num_bytes` are of both files."""

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
    """Slices are axial: volumes are turned to the axes right, anterior, superior by their headers.

    Raises:
      CorpusError: there are no volumes, or a flag is not what it should be.
      UserError: nibabel is not installed.
    """
    try:
        classes = Classes.parse(options.classes)
        window = _window(options.window)
    except ValueError as error:
        raise CorpusError(
            f"--classes={options.classes} --window={options.window}: {error}"
        ) from None
    if not 0 <= options.held_out < 1:
        raise CorpusError(f"--held_out={options.held_out}: expected a share in [0, 1)")
    found = sorted(options.raw.glob(f"{options.image_prefix}*.nii*"))
    if not found:
        raise CorpusError(f"{options.raw} holds no {options.image_prefix}*.nii or .nii.gz")
    name = corpus_name(options.raw.resolve().name)
    return Conversion(
        name=name,
        rows=_rows(options, found, options.source or name),
        make_sample=MakeSlice(options.raw, classes, window),
        schema=SCHEMA,
    )


def _window(text: str) -> tuple[float, float] | None:
    if text == "minmax":
        return None
    low, _, high = text.partition(",")
    values = float(low), float(high)
    if not values[0] < values[1]:
        raise ValueError("the window's ends are not in order")
    return values


def _rows(
    options: NiftiOptions, volumes: list[Path], source: str
) -> Iterator[Planned[SliceRow] | Rejection]:
    ids = [path.name.removeprefix(options.image_prefix).split(".nii")[0] for path in volumes]
    val = held_out(ids, options.held_out)
    number = 0
    for path, volume in zip(volumes, ids, strict=True):
        label = path.with_name(path.name.replace(options.image_prefix, options.label_prefix, 1))
        if not label.is_file():
            number += 1
            yield Rejection("no label volume of its name", number, f"{source}/{volume}", path.name)
            continue
        try:
            labels = _load(label)[0]
        except ValueError as error:
            number += 1
            yield Rejection(str(error), number, f"{source}/{volume}", label.name)
            continue
        num_bytes = path.stat().st_size + label.stat().st_size
        indices = range(labels.shape[2])
        if not options.all_slices:
            used = np.flatnonzero(labels.any(axis=(0, 1)))
            indices = range(used.min(), used.max() + 1) if len(used) else range(0)
        for index in indices:
            number += 1
            row = SliceRow(
                row=number,
                id=f"{source}/{volume}/{index:04d}",
                image=path.name,
                label=label.name,
                index=index,
                num_bytes=num_bytes,
                split="val" if volume in val else "train",
                modality=options.modality,
                source=source,
                group=volume,
            )
            yield Planned(
                row,
                row.split,
                row.id,
                number,
                path.name,
                (source, volume),
                4 * labels.shape[0] * labels.shape[1],
            )


@dataclass(frozen=True)
class MakeSlice:
    """Turns a row into a sample of float32 values in 0..1."""

    root: Path = field(repr=False)
    classes: Classes
    window: tuple[float, float] | None

    def __call__(self, row: SliceRow) -> SegmentationSample:
        """Raises RejectedSample, with the reason, for a row that cannot be used."""
        try:
            image, spacing = _load(self.root / row.image)
            labels, _ = _load(self.root / row.label)
            if image.shape != labels.shape:
                raise ValueError(f"the image is {image.shape}, its labels {labels.shape}")
            low, high = self.window or (float(image.min()), float(image.max()))
            # as radiologists look at it: rows from front to back, the patient's right on the left
            pixels, values = (v[::-1, ::-1, row.index].T for v in (image, labels))
            pixels = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
            return SegmentationSample.of_array(
                pixels,
                self._labels(values),
                id=row.id,
                classes=self.classes.names,
                modality=row.modality,
                source=row.source,
                group=row.group,
                spacing=(spacing[2], spacing[1], spacing[0]),
            )
        except UserError:
            raise
        except ValueError as error:
            raise RejectedSample(str(error), row=row.row, id=row.id, path=row.image) from error

    def _labels(self, values: np.ndarray) -> np.ndarray:
        labels = np.zeros(values.shape, np.uint8)
        for label, value in enumerate(self.classes.values, 1):
            labels[values > 0 if value == "*" else values == value] = label
        return labels


@functools.lru_cache(maxsize=4)  # the slices of a volume follow each other in no fixed order
def _load(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(right, anterior, superior) values and mm between neighbours along these axes.

    Raises ValueError for a file that cannot be read or is no volume.
    """
    nibabel = _nibabel()
    try:
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asanyarray(volume.dataobj)
    except Exception as error:  # nibabel and zlib raise nearly anything on damaged files
        raise ValueError(f"cannot read the volume {path.name}: {error}") from error
    if values.ndim != 3:
        raise ValueError(f"{path.name} has the shape {values.shape}, expected three axes")
    return values, tuple(float(z) for z in volume.header.get_zooms()[:3])


def _nibabel() -> "nibabel":
    try:
        import nibabel
    except ImportError as error:
        raise UserError("there is no nibabel: pip install 'unimed_jax[nifti]'") from error
    return nibabel
