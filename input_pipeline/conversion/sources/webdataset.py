"""The source `webdataset`: tars in which consecutive members with one stem form a sample.

A stem's `.txt` is its text, or the `caption` or `text` of its `.json`; `.cls` or the `label` or
`labels` of its `.json` are its labels. Images stay in the tar: a row holds their offset. The tars
of the published UniMed join several captions into one text; `--part` tells how (`unimed_parts.py`).
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from input_pipeline.conversion.planned_rows import Rejection, SourceRow
from input_pipeline.conversion.sources.base import OpenedSource, corpus_name
from input_pipeline.conversion.unimed_parts import PARTS, TarLayout
from input_pipeline.io.cell_text import clean_texts, value_texts
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, open_to_read, sorted_glob

_IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm", "dcm", "img")
_OTHERS = ("txt", "json", "cls")


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
    if not tars:
        raise CorpusError(f"there is no .tar in {folder}")
    name = source or corpus_name(folder.resolve().name)
    return OpenedSource(folder, name, _rows(tars, options.split, name, modality, layout), metadata)


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


@dataclass
class _Sample:
    """The members of one stem."""

    stem: str
    image: tuple[int, int] | None = None  # offset and length in the tar
    members: dict[str, bytes] = field(default_factory=dict)  # by extension


def _rows(
    tars: list[AnyPath], split: str, source: str, modality: str, layout: TarLayout
) -> Iterator[SourceRow | Rejection]:
    number = 0
    for path in tars:
        for sample in _samples(path):
            number += 1
            if isinstance(sample, str):
                yield Rejection(sample, number, path=path.name)
                continue
            place = f"{path.name}/{sample.stem}"
            try:
                texts, labels = _texts_and_labels(sample)
                original, generated = _split_all(texts, layout)
                if sample.image is None:
                    raise ValueError("no image in the sample")
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
                span=sample.image,
            )


def _split_all(
    texts: tuple[str, ...], layout: TarLayout
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = [split_captions(text, layout) for text in texts]
    return tuple(t for o, _ in parts for t in o), tuple(t for _, g in parts for t in g)


def _texts_and_labels(sample: _Sample) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts as they are, with separators, and labels. ValueError for what cannot be read."""
    table: dict[str, Any] = {}
    if "json" in sample.members:
        table = json.loads(sample.members["json"])
        if not isinstance(table, dict):
            raise ValueError("the .json of the sample is not an object")
    texts: tuple[str, ...] = (
        (sample.members["txt"].decode("utf-8"),) if "txt" in sample.members else ()
    )
    if not texts:
        texts = value_texts(table.get("caption", table.get("text")))
    labels = value_texts(table.get("labels", table.get("label")))
    if "cls" in sample.members:
        labels = clean_texts(sample.members["cls"].decode("utf-8"))
    return texts, labels


def _samples(path: AnyPath) -> Iterator[_Sample | str]:
    """The samples of a tar; a text where the tar is damaged, as its last item."""
    sample: _Sample | None = None
    try:
        # "r:": offsets mean nothing in a compressed tar
        with open_to_read(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Otherwise all members stay in memory. Typeshed lacks the attribute.
                tar.members.clear()  # type: ignore[attr-defined]
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                stem = f"{folder}/{stem}" if folder else stem
                if sample is None or stem != sample.stem:
                    if sample:
                        yield sample
                    sample = _Sample(stem)
                extension = extension.lower()
                if extension in _IMAGES:
                    sample.image = (member.offset_data, member.size)
                elif extension in _OTHERS:
                    content = tar.extractfile(member)
                    assert content is not None, member.name  # a regular file, as checked above
                    sample.members[extension] = content.read()
            # tarfile takes a truncated header for the end; a true end is a block of zeros.
            tar.fileobj.seek(tar.offset)
            complete = tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        if sample:
            yield sample
        if not complete:
            yield "the tar is cut off: it has no end mark"
    except (tarfile.TarError, OSError) as error:
        yield f"the tar is damaged or cut off: {error}"
