"""The source `folder`: RAW/CLASS/... or RAW/SPLIT/CLASS/...; the class is the label."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from input_pipeline.conversion.planned_rows import SourceRow
from input_pipeline.conversion.sources.base import OpenedSource, corpus_name
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, reason, walk_files

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


_OF_MACOS = "__MACOSX"  # is put beside the files of an archive


@dataclass(frozen=True)
class FolderOptions:
    """Flags of the `folder` source."""

    raw: Annotated[
        AnyPath,
        "folder with a folder per class, or with train, val and test folders of class folders",
    ]
    modality: Annotated[
        str, "modality of all images: xray, ct, mri, ultrasound, pathology, fundus, ..."
    ]
    source: Annotated[str | None, "name of the collection (name of the folder)"] = None
    split: Annotated[str, "split of all images, if no folders name it (train)"] = "train"
    group_regex: Annotated[
        str | None, "its first group matches the patient in a path: '(P[0-9]+)_' (none)"
    ] = None


def open_folder(options: FolderOptions) -> OpenedSource:
    """Opens the folder; files are sorted by name.

    Files that are not images are rejected, hidden ones ignored.
    """
    try:
        folders = sorted(entry.name for entry in options.raw.iterdir() if entry.is_dir())
    except OSError as error:
        raise CorpusError(f"cannot read {options.raw}: {reason(error)}") from error
    folders = [name for name in folders if not name.startswith(".") and name != _OF_MACOS]
    if not folders:
        raise CorpusError(f"{options.raw} holds no folders; expected one per class")
    try:
        group = re.compile(options.group_regex) if options.group_regex else None
        if group and not group.groups:
            raise re.error("it has no group in parentheses")
    except re.error as error:
        raise CorpusError(f"--group_regex={options.group_regex}: {error}") from error
    splits = [name for name in folders if name.lower() in _SPLITS]
    if len(splits) > 1 and (others := sorted({*folders} - {*splits})):
        raise CorpusError(
            f"{options.raw} holds the splits {', '.join(splits)} and the folder {others[0]}: move "
            "away what is no split, or name splits otherwise if they are classes"
        )
    name = corpus_name(options.raw.resolve().name)
    inputs: Counter[str] = Counter()
    has_splits = len(splits) == len(folders)
    rows = _rows(options, has_splits, group, options.source or name, inputs)
    return OpenedSource(options.raw, name, rows, {}, inputs)


def _rows(
    options: FolderOptions,
    has_splits: bool,
    group: re.Pattern[str] | None,
    source: str,
    inputs: Counter[str],
) -> Iterator[SourceRow]:
    number = 0
    for path in walk_files(options.raw):
        parts = PurePosixPath(path).parts
        if parts[0] == _OF_MACOS:
            inputs[f"files in {_OF_MACOS}"] += 1
            continue
        if len(parts) < 2 + has_splits:
            inputs["files beside the class folders"] += 1  # a licence, a table
            continue
        number += 1
        match = group.search(path) if group else None
        yield SourceRow(
            row=number,
            id=f"{source}/{path}",
            image=path,
            texts=(),
            labels=(parts[has_splits],),
            modality=options.modality,
            source=source,
            split=_SPLITS[parts[0].lower()] if has_splits else options.split,
            group=match[1] if match else "",
        )
