"""The thirteen UniMed parts, read by their descriptions in `unimed_parts.py`."""

import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import CaptionedSource, OpenedSource
from input_pipeline.conversion.unimed_parts import Column, UnimedPart
from input_pipeline.io import files, tabular_files
from input_pipeline.io.cell_text import is_missing, literal_texts, value_texts
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, open_to_read
from input_pipeline.manifest import file_sha256

_PROBED_ROWS = 100
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "test": "test"}
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|tiff?|ppm|bmp|gif|webp|dcm)$", re.IGNORECASE)
_NEGATION = re.compile(r"\b(no|not|non|without|absent|absence|negative|free)\b")


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """Flags of a part."""

    raw: Annotated[AnyPath, "folder of the data as its source delivers it, or the parent folder"]
    released_captions: Annotated[
        bool, "use the generated captions of the annotation file (default: only original texts)"
    ] = False
    held_out: Annotated[
        AnyPath | None, "text, CSV or JSON that names images of evaluation sets; they are rejected"
    ] = None
    held_out_by: Annotated[
        str, "group: all images of their patients or articles; or image (group)"
    ] = "group"
    exclude_classes: Annotated[str | None, "classes to reject: myopia,cataract"] = None
    official_split: Annotated[str, "required, or ignore: all rows become train (required)"] = (
        "required"
    )


def source(key: str, part: UnimedPart) -> CaptionedSource:
    """The entry of a part among the sources."""
    split = f"\nOfficial split, needed: {part.split_file.paths[0]}" if part.split_file else ""
    return CaptionedSource(
        help=part.title,
        options=PartOptions,
        opener=functools.partial(_open, key, part),
        description=(
            f"{part.title}\n\nGet it from: {part.access}\nTerms: {part.licence}\n"
            f"Annotations, in --raw or below: {part.annotations[0]}\n"
            f"Images, in one of: {', '.join(f or '.' for f in part.image_folders)}{split}\n"
            f"Caption rule in training: {part.caption_rule}"
        ),
    )


