"""The source `mask_table`: a CSV with an image and its mask per row, as in RIGA+."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from input_pipeline.conversion.label_classes import Classes
from input_pipeline.conversion.planned_rows import PlannedRow, Rejection
from input_pipeline.conversion.segmentation_samples import MakePicture, MaskRow
from input_pipeline.conversion.sources.base import Conversion, corpus_name, is_file, num_bytes
from input_pipeline.conversion.sources.masks import held_out
from input_pipeline.io import tabular_files
from input_pipeline.io.cell_text import path_text
from input_pipeline.io.errors import CorpusError
from input_pipeline.manifest import file_sha256
from input_pipeline.segmentation_records import SCHEMA


@dataclass(frozen=True)
class MaskTableOptions:
    """Flags of the `mask_table` source."""

    input: Annotated[Path, "CSV with a header line"]
    modality: Annotated[str, "modality of all images: fundus, mri, ct, ..."]
    classes: Annotated[str, "as for the source masks; RIGA+: 'disc=*,cup=128'"]
    image_root: Annotated[Path | None, "folder that paths are relative to (folder of --input)"] = (
        None
    )
    image_column: Annotated[str | None, "image paths (the first column)"] = None
    mask_column: Annotated[str | None, "mask paths (the last column)"] = None
    group_column: Annotated[str | None, "patient ids (none)"] = None
    source: Annotated[str | None, "name of the domain (name of the table)"] = None
    held_out: Annotated[float, "fraction of the patients, or images, for the split val (0.2)"] = 0.2
    encoding: Annotated[str, "of the table: cp1252, ... (UTF-8, or as its mark says)"] = ""


@dataclass(frozen=True)
class _Columns:
    """Names of columns; group is None where patients are unknown."""

    image: str
    mask: str
    group: str | None


def open_mask_table(options: MaskTableOptions) -> Conversion:
    """Raises CorpusError: the table or a column is missing, or a flag is invalid."""
    try:
        classes = Classes.parse(options.classes)
    except ValueError as error:
        raise CorpusError(f"--classes={options.classes}: {error}") from error
    if not 0 <= options.held_out < 1:
        raise CorpusError(f"--held_out={options.held_out}: expected a share in [0, 1)")
    header = tabular_files.csv_header(options.input, options.encoding)
    columns = _Columns(
        image=options.image_column or (header or [""])[0],
        mask=options.mask_column or (header or [""])[-1],
        group=options.group_column,
    )
    names = (columns.image, columns.mask, columns.group)
    absent = [name for name in names if name and name not in header]
    if absent:
        raise CorpusError(f"{options.input} has no column {absent[0]!r}; found {header}")
    if columns.image == columns.mask:
        raise CorpusError(f"{options.input} needs an image and a mask column; found {header}")
    records = [
        dict(zip(header, cells, strict=True))
        for _, cells in tabular_files.csv_records(options.input, options.encoding)
    ]
    root = options.image_root or options.input.parent
    return Conversion(
        name=corpus_name(options.input.stem),
        rows=_rows(options, root, columns, records),
        make_sample=MakePicture(root, classes),
        schema=SCHEMA,
        metadata={"input": {"file": options.input.name, "sha256": file_sha256(options.input)}},
    )


def _rows(
    options: MaskTableOptions,
    root: Path,
    columns: _Columns,
    records: Sequence[Mapping[str, str]],
) -> Iterator[PlannedRow[MaskRow] | Rejection]:
    source = options.source or corpus_name(options.input.stem)
    units = [record[columns.group or columns.image] for record in records]
    val = held_out(units, options.held_out)
    for number, (record, unit) in enumerate(zip(records, units, strict=True), 1):
        try:
            image, mask = (path_text(record[name]) for name in (columns.image, columns.mask))
        except ValueError as error:
            yield Rejection(str(error), number, path=record[columns.image])
            continue
        sample_id = f"{source}/{image}"
        missing = [path for path in (image, mask) if not path or not is_file(root / path)]
        if missing:
            yield Rejection(f"no such file: {missing[0]}", number, sample_id, image)
            continue
        size = num_bytes(root / image, root / mask)
        group = record[columns.group] if columns.group else ""
        row = MaskRow(
            row=number,
            id=sample_id,
            image=image,
            mask=mask,
            num_bytes=size,
            split="val" if unit in val else "train",
            modality=options.modality,
            source=source,
            group=group,
        )
        yield PlannedRow(
            row, row.split, row.id, number, image, (source, group) if group else None, size
        )
