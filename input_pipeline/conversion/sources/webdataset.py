"""The source `webdataset`: tars in which members with one stem form a sample (`tar_members.py`).

A stem's `.txt` and the `caption` or `text` of its `.json` are its texts; `.cls` or the `label` or
`labels` of its `.json` are its labels. Images stay in the tar: a row holds their offset. The tars
of the published UniMed join several captions into one text; `--part` tells how (`unimed_parts.py`).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import OpenedSource, corpus_name
from input_pipeline.conversion.sources.tar_members import TarSample, tar_samples
from input_pipeline.conversion.unimed_parts import PARTS, TarLayout
from input_pipeline.io.cell_text import clean_texts, value_texts
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, sorted_glob

_TEXT_KEYS = ("caption", "captions", "text", "texts")  # of a .json


@dataclass(frozen=True)
class TarOptions:
    """Flags of the `webdataset` source."""

    raw: Annotated[AnyPath, "folder of *.tar; with --part, the folder of the part or its parent"]
    part: Annotated[str | None, "key of the UniMed part that the tars hold (none)"] = None
    modality: Annotated[str | None, "modality of all images (with --part: that of the part)"] = None
    source: Annotated[str | None, "name of the collection (name of the folder or part)"] = None
    split: Annotated[str, "split of all samples (train)"] = "train"
    separator: Annotated[str | None, "separator of captions in one .txt (none)"] = None
    generated: Annotated[bool, "the texts are generated captions (default: written by people)"] = (
        False
    )


def open_tars(options: TarOptions) -> OpenedSource:
    """The samples of all tars, in the order of their names."""
    folder, layout, metadata = options.raw, _layout(options), {}
    source, modality = options.source, options.modality
    if options.part:
        part = PARTS[options.part]
        source, modality = source or options.part, modality or part.modality
        folders = (options.raw / name for name in layout.folders)
        folder = next((path for path in folders if path.is_dir()), options.raw)
        metadata = {
            "part": part.title,
            "licence": part.licence,
            "expected": asdict(part.expected),
            "not_in_tars": "labels, patients and official splits were never in the published tars",
        }
    if not modality:
        raise CorpusError("give --modality=NAME, or --part=KEY for the tars of a UniMed part")
    tars = sorted_glob(folder, "*.tar")
    packed = sorted({*sorted_glob(folder, "*.tar.*"), *sorted_glob(folder, "*.tgz")})
    if not tars:
        also = f" ({len(packed)} are compressed: unpack them)" if packed else ""
        raise CorpusError(f"there is no .tar in {folder}{also}")
    name = source or corpus_name(folder.resolve().name)
    inputs: Counter[str] = Counter()
    if deeper := sorted_glob(folder, "*/*.tar"):
        inputs["tars in folders below, which are not read"] = len(deeper)
    rows = _rows(tars, packed, options.split, name, modality, layout, inputs)
    return OpenedSource(folder, name, rows, metadata, inputs)


def _layout(options: TarOptions) -> TarLayout:
    if options.part is None:
        first = 0 if options.generated else 1 << 30
        return TarLayout((), options.separator or "", num_original=first)
    if options.part not in PARTS:
        raise CorpusError(f"--part={options.part}: expected one of {', '.join(PARTS)}")
    if options.separator or options.generated:
        raise CorpusError("--part says how captions are joined: leave --separator, --generated")
    return PARTS[options.part].tar


def split_captions(text: str, layout: TarLayout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(original, generated) captions of a text, without empty ones and stand-ins for none."""

    def clean(pieces: list[str]) -> tuple[str, ...]:
        texts = (" ".join(piece.split()) for piece in pieces)
        return tuple(text for text in texts if text and text != layout.absent)

    if not layout.separator:
        captions = clean([text])
        return (captions, ()) if layout.num_original else ((), captions)
    pieces = text.split(layout.separator)
    if layout.report_last:
        return clean(pieces[-1:]), clean(pieces[:-1])
    captions = clean(pieces)
    original, generated = captions[: layout.num_original], captions[layout.num_original :]
    return original, generated[: layout.num_generated]


def _rows(
    tars: list[AnyPath],
    packed: list[AnyPath],
    split: str,
    source: str,
    modality: str,
    layout: TarLayout,
    inputs: Counter[str],
) -> Iterator[SourceRow | Rejection]:
    number = 0
    for path in tars:
        for sample in tar_samples(path, inputs):
            number += 1
            if isinstance(sample, str):
                yield Rejection(sample, number, path=path.name)
                continue
            place = f"{path.name}/{sample.stem}"
            try:
                texts, labels, notes = _texts_and_labels(sample)
                original, generated = _split_all(texts, layout)
                span = sample.image()
            except ValueError as error:  # also not UTF-8 and not JSON
                yield Rejection(str(error), number, path=place)
                continue
            yield SourceRow(
                row=number,
                id=f"{source}/{path.stem}/{sample.stem}",
                image=path.name,
                texts=original,
                labels=labels,
                modality=modality,
                source=source,
                split=split,
                group="",
                released=generated,
                span=span,
                notes=notes,
            )
    for path in packed:
        number += 1
        yield Rejection("the tar is compressed: unpack it", number, path=path.name)


def _split_all(
    texts: tuple[str, ...], layout: TarLayout
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = [split_captions(text, layout) for text in texts]
    return tuple(t for o, _ in parts for t in o), tuple(t for _, g in parts for t in g)


def _texts_and_labels(
    sample: TarSample,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Texts as they are, with separators, labels and notes. ValueError for what is unreadable."""
    table: dict[str, Any] = {}
    if content := sample.text("json"):
        table = json.loads(content)
        if not isinstance(table, dict):
            raise ValueError("the .json of the sample is not an object")
    txt = (sample.text("txt") or b"").decode("utf-8-sig")
    texts = {" ".join(txt.split()): txt}
    texts |= {text: text for key in _TEXT_KEYS for text in value_texts(table.get(key))}
    labels = value_texts(table.get("labels", table.get("label")))
    notes: tuple[str, ...] = ()
    if content := sample.text("cls"):
        in_cls = clean_texts(content.decode("utf-8-sig"))
        if labels and labels != in_cls:
            notes = ("label of .cls taken, not that of .json",)
        labels = in_cls
    return tuple(text for clean, text in texts.items() if clean), labels, notes
