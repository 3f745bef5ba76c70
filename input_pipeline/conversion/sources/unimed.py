"""The thirteen UniMed parts, read by their descriptions in `unimed_parts.py`."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.conversion.annotations import (
    DERIVED,
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    PartOptions,
    choose,
    first_file,
)
from input_pipeline.conversion.described_annotations import open_described
from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import CaptionedSource, OpenedSource
from input_pipeline.conversion.unimed_parts import UnimedPart
from input_pipeline.io import files, tabular_files
from input_pipeline.io.cell_text import is_missing
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.text_lines import text_lines
from input_pipeline.manifest import file_sha256

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "test": "test"}
_NEGATION = re.compile(r"\b(no|not|non|without|absent|absence|negative|free)\b")


def source(key: str, part: UnimedPart) -> CaptionedSource:
    """The entry of a part among the sources."""
    split = f"\nOfficial split, needed: {part.split_file.paths[0]}" if part.split_file else ""
    annotations = "".join(
        f"\nAnnotations ({layout.name}), in --raw or below: {layout.annotations[0]}"
        for layout in layouts(part)
    )
    return CaptionedSource(
        help=part.title,
        options=part.options,
        opener=functools.partial(_open, key, part),
        description=(
            f"{part.title}\n\nGet it from: {part.access}\nTerms: {part.licence}{annotations}\n"
            f"Images, in one of: {', '.join(f or '.' for f in part.image_folders)}{split}\n"
            f"Caption rule in training: {part.caption_rule}"
        ),
    )


def layouts(part: UnimedPart) -> list[Layout]:
    """The layouts of a part, in the order in which they are looked for."""
    described = Layout(
        DERIVED if part.official else OFFICIAL,
        part.annotations,
        functools.partial(open_described, part),
    )
    return [described, *part.official]


def _open(key: str, part: UnimedPart, options: PartOptions) -> OpenedSource:
    _check_options(key, part, options)
    layout, annotations = _annotations(key, part, options)
    if options.released_captions and layout in part.official:
        raise CorpusError(
            f"--released_captions: the official files of {key} have no generated captions"
        )
    split_file, splits = _official_split(key, part, options)
    held_out = _held_out(part, options)
    rows = _Rows(key, part, options, splits, held_out)
    expected = dataclasses.asdict(part.expected)
    if layout in part.official:
        expected["counted_in"] = "UniMed's derived files, not the official ones that were read"
    metadata = {
        "part": part.title,
        "access": part.access,
        "licence": part.licence,
        "caption_rule": part.caption_rule,
        "layout": layout.name,
        "annotations": [
            {
                "file": files.relative_name(path, options.raw),
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
            }
            for path in annotations.files
        ],
        **annotations.facts,
        "official_split": split_file,
        "held_out_names": len(held_out),
        "expected": expected,
    }
    return OpenedSource(options.raw, key, rows.read(annotations.rows), metadata)


def _check_options(key: str, part: UnimedPart, options: PartOptions) -> None:
    if options.released_captions and part.released is None and part.released_file is None:
        raise CorpusError(f"--released_captions: {key} has no generated captions")
    if options.exclude_classes and part.labels is None:
        raise CorpusError(f"--exclude_classes: {key} has no labels")
    choose("held_out_by", options.held_out_by, ("group", "image"))
    choose("official_split", options.official_split, ("required", "ignore"))
    if options.layout is not None:
        choose("layout", options.layout, (OFFICIAL, DERIVED))


# --- files ------------------------------------------------------------------------------------


def _annotations(
    key: str, part: UnimedPart, options: PartOptions
) -> tuple[Layout, OpenedAnnotations]:
    """The first layout that is found, or that which is requested."""
    possible = [x for x in layouts(part) if options.layout in (None, x.name)]
    for layout in possible:
        opened = layout.open(options)
        if opened is not None:
            return layout, opened
    if not possible:
        raise CorpusError(f"--layout={options.layout}: {key} has only the layout {OFFICIAL}")
    looked_for = [path for layout in possible for path in layout.annotations]
    raise CorpusError(
        f"{key}: none of {looked_for} is in {options.raw}; get the data from {part.access}"
    )


def _official_split(
    key: str, part: UnimedPart, options: PartOptions
) -> tuple[str | None, Mapping[str, str]]:
    """The name of the split file, and the split of every image that is not of `train`."""
    if part.split_file is None or options.official_split == "ignore":
        return None, {}
    what = part.split_file
    path = first_file(options.raw, what.paths)
    if path is None:
        raise CorpusError(
            f"{key}: {what.paths[0]} is not in {options.raw}; it keeps the official test images "
            "out of training. --official_split=ignore goes without"
        )
    if what.split:
        keys = (re.search(part.identity, line) for _, line in text_lines(path))
        return path.name, {match["key"]: what.split for match in keys if match}
    header = tabular_files.csv_header(path)
    if missing := {what.key_column, what.split_column} - set(header):
        raise CorpusError(f"{path} has no column {sorted(missing)}; found {header}")
    key_at, split_at = map(header.index, (what.key_column, what.split_column))
    splits = ((row[key_at], row[split_at]) for _, row in tabular_files.csv_records(path))
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


# --- rows -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Turns annotations into rows."""

    key: str
    part: UnimedPart
    options: PartOptions
    splits: Mapping[str, str]
    held_out: frozenset[str]

    def read(
        self, annotations: Iterator[Annotation | Rejection]
    ) -> Iterator[SourceRow | Rejection]:
        """One row or rejection per annotation."""
        excluded = [c.strip().casefold() for c in (self.options.exclude_classes or "").split(",")]
        excluded = [name for name in excluded if name]
        for annotation in annotations:
            if isinstance(annotation, Rejection):
                yield annotation
                continue
            try:
                yield self._row(annotation, excluded)
            except ValueError as error:
                yield Rejection(str(error), annotation.number, path=annotation.path)

    def _row(self, annotation: Annotation, excluded: Sequence[str]) -> SourceRow:
        """Raises ValueError, with the reason, for a rejected row."""
        part, path = self.part, annotation.path
        match = re.search(part.identity, path)
        names = match.groupdict() if match else {"key": path}
        by, held_out_file = self.options.held_out_by, self.options.held_out
        if held_out_file and match and _identity(match, by) in self.held_out:
            raise ValueError(f"held out: named by {held_out_file.name}")

        labels = tuple(label for label in annotation.labels if not is_missing(label))
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

        released, texts = annotation.released, annotation.texts
        notes = annotation.notes
        notes += tuple(note for regex, note in part.note_by_path.items() if re.search(regex, path))
        if self.options.released_captions and len(released) < part.num_released:
            notes += (f"fewer than {part.num_released} released captions",)
        if part.label_caption:
            released = tuple(part.label_caption.format(label) for label in labels)
        if not (texts or labels or released) and part.released is not None:
            raise ValueError("neither text nor label; --released_captions takes generated ones")

        row_id = f"{self.key}/{path}"
        if part.several_texts_per_image:
            row_id += f"#{hashlib.blake2b(repr(texts).encode(), digest_size=4).hexdigest()}"
        return SourceRow(
            row=annotation.number,
            id=row_id,
            image=annotation.image,
            texts=texts,
            labels=labels,
            modality=self._modality(annotation),
            source=self.key,
            split=self._split(annotation, names["key"]),
            group=names.get("group") or "",
            released=released[: part.num_released],
            notes=notes,
        )

    def _modality(self, annotation: Annotation) -> str:
        by_path = self.part.modality_by_path.items()
        matched = next((m for regex, m in by_path if re.search(regex, annotation.path)), None)
        return matched or annotation.modality or self.part.modality

    def _split(self, annotation: Annotation, key: str) -> str:
        if self.options.official_split == "ignore":
            return "train"
        if name := annotation.split.lower():
            if name not in _SPLITS:
                raise ValueError(f"unknown split: {name!r} is none of {sorted(_SPLITS)}")
            return _SPLITS[name]
        by_path = self.part.split_by_path.items()
        matched = next((s for regex, s in by_path if re.search(regex, annotation.path)), None)
        return matched or self.splits.get(key, "train")


def _is_class(label: str, name: str) -> bool:
    """Whether a label contains the class name without a negation ("no cataract")."""
    label = " ".join(label.casefold().split())
    if _NEGATION.search(label):
        return False
    return re.search(rf"\b{re.escape(name)}\b", label) is not None
