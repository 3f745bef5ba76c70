"""The distinct label sets of a table of labels or of images."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping

from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, PathLike, to_path
from input_pipeline.io.tabular_files import csv_header, csv_records, jsonl_records

ATTRIBUTES = ("view", "anatomy", "severity", "laterality", "age_group", "sex")

_LABEL_COLUMNS = ("labels", "label")


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The labels of an image, with its other known attributes.

    `labels` keep the order of the table, but sets that differ in order alone are equal in `key`.
    `source` may be empty: the captions then serve every source. `attributes` are pairs of a name in
    `ATTRIBUTES` and a value.
    """

    modality: str
    labels: tuple[str, ...]
    source: str = ""
    attributes: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """Identifies the set: canonical JSON, the same in every process."""
        parts = [self.source, self.modality, sorted(self.labels), sorted(self.attributes)]
        return json.dumps(parts, ensure_ascii=False)

    @classmethod
    def of(cls, modality: str, labels: Iterable[str], source: str = "") -> "LabelSet":
        """From labels among which attributes stand as `name=value`: 'edema', 'view=frontal'."""
        findings, attributes = [], {}
        for label in labels:
            name, separator, value = label.partition("=")
            if separator and name in ATTRIBUTES:
                attributes[name] = value.strip().lower()
            else:
                findings.append(label)
        return cls(modality, tuple(findings), source, tuple(attributes.items()))

    def __str__(self) -> str:
        named = [self.source, self.modality, " + ".join(self.labels)]
        named += [f"{name} {value}" for name, value in self.attributes]
        return ", ".join(filter(None, named))


def read(path: PathLike, label_separator: str | None = None) -> list[LabelSet]:
    """The distinct label sets of a CSV or JSONL table, in the order of their first rows.

    Columns: `modality`; `labels` or `label` (one label, a JSON list of them, or several joined by
    `label_separator`); and, where present, `source` and the names in `ATTRIBUTES`. An attribute may
    also stand among the labels, as `name=value`. Other columns are ignored, so a table of images
    works as well; its rows without a label are skipped.

    Raises:
      CorpusError: the table cannot be read, lacks a column or a modality, or has no label at all.
    """
    path = to_path(path)
    sets: dict[str, LabelSet] = {}
    for where, record in _records(path):
        column = next((name for name in _LABEL_COLUMNS if name in record), None)
        if column is None or "modality" not in record:
            missing = "modality" if column else "labels (or label)"
            raise CorpusError(f"{where}: no column {missing}; found {sorted(record)}")
        labels = _labels(record[column], label_separator, where)
        if not labels:
            continue
        if not (modality := _text(record["modality"], where)):
            raise CorpusError(f"{where}: the row has labels and no modality")
        columns = {name: _text(record.get(name), where).lower() for name in ATTRIBUTES}
        tags = [f"{name}={value}" for name, value in columns.items() if value]
        label_set = LabelSet.of(modality, [*labels, *tags], _text(record.get("source"), where))
        if not label_set.labels:
            continue
        sets.setdefault(label_set.key, label_set)
    if not sets:
        raise CorpusError(f"{path} has no row with a label")
    return list(sets.values())


def _records(path: AnyPath) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(where, record) of every row."""
    if path.suffix == ".jsonl":
        for number, record in jsonl_records(path):
            yield f"{path}, line {number}", record
        return
    header = csv_header(path)
    for number, cells in csv_records(path):
        yield f"{path}, row {number}", dict(zip(header, cells, strict=True))


def _labels(cell: object, separator: str | None, where: str) -> tuple[str, ...]:
    items = cell if isinstance(cell, list) else [cell]
    texts = [_text(item, where) for item in items]
    if separator:
        texts = [part.strip() for text in texts for part in text.split(separator)]
    return tuple(dict.fromkeys(filter(None, texts)))


def _text(value: object, where: str) -> str:
    if isinstance(value, dict | list):
        raise CorpusError(f"{where}: expected a text, got {json.dumps(value)[:60]}")
    return "" if value is None else " ".join(str(value).split())
