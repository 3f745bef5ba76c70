"""The source `folder`: RAW/CLASS/... or RAW/SPLIT/CLASS/...; the class is the label."""

import re
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
    folders = [name for name in folders if not name.startswith(".")]
    if not folders:
        raise CorpusError(f"{options.raw} holds no folders; expected one per class")
    try:
        group = re.compile(options.group_regex) if options.group_regex else None
        if group and not group.groups:
            raise re.error("it has no group in parentheses")
    except re.error as error:
        raise CorpusError(f"--group_regex={options.group_regex}: {error}") from error
    name = corpus_name(options.raw.resolve().name)
    return OpenedSource(options.raw, name, _rows(options, folders, group, options.source or name))


def _rows(
    options: FolderOptions, folders: list[str], group: re.Pattern[str] | None, source: str
) -> Iterator[SourceRow]:
    has_splits = all(name.lower() in _SPLITS for name in folders)
    number = 0
    for path in walk_files(options.raw):
        parts = PurePosixPath(path).parts
        if len(parts) < 2 + has_splits:
            continue  # beside the class folders: a licence, a table
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