def _open(key: str, part: UnimedPart, options: PartOptions) -> OpenedSource:
    _check_options(key, part, options)
    annotations = _annotations(key, part, options.raw)
    split_file, splits = _official_split(key, part, options)
    held_out = _held_out(part, options)
    records = _records(part, annotations)
    first = list(itertools.islice(records, _PROBED_ROWS))
    places = _Places.probe(part, options.raw, annotations[0], first)
    rows = _Rows(key, part, options, places, splits, held_out)
    metadata = {
        "part": part.title,
        "access": part.access,
        "licence": part.licence,
        "caption_rule": part.caption_rule,
        "annotations": [
            {
                "file": files.relative_name(path, options.raw),
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in annotations
        ],
        "annotations_left_out": dict(part.left_out),
        "image_folder": places.folder or ".",
        "official_split": split_file,
        "held_out_names": len(held_out),
        "expected": dataclasses.asdict(part.expected),
    }
    return OpenedSource(options.raw, key, rows.read(itertools.chain(first, records)), metadata)


def _check_options(key: str, part: UnimedPart, options: PartOptions) -> None:
    if options.released_captions and part.released is None and part.released_file is None:
        raise CorpusError(f"--released_captions: {key} has no generated captions")
    if options.exclude_classes and part.labels is None:
        raise CorpusError(f"--exclude_classes: {key} has no labels")
    if options.held_out_by not in ("group", "image"):
        raise CorpusError(f"--held_out_by={options.held_out_by}: expected group or image")
    if options.official_split not in ("required", "ignore"):
        raise CorpusError(f"--official_split={options.official_split}: expected required or ignore")


# --- files ------------------------------------------------------------------------------------


def _annotations(key: str, part: UnimedPart, raw: AnyPath) -> list[AnyPath]:
    """The annotation files, sorted, without excluded ones."""
    for pattern in part.annotations:
        matching = files.sorted_glob(raw, pattern)
        included = [path for path in matching if path.name not in part.left_out]
        if included:
            return included
    raise CorpusError(
        f"{key}: none of {list(part.annotations)} is in {raw}; get the data from {part.access}"
    )


def _official_split(
    key: str, part: UnimedPart, options: PartOptions
) -> tuple[str | None, Mapping[str, str]]:
    """The name of the split file, and the split of every image that is not of `train`."""
    if part.split_file is None or options.official_split == "ignore":
        return None, {}
    what = part.split_file
    path = next((options.raw / p for p in what.paths if (options.raw / p).is_file()), None)
    if path is None:
        raise CorpusError(
            f"{key}: {what.paths[0]} is not in {options.raw}; it keeps the official test images "
            "out of training. --official_split=ignore goes without"
        )
    with (
        open_to_read(path) as data,
        io.TextIOWrapper(gzip.open(data) if path.suffix == ".gz" else data) as file,
    ):
        if what.split:
            keys = (re.search(part.identity, line) for line in file)
            return path.name, {match["key"]: what.split for match in keys if match}
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise CorpusError(f"{path} has more than one column {twice[0]!r}")
        if missing := {what.key_column, what.split_column} - set(rows.fieldnames or ()):
            raise CorpusError(f"{path} has no column {sorted(missing)}; found {rows.fieldnames}")
        splits = ((row[what.key_column], row[what.split_column]) for row in rows)
        return path.name, {k: _SPLITS[s] for k, s in splits if _SPLITS.get(s, "train") != "train"}


def _held_out(part: UnimedPart, options: PartOptions) -> frozenset[str]:
    """The groups or image keys that a file names, whatever its format."""
    if options.held_out is None:
        return frozenset()
    try:
        text = options.held_out.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot read {options.held_out}: {error}") from error
    cells = filter(None, map(str.strip, re.split(r"[\n,;\"'\t]+", text)))
    matches = (match for cell in cells for match in re.finditer(part.identity, cell))
    held_out = frozenset(_identity(match, options.held_out_by) for match in matches)
    if not held_out:
        raise CorpusError(
            f"{options.held_out} names no image of this part; names must match {part.identity}"
        )
    return held_out


def _identity(match: re.Match[str], by: str) -> str:
    """The group, if there is one and it is requested; otherwise the key of the image."""
    return (by == "group" and match.groupdict().get("group")) or match["key"]


# --- records ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Record:
    number: int
    key: str  # of the JSON array that it is in
    values: Mapping[Column, Any]


def _records(part: UnimedPart, annotations: Sequence[AnyPath]) -> Iterator[_Record]:
    """The rows of all annotation files, numbered through."""
    needed = [part.image, *part.texts]
    needed += [part.split_column] if part.split_column is not None else []
    optional = [column for column in (part.labels, part.released) if column is not None]
    offset = number = 0
    for path in annotations:
        if part.format == "csv":
            positions = _positions(path, needed, optional)
            for row, cells in tabular_files.csv_records(path):
                number = offset + row
                yield _Record(number, "", {c: cells[i] for c, i in positions.items()})
        elif part.format == "jsonl":
            for number, record in tabular_files.jsonl_records(path):
                yield _Record(number, "", {c: _lookup(record, c) for c in (*needed, *optional)})
        else:
            array_key = part.format.removeprefix("json:")
            for number, (key, record) in enumerate(tabular_files.json_items(path, array_key), 1):
                yield _Record(number, key, {c: _lookup(record, c) for c in (*needed, *optional)})
        offset = number


def _positions(
    path: AnyPath, needed: Sequence[Column], optional: Sequence[Column]
) -> dict[Column, int]:
    """Column -> position in the CSV file. Names that are optional may be missing."""
    header = tabular_files.csv_header(path)
    positions: dict[Column, int] = {}
    for column in (*needed, *optional):
        if isinstance(column, int) and column < len(header):
            positions[column] = column
        elif column in header:
            positions[column] = header.index(column)
        elif column in needed or isinstance(column, int):
            raise CorpusError(f"{path} has no column {column!r}; found {header}")
    return positions


def _lookup(record: Any, path: Column) -> Any:
    """The value under a path like `conversations.1.value`; None where there is none."""
    for step in str(path).split("."):
        if isinstance(record, list):
            record = record[int(step)] if step.isdigit() and int(step) < len(record) else None
        else:
            record = record.get(step) if isinstance(record, dict) else None
    return record


def _image(part: UnimedPart, record: _Record) -> str:
    """The image path of a record as its annotation has it; empty if there is none."""
    value = record.values[part.image]
    names = literal_texts(value.strip()) if isinstance(value, str) else ()
    name = names[0].strip().replace("\\", "/") if names else ""  # also as Windows writes it
    return part.image_path.format(name) if name else ""


@dataclasses.dataclass(frozen=True)
class _Places:
    """The location of images: a folder below --raw, and whether their paths lose a prefix."""

    part: UnimedPart
    folder: str
    shortened: bool

    @classmethod
    def probe(
        cls, part: UnimedPart, raw: AnyPath, annotation: AnyPath, first: Sequence[_Record]
    ) -> "_Places":
        """The place with most images of the first rows. CorpusError if these hold no paths."""
        images = [image for record in first if (image := _image(part, record))]
        if images and not any(map(_IMAGE_SUFFIX.search, images)):
            raise CorpusError(
                f"{annotation}: column {part.image!r} holds no image paths, for example "
                f"{images[0]!r}"
            )
        candidates = [cls(part, folder, s) for folder in part.image_folders for s in (False, True)]
        return max(
            candidates,
            key=lambda place: sum((raw / place.path(image)).is_file() for image in images),
        )

    def path(self, image: str) -> str:
        """The path below --raw of an image that the annotations name."""
        name = self.canonical(image) if self.shortened else image
        return f"{self.folder}/{name}" if self.folder else name

    def canonical(self, image: str) -> str:
        """The image without a prefix that some copies have and others lack."""
        prefixes = sorted(self.part.path_prefixes, key=len, reverse=True)
        prefix = next((p for p in prefixes if image.startswith(p)), "")
        return image.removeprefix(prefix)


# --- rows -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Turns records into rows."""

    key: str
    part: UnimedPart
    options: PartOptions
    places: _Places
    splits: Mapping[str, str]
    held_out: frozenset[str]

    def read(self, records: Iterator[_Record]) -> Iterator[SourceRow | Rejection]:
        """One row or rejection per record."""
        excluded = [c.strip().casefold() for c in (self.options.exclude_classes or "").split(",")]
        excluded = [name for name in excluded if name]
        for record, released in self._with_released(records):
            image = _image(self.part, record)
            try:
                if not image:
                    raise ValueError("no image")
                yield self._row(record, image, _sentences(released), excluded)
            except ValueError as error:
                yield Rejection(str(error), record.number, path=image)

    def _with_released(self, records: Iterator[_Record]) -> Iterator[tuple[_Record, Any]]:
        """Every record with its published generated captions, if they are requested."""
        column = self.part.released
        if self.options.released_captions and self.part.released_file is not None:
            yield from self._joined_by_position(records, *self.part.released_file)
        elif self.options.released_captions and column is not None:
            yield from ((record, record.values.get(column)) for record in records)
        else:
            yield from ((record, None) for record in records)

    def _joined_by_position(
        self, records: Iterator[_Record], paths: Sequence[str], array_key: str
    ) -> Iterator[tuple[_Record, Any]]:
        raw = self.options.raw
        path = next((raw / p for p in paths if (raw / p).is_file()), raw / paths[0])
        captions = tabular_files.json_items(path, array_key)
        for record, item in itertools.zip_longest(records, captions):
            if record is None or item is None:
                what = "more" if record is None else "fewer"
                raise CorpusError(
                    f"{path} has {what} entries under {array_key!r} than there are images: they "
                    "belong together by position, so none can be trusted"
                )
            yield record, item[1]

    def _row(
        self, record: _Record, image: str, released: tuple[str, ...], excluded: Sequence[str]
    ) -> SourceRow:
        """Raises ValueError, with the reason, for a rejected record."""
        part = self.part
        path = self.places.canonical(image)
        match = re.search(part.identity, path)
        names = match.groupdict() if match else {"key": path}
        by, held_out_file = self.options.held_out_by, self.options.held_out
        if held_out_file and match and _identity(match, by) in self.held_out:
            raise ValueError(f"held out: named by {held_out_file.name}")

        stated = value_texts(record.values.get(part.labels)) if part.labels is not None else ()
        labels = tuple(label for label in stated if not is_missing(label))
        if excluded_class := next(
            (c for c in excluded if any(_is_class(x, c) for x in labels)), None
        ):
            raise ValueError(f"excluded class: {excluded_class}")
        if part.noise:
            kept = tuple(x for x in labels if not re.search(part.noise, x.strip("/")))
            if labels and not kept:
                raise ValueError("no usable label: all look like noise")
            labels = kept
        labels = labels[-1:] if part.last_label else labels

        notes = tuple(note for regex, note in part.note_by_path.items() if re.search(regex, path))
        if self.options.released_captions and len(released) < part.num_released:
            notes += (f"fewer than {part.num_released} released captions",)
        if part.label_caption:
            released = tuple(part.label_caption.format(label) for label in labels)
        texts = tuple(dict.fromkeys(t for c in part.texts for t in value_texts(record.values[c])))
        if not (texts or labels or released) and part.released is not None:
            raise ValueError("neither text nor label; --released_captions takes generated ones")

        row_id = f"{self.key}/{path}"
        if part.several_texts_per_image:
            row_id += f"#{hashlib.blake2b(repr(texts).encode(), digest_size=4).hexdigest()}"
        return SourceRow(
            row=record.number,
            id=row_id,
            image=self.places.path(image),
            texts=texts,
            labels=labels,
            modality=self._modality(record, path),
            source=self.key,
            split=self._split(record, path, names["key"]),
            group=names.get("group") or "",
            released=released[: part.num_released],
            notes=notes,
        )

    def _modality(self, record: _Record, path: str) -> str:
        by_path = self.part.modality_by_path.items()
        matched = next((m for regex, m in by_path if re.search(regex, path)), None)
        return matched or self.part.modality_by_key.get(record.key, self.part.modality)

    def _split(self, record: _Record, path: str, key: str) -> str:
        if self.options.official_split == "ignore":
            return "train"
        if self.part.split_column is not None:
            name = str(record.values[self.part.split_column]).strip().lower()
            if name not in _SPLITS:
                raise ValueError(f"unknown split: {name!r} is none of {sorted(_SPLITS)}")
            return _SPLITS[name]
        by_path = self.part.split_by_path.items()
        matched = next((s for regex, s in by_path if re.search(regex, path)), None)
        return matched or self.splits.get(key, "train")


def _sentences(value: Any) -> tuple[str, ...]:
    """Texts with exactly one full stop at the end; the published ones have none, one or two."""
    return tuple(f"{bare}." for text in value_texts(value) if (bare := text.strip(" .")))


def _is_class(label: str, name: str) -> bool:
    """Whether a label contains the class name without a negation ("no cataract")."""
    label = " ".join(label.casefold().split())
    if _NEGATION.search(label):
        return False
    return re.search(rf"\b{re.escape(name)}\b", label) is not None
