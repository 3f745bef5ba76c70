"""Official splits: lists of image names, or a table with a split for each image."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from input_pipeline.conversion.annotations import first_file
from input_pipeline.conversion.official import table
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.io.text_lines import text_lines

NAMES = {"train": "train", "val": "val", "valid": "val", "validate": "val", "test": "test"}
_IN_BOTH = "in both lists, kept in the held-back one"


@dataclass(frozen=True)
class SplitFile:
    """Where an official split is: a table with `key_column` and `split_column`, or a list of names.

    Attributes:
      paths: the table, or the list of the held-back images.
      key_column, split_column: of the table; what is in `key_column` is compared with the `key` of
        `UnimedPart.identity`.
      split: of the images that the list names.
      train_paths: list of all other images; it may be missing.
    """

    paths: tuple[str, ...]
    key_column: str = ""
    split_column: str = ""
    split: str = ""
    train_paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class OfficialSplit:
    """The splits that files give to images.

    Attributes:
      files: names of the files.
      by_key: image -> split.
      complete: whether the files name every image.
      counts: images by split, and what is odd about the files.
    """

    files: tuple[str, ...] = ()
    by_key: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """The split of an image. Raises ValueError for one that complete files do not name."""
        if self.complete and key not in self.by_key:
            raise ValueError(f"in no official split: {key} is not in {' or '.join(self.files)}")
        return self.by_key.get(key, "train")


def read(what: SplitFile, raw: AnyPath, identity: str, encoding: str) -> OfficialSplit | None:
    """Reads the files of a split; None if the needed one is missing.

    Raises CorpusError for a file that cannot be read, lacks a column or names no image.
    """
    path = first_file(raw, what.paths)
    if path is None:
        return None
    if what.key_column:
        return _of_table(path, what, encoding)
    return _of_lists(path, what, raw, identity, encoding)


def _of_table(path: AnyPath, what: SplitFile, encoding: str) -> OfficialSplit:
    by_key: dict[str, str] = {}
    odd = 0
    for row in table.rows([path], (what.key_column, what.split_column), encoding=encoding):
        cells = row.cells if isinstance(row, table.TableRow) else {}
        split = NAMES.get(cells.get(what.split_column, "").lower())
        if split is None or not cells[what.key_column]:
            odd += 1
            continue
        key = cells[what.key_column]
        if by_key.get(key, "train") == "train":  # of two rows, the held-back one counts
            by_key[key] = split
    return OfficialSplit((path.name,), by_key, True, _counts(by_key, "rows without a split", odd))


def _of_lists(
    path: AnyPath, what: SplitFile, raw: AnyPath, identity: str, encoding: str
) -> OfficialSplit:
    held_back = _names(path, identity, encoding)
    train_path = first_file(raw, what.train_paths)
    train = _names(train_path, identity, encoding) if train_path else set()
    by_key = dict.fromkeys(train, "train") | dict.fromkeys(held_back, what.split)
    names = (path.name,) if train_path is None else (path.name, train_path.name)
    counts = _counts(by_key, _IN_BOTH, len(train & held_back))
    return OfficialSplit(names, by_key, train_path is not None, counts)


def _names(path: AnyPath, identity: str, encoding: str) -> set[str]:
    matches = (re.search(identity, line) for _, line in text_lines(path, encoding))
    names = {match["key"] for match in matches if match}
    if not names:
        raise CorpusError(f"{path} names no image; names must match {identity}")
    return names


def _counts(by_key: Mapping[str, str], odd: str, num_odd: int) -> dict[str, int]:
    splits = list(by_key.values())
    counts = {split: splits.count(split) for split in dict.fromkeys(NAMES.values())}
    return {name: n for name, n in {**counts, odd: num_odd}.items() if n}
