"""MIMIC-CXR-JPG as PhysioNet distributes it: three tables, and a text file per study.

Only the labels of the studies are held in memory; images and reports are read row by row.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated

from input_pipeline.conversion import image_places
from input_pipeline.conversion.annotations import (
    OFFICIAL,
    Annotation,
    Layout,
    OpenedAnnotations,
    first_file,
)
from input_pipeline.conversion.image_places import Places
from input_pipeline.conversion.official import attributes, findings, reports, table
from input_pipeline.conversion.official.findings import FINDINGS, FindingOptions
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.io import files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.io.threads import BUCKET_THREADS, map_ahead

_VERSIONS = ("", "2.0.0/", "2.1.0/")
FOLDERS = tuple(
    f"{top}{version}"
    for top in ("", "mimic-cxr-jpg/", "physionet.org/files/mimic-cxr-jpg/")
    for version in _VERSIONS
)
_METADATA = tuple(
    f"{folder}mimic-cxr-2.0.0-metadata.csv{packed}" for packed in ("", ".gz") for folder in FOLDERS
)
_REPORTS = (
    *(f"{folder}files" for folder in FOLDERS),
    *(
        f"{top}{version}files"
        for top in ("mimic-cxr/", "physionet.org/files/mimic-cxr/", "mimic-cxr-reports/")
        for version in _VERSIONS
    ),
)
_FRONTAL = ("AP", "PA")
MARKS_NOTE = "marks of removed words (___) deleted"
NO_REPORT_NOTE = "image without a report file"
NO_SECTION_NOTE = "report without findings and impression"
_BAD_ROW = "row of labels left out"
ENCODING_NOTE = "report that is not UTF-8, read as cp1252"


@dataclasses.dataclass(frozen=True)
class MimicOptions(FindingOptions):
    """Flags of MIMIC-CXR."""

    reports: Annotated[
        AnyPath | None,
        "folder of MIMIC-CXR's text files, with p10, p11, ... in it (looked for below --raw)",
    ] = None


@dataclasses.dataclass(frozen=True)
class _Image:
    """A frontal image; `path` is below the folder of images, `report` below that of reports."""

    number: int
    study: int
    path: str
    report: str


def open_mimic(options: MimicOptions) -> OpenedAnnotations | None:
    """The frontal images (ViewPosition AP or PA), with labels and report of their study."""
    findings.check(options)
    stated = attributes.labels(attributes.requested(options, ("view",)), "frontal")
    metadata = first_file(options.raw, _METADATA)
    if metadata is None:
        return None
    labels_name = "mimic-cxr-2.0.0-chexpert.csv"
    labels_file = first_file(metadata.parent, (labels_name, f"{labels_name}.gz"))
    images = _images(metadata, options.encoding)
    first = list(itertools.islice(images, image_places.PROBED_ROWS))
    frontal = [image for image in first if isinstance(image, _Image)]
    folders = tuple(f"{folder}files" for folder in FOLDERS)
    places = image_places.probe(options.raw, [image.path for image in frontal], folders, ())
    report_folder = _report_folder(options, frontal)
    if labels_file is None and report_folder is None:
        raise CorpusError(
            f"{metadata.parent} has neither {labels_name}.gz nor reports (--reports=DIR): there "
            "would be no label and no text"
        )
    labels, bad_rows = _labels(labels_file, options) if labels_file else ({}, [])
    facts = {
        "image_folder": places.folder,
        "reports": "found" if report_folder else "none",
        "cells_of_findings": findings.policy(options),
        "views": "frontal, by ViewPosition AP and PA",
        "texts": "findings and impression, without marks of removed words",
    }
    rows = _read(itertools.chain(bad_rows, first, images), labels, stated, places, report_folder)
    return OpenedAnnotations((metadata,), rows, facts, (labels_file,) if labels_file else ())


def _images(metadata: AnyPath, encoding: str) -> Iterator[_Image | Rejection]:
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for row in table.rows([metadata], columns, encoding=encoding):
        if isinstance(row, Rejection):
            yield row
            continue
        dicom, subject, study, view = (row.cells[name] for name in columns)
        folder = f"p{subject[:2]}/p{subject}/s{study}"
        if not (dicom and subject.isdecimal() and study.isdecimal()):
            yield Rejection("no image: an id is missing or no number", row.number, path=folder)
        elif view.upper() not in _FRONTAL:
            reason = f"not a frontal view: {view!r}"
            yield Rejection(reason, row.number, path=f"{folder}/{dicom}.jpg")
        else:
            yield _Image(row.number, int(study), f"{folder}/{dicom}.jpg", f"{folder}.txt")


def _labels(
    path: AnyPath, options: FindingOptions
) -> tuple[Mapping[int, tuple[str, ...]], list[Rejection]]:
    """Study -> labels, equal sets as one object; and the rows that say nothing certain.

    The latter are no rows of images, so their numbers are in their reasons.
    """
    sets: dict[tuple[str, ...], tuple[str, ...]] = {}
    studies: dict[int, tuple[str, ...]] = {}
    bad = []
    for row in table.rows([path], ("study_id", *FINDINGS), encoding=options.encoding):
        if isinstance(row, Rejection):
            bad.append(Rejection(f"{_BAD_ROW}: {row.reason}", path=path.name))
            continue
        try:
            study = row.cells["study_id"]
            if not study.isdecimal():
                raise ValueError(f"{study!r} is no number of a study")
            found = findings.labels(row.cells, options)
            if studies.setdefault(int(study), sets.setdefault(found, found)) != found:
                raise ValueError(f"study {study} has other labels in an earlier row")
        except ValueError as error:
            bad.append(Rejection(f"{_BAD_ROW}: row {row.number}, {error}", path=path.name))
    return studies, bad


def _report_folder(options: MimicOptions, images: list[_Image]) -> AnyPath | None:
    """The folder with most reports of some images; None if there are none anywhere.

    Raises CorpusError if --reports has none.
    """
    if options.reports is not None:
        folders = [options.reports, options.reports / "files"]
    else:
        folders = [options.raw / name for name in _REPORTS]

    def count(folder: AnyPath) -> int:
        return sum((folder / image.report).is_file() for image in images)

    best = max(folders, key=count)
    if count(best):
        return best
    if options.reports is not None and images:
        raise CorpusError(
            f"--reports={options.reports}: none of the first reports is there, for example "
            f"{images[0].report}"
        )
    return None


def _read(
    images: Iterator[_Image | Rejection],
    labels: Mapping[int, tuple[str, ...]],
    stated: tuple[str, ...],
    places: Places,
    folder: AnyPath | None,
) -> Iterator[Annotation | Rejection]:
    @functools.lru_cache(maxsize=256)  # images of a study follow each other
    def texts(report: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _texts(folder / report) if folder else ((), ())

    def annotation(image: _Image | Rejection) -> Annotation | Rejection:
        if isinstance(image, Rejection):
            return image
        try:
            found, notes = texts(image.report)
            known = labels.get(image.study)
            if known is None and not found:
                raise ValueError("neither a report nor a row of labels for the study")
            known = known or ()
            known = (known if found else findings.require(known)) and (*known, *stated)
            path = places.path(image.path)
            return Annotation(image.number, image.path, path, found, known, notes=notes)
        except ValueError as error:
            return Rejection(str(error), image.number, path=image.path)

    threads = 1 if folder is None or files.is_local(folder) else BUCKET_THREADS
    return map_ahead(annotation, images, threads)


def _texts(path: AnyPath) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Findings and impression of a report, cleaned, each at most once; and notes on them."""
    notes: tuple[str, ...] = ()
    try:
        data = files.read_bytes(path)
        report = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        report, notes = data.decode("cp1252", "replace"), (ENCODING_NOTE,)
    except FileNotFoundError:
        return (), (NO_REPORT_NOTE,)
    except OSError as error:
        raise ValueError(f"cannot read the report: {files.reason(error)}") from error
    found, marked = reports.cleaned(reports.findings_and_impression(report))
    notes += (MARKS_NOTE,) * marked
    return found, notes if found else (*notes, NO_SECTION_NOTE)


LAYOUT = Layout(OFFICIAL, _METADATA, open_mimic)
