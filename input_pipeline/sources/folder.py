"""The source `folder`: RAW/CLASS/... or RAW/SPLIT/CLASS/..., the class being the label."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from input_pipeline.errors import CorpusError
from input_pipeline.sources.base import Reading, SourceRow, corpus_name

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
        Path,
        "folder of a folder per class; or of train, val and test folders with classes in each",
    ]
    modality: Annotated[str, "of all images: xray, ct, mri, ultrasound, pathology, fundus, ..."]
    source: Annotated[str | None, "name of the collection (of the folder)"] = None
    split: Annotated[str, "of all images, where no folders name it (train)"] = "train"
    group_regex: Annotated[
        str | None, "finds the patient in a path, as its first group: '(P[0-9]+)_' (none)"
    ] = None


def open_folder(options: FolderOptions) -> Reading:
    """Files in the order of their names. Files that are no images are rejected, hidden ones not
    read."""
    try:
        folders = sorted(entry.name for entry in os.scandir(options.raw) if entry.is_dir())
    except OSError as error:
        raise CorpusError(f"cannot read {options.raw}: {error.strerror}") from error
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
    return Reading(options.raw, name, _rows(options, folders, group, options.source or name))


def _rows(
    options: FolderOptions, folders: list[str], group: re.Pattern[str] | None, source: str
) -> Iterator[SourceRow]:
    has_splits = all(name.lower() in _SPLITS for name in folders)
    number = 0
    for path in _files(options.raw):
        parts = path.parts
        if len(parts) < 2 + has_splits:
            continue  # beside the class folders: a licence, a table
        number += 1
        found = group.search(path.as_posix()) if group else None
        yield SourceRow(
            row=number,
            id=f"{source}/{path.as_posix()}",
            image=path.as_posix(),
            texts=(),
            labels=(parts[has_splits],),
            modality=options.modality,
            source=source,
            split=_SPLITS[parts[0].lower()] if has_splits else options.split,
            group=found[1] if found else "",
        )


def _files(root: Path) -> Iterator[Path]:
    """Paths relative to `root`, folder by folder in the order of names."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root)
