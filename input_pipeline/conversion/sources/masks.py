"""The source `masks`: a folder of images and a folder of masks with the same names."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from input_pipeline.conversion.label_classes import Classes
from input_pipeline.conversion.planned_rows import PlannedRow, Rejection
from input_pipeline.conversion.segmentation_samples import MakePicture, MaskRow
from input_pipeline.conversion.sources.base import Conversion, corpus_name, num_bytes
from input_pipeline.io.errors import CorpusError
from input_pipeline.segmentation_records import SCHEMA


@dataclass(frozen=True)
class MaskOptions:
    """Flags of the `masks` source."""

    raw: Annotated[Path, "folder that contains the folders of images and of masks"]
    modality: Annotated[str, "modality of all images: fundus, mri, ct, ..."]
    classes: Annotated[
        str,
        "names of the label values: 'vessel' (any value above 0), 'liver,spleen' (1 and 2), "
        "'disc=*,cup=128', or colours: 'tumour=#ff0000'",
    ]
    source: Annotated[str | None, "name of the domain (name of the folder)"] = None
    images: Annotated[str, "folder of the images (images)"] = "images"
    masks: Annotated[str, "folder of the masks (masks)"] = "masks"
    mask_suffix: Annotated[str, "suffix of the mask names after the image names (none)"] = ""
    group_regex: Annotated[
        str | None, "its first group matches the patient in an image's name: '(P[0-9]+)_' (none)"
    ] = None
    held_out: Annotated[float, "fraction of the patients, or images, for the split val (0.2)"] = 0.2


def open_masks(options: MaskOptions) -> Conversion:
    """Pairs files by name; an image without a mask, or with two, is rejected.

    Hidden files are ignored.

    Raises:
      CorpusError: a folder is missing, or a flag is invalid.
    """
    try:
        classes = Classes.parse(options.classes)
    except ValueError as error:
        raise CorpusError(f"--classes={options.classes}: {error}") from error
    try:
        group = re.compile(options.group_regex or "()")
        if not group.groups:
            raise re.error("it has no group in parentheses")
    except re.error as error:
        raise CorpusError(f"--group_regex={options.group_regex}: {error}") from error
    if not 0 <= options.held_out < 1:
        raise CorpusError(f"--held_out={options.held_out}: expected a share in [0, 1)")
    name = corpus_name(options.raw.resolve().name)
    inputs: Counter[str] = Counter()
    return Conversion(
        name=name,
        rows=_rows(options, group, options.source or name, inputs),
        make_sample=MakePicture(options.raw, classes),
        schema=SCHEMA,
        inputs=inputs,
    )


def held_out(groups: list[str], share: float) -> set[str]:
    """The groups of the split val: ``round(share n)`` of them, by a hash of their names.

    The choice depends only on the names, so an additional image changes few of the others.
    """

    def rank(group: str) -> bytes:
        name = group.encode("utf-8", "surrogateescape")  # file names may be of another encoding
        return hashlib.sha256(name).digest()

    distinct = sorted(set(groups), key=rank)
    return set(distinct[: round(share * len(distinct))])


def _rows(
    options: MaskOptions, group: re.Pattern[str], source: str, inputs: Counter[str]
) -> Iterator[PlannedRow[MaskRow] | Rejection]:
    images = _files(options.raw / options.images)
    masks: dict[str, list[Path]] = {}
    for path in _files(options.raw / options.masks):
        masks.setdefault(path.stem, []).append(path)
    needed = {path.stem + options.mask_suffix for path in images}
    if unused := sum(len(paths) for stem, paths in masks.items() if stem not in needed):
        inputs["masks without an image of their name"] = unused
    groups = [(m[1] if (m := group.search(path.stem)) else "") for path in images]
    units = [group_id or path.name for group_id, path in zip(groups, images, strict=True)]
    val = held_out(units, options.held_out)
    for number, (path, unit, patient) in enumerate(zip(images, units, groups, strict=True), 1):
        image = f"{options.images}/{path.name}"
        sample_id = f"{source}/{path.name}"
        matching = masks.get(path.stem + options.mask_suffix, [])
        if len(matching) != 1:
            reason = f"{len(matching)} masks of its name" if matching else "no mask of its name"
            yield Rejection(reason, number, sample_id, image)
            continue
        size = num_bytes(path, matching[0])
        split = "val" if unit in val else "train"
        row = MaskRow(
            row=number,
            id=sample_id,
            image=image,
            mask=f"{options.masks}/{matching[0].name}",
            num_bytes=size,
            split=split,
            modality=options.modality,
            source=source,
            group=patient,
        )
        yield PlannedRow(
            row, split, row.id, number, image, (source, patient) if patient else None, size
        )


def _files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names."""
    try:
        paths = [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise CorpusError(f"cannot read {folder}: {error.strerror}") from error
    paths = sorted(path for path in paths if not path.name.startswith("."))
    if not paths:
        raise CorpusError(f"{folder} holds no files")
    return paths
