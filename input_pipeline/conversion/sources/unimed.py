"""The thirteen UniMed parts, read by their descriptions in `unimed_parts.py`."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence

from input_pipeline.conversion import archives
from input_pipeline.conversion.annotations import (
    DERIVED,
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    PartOptions,
    choose,
)
from input_pipeline.conversion.described_annotations import open_described
from input_pipeline.conversion.held_out import identity
from input_pipeline.conversion.official import splits
from input_pipeline.conversion.official.splits import OfficialSplit
from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import CaptionedSource, OpenedSource
from input_pipeline.conversion.unimed_parts import UnimedPart
from input_pipeline.io import files
from input_pipeline.io.cell_text import is_missing
from input_pipeline.io.errors import CorpusError
from input_pipeline.manifest import file_sha256

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
    name = DERIVED if part.official or part.own_annotations else OFFICIAL
    own = dataclasses.replace(part, annotations=part.own_annotations)
    described = [
        Layout(name, part.annotations, functools.partial(open_described, part)),
        Layout(OFFICIAL, own.annotations, functools.partial(open_described, own)),
    ]
    return [*(layout for layout in described if layout.annotations), *part.official]


def _open(key: str, part: UnimedPart, options: PartOptions) -> OpenedSource:
    _check_options(key, part, options)
    layout, annotations = need_annotations(key, part, options)
    if options.released_captions and layout in part.official:
        raise CorpusError(
            f"--released_captions: the official files of {key} have no generated captions"
        )
    split = _official_split(key, part, options)
    held_out = _held_out(part, options)
    rows = _Rows(key, part, options, split, held_out)
    expected = dataclasses.asdict(part.expected)
    if layout.name == OFFICIAL and layouts(part)[0].name == DERIVED:
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
            for path in (*annotations.files, *annotations.joined_files)
        ],
        **annotations.facts,
        "archives": archives.states(options.raw, annotations.files),
        "corpus": options.corpus,
        "official_split": ", ".join(split.files) or None,
        "official_split_counts": dict(split.counts),
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
    choose("corpus", options.corpus, ("clean", "published"))
    if options.layout is not None:
        choose("layout", options.layout, (OFFICIAL, DERIVED))


# --- files ------------------------------------------------------------------------------------


def find_annotations(
    part: UnimedPart, options: PartOptions
) -> tuple[Layout, OpenedAnnotations] | None:
    """The first layout that is found, or that which is requested; None if there is none."""
    for layout in _possible(part, options):
        if (opened := layout.open(options)) is not None:
            return layout, opened
    return None


def need_annotations(
    key: str, part: UnimedPart, options: PartOptions
) -> tuple[Layout, OpenedAnnotations]:
    """As `find_annotations`. Raises CorpusError if there is none."""
    if (found := find_annotations(part, options)) is not None:
        return found
    possible = _possible(part, options)
    if not possible:
        raise CorpusError(f"--layout={options.layout}: {key} has only the layout {OFFICIAL}")
    looked_for = [path for layout in possible for path in layout.annotations]
    raise CorpusError(
        f"{key}: none of {looked_for} is in {options.raw}; get the data from {part.access}"
    )


def _possible(part: UnimedPart, options: PartOptions) -> list[Layout]:
    return [layout for layout in layouts(part) if options.layout in (None, layout.name)]


def _official_split(key: str, part: UnimedPart, options: PartOptions) -> OfficialSplit:
    """Raises CorpusError if the file of the split is missing."""
    if part.split_file is None or not options.takes_official_split:
        return OfficialSplit()
    found = splits.read(part.split_file, options.raw, part.identity, options.encoding)
    if found is None:
        raise CorpusError(
            f"{key}: {part.split_file.paths[0]} is not in {options.raw}; it keeps the official "
            "test images out of training. --official_split=ignore goes without"
        )
    return found


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
    held_out = frozenset(identity(match, options.held_out_by) for match in matches)
    if not held_out:
        raise CorpusError(
            f"{options.held_out} names no image of this part; names must match {part.identity}"
        )
    return held_out


# --- rows -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Turns annotations into rows."""

    key: str
    part: UnimedPart
    options: PartOptions
    official_split: OfficialSplit
    held_out: frozenset[str]

    def read(
        self, annotations: Iterator[Annotation | Rejection]
    ) -> Iterator[SourceRow | Rejection]:
        """A row or rejection per annotation, or per text of it (`_pairs`)."""
        excluded = [c.strip().casefold() for c in (self.options.exclude_classes or "").split(",")]
        excluded = [name for name in excluded if name]
        for annotation in annotations:
            if isinstance(annotation, Rejection):
                yield annotation
                continue
            for pair in self._pairs(annotation):
                try:
                    yield self._row(pair, excluded)
                except ValueError as error:
                    yield Rejection(str(error), annotation.number, path=annotation.path)

    def _pairs(self, annotation: Annotation) -> list[Annotation]:
        """The annotation; or one for each of its texts, where these were published so."""
        if not (self.part.published_pairs and self.options.is_published and annotation.texts):
            return [annotation]
        return [dataclasses.replace(annotation, texts=(text,)) for text in annotation.texts]

    def _row(self, annotation: Annotation, excluded: Sequence[str]) -> SourceRow:
        """Raises ValueError, with the reason, for a rejected row."""
        part, path = self.part, annotation.path
        match = re.search(part.identity, path)
        names = match.groupdict() if match else {"key": path}
        by, held_out_file = self.options.held_out_by, self.options.held_out
        if held_out_file and match and identity(match, by) in self.held_out:
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
        takes_released = self.options.takes_released_captions and bool(released)
        if (self.options.released_captions or takes_released) and len(released) < part.num_released:
            notes += (f"fewer than {part.num_released} released captions",)
        if part.label_caption:
            released = tuple(part.label_caption.format(label) for label in labels)
        if not (texts or labels or released) and part.released is not None:
            raise ValueError("neither text nor label; --released_captions takes generated ones")

        row_id = f"{self.key}/{path}"
        if part.several_texts_per_image or (part.published_pairs and self.options.is_published):
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
        if not self.options.takes_official_split:
            return "train"
        if name := annotation.split.lower():
            if name not in splits.NAMES:
                raise ValueError(f"unknown split: {name!r} is none of {sorted(splits.NAMES)}")
            return splits.NAMES[name]
        by_path = self.part.split_by_path.items()
        matched = next((s for regex, s in by_path if re.search(regex, annotation.path)), None)
        return matched or self.official_split.of(key)


def _is_class(label: str, name: str) -> bool:
    """Whether a label contains the class name without a negation ("no cataract")."""
    label = " ".join(label.casefold().split())
    if _NEGATION.search(label):
        return False
    return re.search(rf"\b{re.escape(name)}\b", label) is not None
