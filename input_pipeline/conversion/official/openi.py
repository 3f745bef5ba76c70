"""Open-I's Indiana University collection: an XML file per report, PNG images."""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    PartOptions,
)
from input_pipeline.conversion.official import reports
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.files import AnyPath
from input_pipeline.io.threads import BUCKET_THREADS, map_ahead

FOLDERS = ("openI/", "openi/", "OpenI/", "NLMCXR/")
_REPORTS = tuple(
    f"{top}{folder}*.xml"
    for top in ("", *FOLDERS)
    for folder in ("ecgen-radiology/", "NLMCXR_reports/ecgen-radiology/", "NLMCXR_reports/", "")
)
_IMAGES = tuple(
    f"{top}{folder}" for top in ("", *FOLDERS) for folder in ("NLMCXR_png", "image", "images", "")
)
MARKS_NOTE = "marks of removed words (XXXX) deleted"


@dataclass(frozen=True)
class Report:
    """A report: ids of its images, and its sections by label, as they are written."""

    images: tuple[str, ...]
    sections: dict[str, str]


def open_openi(options: PartOptions) -> OpenedAnnotations | None:
    """A row per image of a report; findings and impression are two texts of it."""
    raw = options.raw
    pattern, paths = next(
        ((p, paths) for p in _REPORTS if (paths := files.sorted_glob(raw, p))), ("", [])
    )
    if not paths:
        return None
    contents = [*map_ahead(_content, paths, 1 if files.is_local(raw) else BUCKET_THREADS)]
    found = [data for data in contents if isinstance(data, bytes)]
    folder = _image_folder(raw)
    facts = {
        "annotations": [
            {
                "file": pattern,
                "files": len(paths),
                "bytes": sum(map(len, found)),
                "sha256": hashlib.sha256(b"".join(found)).hexdigest(),
            }
        ],
        "image_folder": folder or ".",
        "texts": "findings and impression, without marks of removed words",
    }
    names = (path.name for path in paths)
    return OpenedAnnotations((), _read(zip(names, contents, strict=True), folder), facts)


def _content(path: AnyPath) -> bytes | str:
    """The bytes of a report, or why it cannot be read."""
    try:
        return files.read_bytes(path)
    except OSError as error:
        return f"cannot read the report: {files.reason(error)}"


def _image_folder(raw: AnyPath) -> str:
    """The first folder with PNG files."""
    for name in _IMAGES:
        if files.sorted_glob(raw / name if name else raw, "*.png"):
            return name.rstrip("/")
    return _IMAGES[0]


def parse(data: bytes) -> Report:
    """Reads a report. Raises ValueError if it is no XML."""
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"cannot read the report: {error}") from error
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        text = " ".join("".join(element.itertext()).split())
        label = (element.get("Label") or "").strip().upper()
        sections[label] = " ".join(filter(None, [sections.get(label, ""), text]))
    ids = ((element.get("id") or "").strip() for element in root.iter("parentImage"))
    return Report(tuple(dict.fromkeys(filter(None, ids))), sections)


def texts(report: Report) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The findings and the impression, cleaned, each at most once; and notes on them."""
    sections = (report.sections.get(name, "") for name in ("FINDINGS", "IMPRESSION"))
    found, marked = reports.cleaned(sections)
    return found, (MARKS_NOTE,) * marked


def _read(
    contents: Iterable[tuple[str, bytes | str]], folder: str
) -> Iterator[Annotation | Rejection]:
    """A row per image, numbered through; a report without one counts as a row."""
    number = 0
    for name, content in contents:
        try:
            if isinstance(content, str):
                raise ValueError(content)
            report = parse(content)
            if not report.images:
                raise ValueError("report without an image")
        except ValueError as error:
            number += 1
            yield Rejection(str(error), number, path=name)
            continue
        found, notes = texts(report)
        for image in report.images:
            number += 1
            image = image if image.lower().endswith(".png") else f"{image}.png"
            if found:
                place = f"{folder}/{image}" if folder else image
                yield Annotation(number, image, place, texts=found, notes=notes)
            else:
                yield Rejection("report without findings and impression", number, path=image)


LAYOUT = Layout(OFFICIAL, _REPORTS, open_openi)
