"""Where a user stands with the thirteen UniMed parts: what is on the disk, and what is missing.

Nothing is decoded: rows are counted in the tables, images by listing folders. The name of a part
below the folder of converted corpora is its key.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from input_pipeline import manifest as manifest_lib
from input_pipeline.conversion import report as conversion_report
from input_pipeline.conversion.annotations import OpenedAnnotations
from input_pipeline.conversion.corpus_directory import REPORT_FILE
from input_pipeline.conversion.sources.unimed import find_annotations
from input_pipeline.conversion.unimed_parts import PARTS, Expected, UnimedPart
from input_pipeline.io import files, tabular_files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath

TARS = "tars of UniMed"
MOST_IMAGES = 3_000_000  # that are counted in a part; no part has as many
_IMAGE = re.compile(r"\.(jpe?g|png|tiff?|ppm|bmp|gif|webp|dcm)$", re.IGNORECASE)
_FIRST = 100  # rows that tell the folders of the images, where those are in --raw itself


@dataclasses.dataclass(frozen=True)
class PartStatus:
    """What is there of a part.

    Attributes:
      key, title, expected, licence, access: as in `unimed_parts.py`.
      raw: what `unimed-jax convert KEY --raw` takes; None if the source data were not found.
      layout: `official`, `unimed`, or `tars of UniMed`; of the corpus, if only that is there; empty
        if there is nothing.
      rows: of the annotation files (of Open-I, images of reports); None if there are none.
      images: files that are images, in the folders of the part; of tars, the tars; None if unknown.
      images_exact: False if there are more.
      corpus: the converted corpus; None if there is none.
      samples: in it.
      problem: why what was found cannot be used; empty if it can.
    """

    key: str
    title: str
    expected: Expected
    licence: str
    access: str
    raw: AnyPath | None = None
    layout: str = ""
    rows: int | None = None
    images: int | None = None
    images_exact: bool = True
    corpus: AnyPath | None = None
    samples: int | None = None
    problem: str = ""

    @property
    def found(self) -> bool:
        """Whether there is anything of the part."""
        return self.raw is not None or self.corpus is not None


def of_parts(
    raw: AnyPath | None, corpora: AnyPath | None, each: Callable[[str], None] = lambda key: None
) -> list[PartStatus]:
    """The status of every part, in the order of `PARTS`.

    Args:
      raw: a folder with the source data of parts in it, each as `convert --raw` takes it, or in a
        folder of any name; None: do not look.
      corpora: a folder with a converted corpus in a folder KEY of it; None: do not look.
      each: is called with the key of every part before it is looked for.
    """
    found = []
    for key, part in PARTS.items():
        each(key)
        status = PartStatus(key, part.title, part.expected, part.licence, part.access)
        if raw is not None:
            status = _with_raw(status, part, raw)
        if corpora is not None:
            status = _with_corpus(status, corpora / key)
        found.append(status)
    return found


def of_corpora(corpora: dict[str, AnyPath]) -> list[PartStatus]:
    """The status of every part, of which some corpora are given, by key."""
    found = []
    for key, part in PARTS.items():
        status = PartStatus(key, part.title, part.expected, part.licence, part.access)
        found.append(_with_corpus(status, corpora[key]) if key in corpora else status)
    return found


# --- source data ------------------------------------------------------------------------------


def _with_raw(status: PartStatus, part: UnimedPart, raw: AnyPath) -> PartStatus:
    for folder in _candidates(raw, status.key):
        try:
            opened = find_annotations(part, part.options(raw=folder))
        except CorpusError as error:
            # a table of the same name in another folder may be of something else
            if folder in (raw, raw / status.key) and not status.problem:
                status = dataclasses.replace(status, problem=str(error))
            continue
        if opened is None:
            continue
        layout, annotations = opened
        try:
            rows = _num_rows(part, annotations)
            problem = ""
        except CorpusError as error:
            rows, problem = None, str(error)
        images, exact = _num_images(part, folder, annotations)
        return dataclasses.replace(
            status,
            raw=folder,
            layout=layout.name,
            rows=rows,
            images=images,
            images_exact=exact,
            problem=problem,
        )
    for folder in (raw / name for name in part.tar.folders):
        if tars := files.sorted_glob(folder, "*.tar"):
            return dataclasses.replace(
                status, raw=folder, layout=TARS, images=len(tars), problem=""
            )
    return status


def _candidates(raw: AnyPath, key: str) -> Iterator[AnyPath]:
    """Folders that may be --raw of a part: KEY, the folder itself, those in it."""
    yield raw / key
    yield raw
    try:
        folders = files.sorted_glob(raw, "*")
    except OSError as error:
        raise CorpusError(f"cannot list {raw}: {files.reason(error)}") from error
    for path in folders:
        if path.name != key and not path.name.startswith(".") and path.is_dir():
            yield path


def _num_rows(part: UnimedPart, annotations: OpenedAnnotations) -> int:
    """Rows of the annotation files that name images."""
    if not annotations.files:  # reports, which are in memory already
        return sum(1 for _ in annotations.rows)
    return sum(_rows_of(path, part.format) for path in annotations.files)


def _rows_of(path: AnyPath, described: str) -> int:
    """Rows of a table; `described` is `UnimedPart.format`, for JSON."""
    if path.suffix == ".jsonl":
        with files.open_to_read(path) as file:
            return sum(bool(line.strip()) for line in file)
    if path.suffix == ".json":
        return sum(1 for _ in tabular_files.json_items(path, described.removeprefix("json:")))
    return sum(1 for _ in tabular_files.csv_rows(path)) - 1


def _num_images(
    part: UnimedPart, raw: AnyPath, annotations: OpenedAnnotations
) -> tuple[int | None, bool]:
    """The number of images of a part, and whether that is all; in a bucket it is unknown."""
    if not files.is_local(raw):
        return None, True
    stated = annotations.facts.get("image_folder", ".")
    folders = [stated] if isinstance(stated, str) else list(stated)
    tops = [raw / folder for folder in folders]
    if part.image_subfolders:
        tops = [
            path
            for top in tops
            if top.is_dir()
            for path in sorted(top.iterdir())
            if path.is_dir() and re.match(part.image_subfolders, path.name)
        ]
    elif folders == ["."]:  # which may hold other parts as well
        tops = [raw / name for name in _first_folders(annotations)] or tops
    count = 0
    for count, _ in enumerate(_images_below(tops), 1):
        if count > MOST_IMAGES:
            return MOST_IMAGES, False
    return count, True


def _first_folders(annotations: OpenedAnnotations) -> list[str]:
    """The folders of --raw in which the first images are."""
    rows = (row for row, _ in zip(annotations.rows, range(_FIRST), strict=False))
    paths = (pathlib.PurePosixPath(getattr(row, "image", "")).parts for row in rows)
    return sorted({parts[0] for parts in paths if len(parts) > 1})


def _images_below(folders: list[pathlib.Path]) -> Iterator[str]:
    """Names of image files in folders and below, as the system lists them."""
    pending: list[str] = [str(folder) for folder in folders]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:  # it may be missing, or not be ours to read
            continue
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif _IMAGE.search(entry.name):
                    yield entry.name


# --- converted corpora ------------------------------------------------------------------------


def _with_corpus(status: PartStatus, directory: AnyPath) -> PartStatus:
    if not directory.is_dir():
        return status
    try:
        content = manifest_lib.load(directory)
        report = conversion_report.load(directory / REPORT_FILE)
    except CorpusError as error:
        return dataclasses.replace(status, problem=str(error))
    except (OSError, ValueError) as error:
        return dataclasses.replace(status, problem=f"cannot read {directory}: {error}")
    layout = status.layout or report.get("facts", {}).get("layout", "")
    return dataclasses.replace(
        status, corpus=directory, samples=content.written, layout=layout, problem=status.problem
    )
