"""The source `nifti_volumes`: NIfTI volumes with label volumes, one record for each.

Layouts: `msd` (a dataset.json, as in the Medical Segmentation Decathlon), `btcv`
(img/imgID.nii.gz, label/labelID.nii.gz), `folders` (images/ID.nii.gz, labels/ID.nii.gz), `names`
(ID_image.nii.gz, ID_label.nii.gz in one folder), or custom patterns.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from input_pipeline.conversion import guard
from input_pipeline.conversion.label_classes import Classes
from input_pipeline.conversion.nifti_pairs import count_unused, labelled, read_pair
from input_pipeline.conversion.planned_rows import (
    PlannedRow,
    Rejection,
    SampleWithNotes,
)
from input_pipeline.conversion.sources.base import Conversion, corpus_name, is_file, num_bytes
from input_pipeline.conversion.sources.masks import held_out
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.intensity_windows import BY_MODALITY, MINMAX, Window, rescaled
from input_pipeline.segmentation_records import SCHEMA, SegmentationSample

_ID = "{id}"
LAYOUTS: Mapping[str, tuple[str, str]] = {
    "folders": ("images/{id}.nii.gz", "labels/{id}.nii.gz"),
    "btcv": ("img/img{id}.nii.gz", "label/label{id}.nii.gz"),
    "names": ("{id}_image.nii.gz", "{id}_label.nii.gz"),
}
_MSD, _MSD_FILE = "msd", "dataset.json"


@dataclass(frozen=True)
class VolumeOptions:
    """Flags of the `nifti_volumes` source."""

    raw: Annotated[Path, "folder of the data set"]
    modality: Annotated[str, "modality of all volumes: ct, mri (msd: from dataset.json)"] = ""
    classes: Annotated[
        str,
        "names of label values, as for the source masks: 'liver=6,spleen=1'; others count as 0 "
        "(msd: from dataset.json)",
    ] = ""
    layout: Annotated[str, f"{_MSD}, {', '.join(LAYOUTS)} (folders)"] = "folders"
    image: Annotated[str, "pattern of images, '{id}' for the volume; replaces the layout"] = ""
    label: Annotated[str, "pattern of labels"] = ""
    source: Annotated[str | None, "name of the domain (name of the folder)"] = None
    window: Annotated[
        str,
        "'-175,250': values that become 0 and 1; 'percentiles:0.5,99.5' or 'minmax' of the volume "
        f"({', '.join(f'{k}: {v}' for k, v in BY_MODALITY.items())}; else minmax)",
    ] = ""
    ids: Annotated[str, "volumes to convert, separated by commas (all)"] = ""
    val: Annotated[str, "volumes of the split val, separated by commas (a fraction of all)"] = ""
    held_out: Annotated[float, "fraction of the volumes for the split val, without --val (0.2)"] = (
        0.2
    )


@dataclass(frozen=True)
class VolumeRow:
    """A volume and its labels as files; `num_bytes` is the size of both."""

    row: int
    id: str
    image: str
    label: str
    num_bytes: int
    split: str
    modality: str
    source: str
    group: str


@dataclass(frozen=True)
class _Pair:
    id: str
    image: str
    label: str


def open_volumes(options: VolumeOptions) -> Conversion:
    """Pairs files; an image without labels is rejected.

    Raises:
      CorpusError: there are no volumes, a named one is missing, or a flag or dataset.json is
        invalid.
    """
    described = _described(options.raw) if options.layout == _MSD else {}
    modality = options.modality or described.get("modality", "")
    class_names = options.classes or described.get("classes", "")
    if not modality or not class_names:
        raise CorpusError("give --modality and --classes")
    window_text = options.window or BY_MODALITY.get(modality, MINMAX)
    try:
        classes, window = Classes.parse(class_names), Window.parse(window_text)
    except ValueError as error:
        raise CorpusError(f"--classes={class_names} --window={window_text}: {error}") from None
    if not 0 <= options.held_out < 1:
        raise CorpusError(f"--held_out={options.held_out}: expected a share in [0, 1)")
    pairs = described.get("pairs") or _pairs(options)
    pairs = _chosen(pairs, options)
    ids = [pair.id for pair in pairs]
    val = set(_names(options.val)) or described.get("val") or held_out(ids, options.held_out)
    name = corpus_name(options.raw.resolve().name)
    used = () if options.ids else [path for pair in pairs for path in (pair.image, pair.label)]
    return Conversion(
        name=name,
        rows=_rows(options.raw, pairs, val, modality, options.source or name),
        make_sample=MakeVolume(options.raw, classes, window),
        schema=SCHEMA,
        metadata={"window": window_text, "val": sorted(val & set(ids))},
        inputs=count_unused(options.raw, used) if used else {},
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _chosen(pairs: list[_Pair], options: VolumeOptions) -> list[_Pair]:
    there = {pair.id for pair in pairs}
    if absent := sorted({*_names(options.ids), *_names(options.val)} - there):
        raise CorpusError(f"{options.raw} has no volume {absent[0]!r}; found {sorted(there)[:20]}")
    wanted = set(_names(options.ids)) or there
    return [pair for pair in pairs if pair.id in wanted]


def _pairs(options: VolumeOptions) -> list[_Pair]:
    """The pairs that match the patterns, sorted by id."""
    if bool(options.image) != bool(options.label):
        raise CorpusError("give both --image and --label, or none of them")
    if options.image:
        patterns = (options.image, options.label)
    elif options.layout in LAYOUTS:
        patterns = LAYOUTS[options.layout]
    else:
        raise CorpusError(f"--layout={options.layout}: valid: {', '.join((_MSD, *LAYOUTS))}")
    for pattern in patterns:
        if pattern.count(_ID) != 1:
            raise CorpusError(f"the pattern {pattern!r} does not have one {_ID!r}")

    def plain(name: str) -> str:
        return name.removesuffix(".gz")

    before, after = patterns[0].split(_ID)
    pairs: dict[str, _Pair] = {}
    for suffix in dict.fromkeys((after, plain(after))):
        for path in options.raw.glob(f"{before}*{suffix}"):
            image = path.relative_to(options.raw).as_posix()
            name = image[len(before) : len(image) - len(suffix)]
            label = patterns[1].replace(_ID, name)
            if not (options.raw / label).is_file() and (options.raw / plain(label)).is_file():
                label = plain(label)
            pairs.setdefault(name, _Pair(name, image, label))
    if not pairs:
        raise CorpusError(f"{options.raw} holds no {patterns[0].replace(_ID, '*')}")
    return [pairs[name] for name in sorted(pairs)]


def _described(raw: Path) -> dict[str, Any]:
    """Pairs, classes, modality and, if given, the split val of a dataset.json."""
    path = raw / _MSD_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        labels = {int(value): str(name) for value, name in content["labels"].items()}
        modalities = list(content["modality"].values())
        listed = {
            part: [_pair(entry) for entry in content.get(part, [])]
            for part in ("training", "validation")
        }
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{path} is invalid ({error!r}); expected labels, modality and training "
            "as in the Medical Segmentation Decathlon"
        ) from error
    if len(modalities) != 1:
        raise CorpusError(f"{path} has the modalities {modalities}: volumes of one can be read")
    return {
        "pairs": [*listed["training"], *listed["validation"]],
        "val": {pair.id for pair in listed["validation"]},
        "classes": ",".join(f"{name}={value}" for value, name in sorted(labels.items()) if value),
        "modality": str(modalities[0]).lower(),
    }


def _pair(entry: Mapping[str, str]) -> _Pair:
    image, label = (entry[key].removeprefix("./") for key in ("image", "label"))
    return _Pair(Path(image).name.removesuffix(".gz").removesuffix(".nii"), image, label)


def _rows(
    raw: Path, pairs: list[_Pair], val: set[str], modality: str, source: str
) -> Iterator[PlannedRow[VolumeRow] | Rejection]:
    for number, pair in enumerate(pairs, 1):
        sample_id = f"{source}/{pair.id}"
        absent = [name for name in (pair.image, pair.label) if not is_file(raw / name)]
        if absent:
            yield Rejection(f"there is no {absent[0]}", number, sample_id, pair.image)
            continue
        size = num_bytes(raw / pair.image, raw / pair.label)
        row = VolumeRow(
            row=number,
            id=sample_id,
            image=pair.image,
            label=pair.label,
            num_bytes=size,
            split="val" if pair.id in val else "train",
            modality=modality,
            source=source,
            group=pair.id,
        )
        group = (source, pair.id)
        yield PlannedRow(row, row.split, row.id, number, pair.image, group, size)


@dataclass(frozen=True)
class MakeVolume:
    """Turns a row into a sample: float32 values in 0..1, axes superior, anterior, right."""

    root: Path = field(repr=False)
    classes: Classes
    window: Window

    def __call__(self, row: VolumeRow) -> SampleWithNotes:
        """Raises an error with the reason for a row that cannot be used."""
        pair = read_pair(self.root / row.image, self.root / row.label)
        mask, notes = labelled(self.classes, pair.labels)
        sample = SegmentationSample.from_array(
            rescaled(pair.values, self.window.limits(pair.values)),
            mask,
            id=row.id,
            classes=self.classes.names,
            modality=row.modality,
            source=row.source,
            group=row.group,
            spacing=pair.spacing,
        )
        return SampleWithNotes(sample, notes, functools.partial(guard.varies, pair.values))
