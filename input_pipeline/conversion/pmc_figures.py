"""Brings the figures of PubMed Central that LLaVA-Med and PMC-OA name, article by article.

Figures are written where the converters look for them. What is there stays, and is not asked for.
Beside the data, `pmc_fetch.jsonl` grows by a line per figure, written before the figure itself:

    {"path": "llava_med/images/1_F1.jpg", "key": "PMC1.1/a.jpg", "bytes": 90210, "md5": "...",
     "sha256": "...", "licence": "CC BY", "retracted": false}
    {"path": "llava_med/images/2_F1.jpg", "article": "PMC2", "gone": "the article is not ..."}

LLaVA-Med's list of figures names article and file. PMC-OA's images are panels that its authors cut
out of figures; only the whole figure can be had from the article, so each of its panels becomes
the whole figure.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from tqdm import tqdm

from input_pipeline.conversion.annotations import first_file
from input_pipeline.conversion.planned_rows import Rejection
from input_pipeline.conversion.pmc_bucket import (
    Article,
    Gone,
    Object,
    PmcBucket,
    Unavailable,
    figure_files,
    is_image_name,
)
from input_pipeline.conversion.sources.unimed import find_annotations, need_annotations
from input_pipeline.conversion.unimed_parts import PARTS
from input_pipeline.io import files, tabular_files
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.files import write_bytes_atomically
from input_pipeline.io.threads import map_ahead

PMC_OA = "pmc_oa"
PARTS_OF_PMC = ("llava_med_alignment", "llava_med_hq60k", PMC_OA)
LEDGER, GONE = "pmc_fetch.jsonl", "pmc_gone.jsonl"
_SCRATCH = ".pmc_fetch"
_URLS = "llava_med_image_urls.jsonl"
_URL_PLACES = (f"llava_med/{_URLS}", _URLS, f"data/{_URLS}", f"llava_med/data/{_URLS}")
_ARTICLE = re.compile(r"PMC\d+")
_PANEL = re.compile(r"(PMC\d+)_(.+)_\d+\.\w+")  # article, id of the figure, number of the panel
_MOST_FAILURES = 32  # articles in a row after which there is no point in going on

_TABLES = """
CREATE TABLE figures (path TEXT PRIMARY KEY, article TEXT, figure TEXT) WITHOUT ROWID;
CREATE TABLE gone_before (path TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclasses.dataclass
class Counts:
    """What became of the figures that the parts name; `failed` ones may succeed another time."""

    named: int = 0
    there: int = 0
    fetched: int = 0
    gone: int = 0
    failed: int = 0
    num_bytes: int = 0
    first_failure: str = ""


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A figure of an article: the paths below --raw where it belongs, and what came of it."""

    name: str
    paths: tuple[str, ...]
    content: bytes = b""
    object: Object | None = None
    licence: str = ""
    retracted: bool = False
    gone: str = ""
    failed: str = ""


def fetch(
    raw: pathlib.Path,
    keys: Sequence[str],
    bucket: PmcBucket,
    *,
    connections: int,
    most_articles: int | None = None,
    again: bool = False,
    progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Fetches the figures that are missing.

    Args:
      raw: folder of the parts, as `convert --raw` takes it.
      keys: of `PARTS_OF_PMC`.
      bucket: where they are.
      connections: articles to fetch at a time.
      most_articles: stop after so many; None: all.
      again: ask again for what was gone in an earlier run.
      progress: is called after every article.

    Raises:
      CorpusError: annotation files are missing or invalid.
      UserError: the bucket fails all the time, or the disk cannot be written.
    """
    counts = Counts()
    scratch = raw / _SCRATCH
    files.remove_tree(scratch)  # of a run that was killed
    scratch.mkdir()
    with contextlib.closing(sqlite3.connect("")) as index:  # "": a temporary file
        index.executescript(_TABLES)
        _drop_torn_line(raw / LEDGER)
        if not again:
            paths = ((path,) for path, reason in _outcomes(raw / LEDGER) if reason)
            index.executemany("INSERT OR IGNORE INTO gone_before VALUES (?)", paths)
        with (raw / LEDGER).open("ab") as ledger:
            for key in keys:
                _index(raw, key, index, ledger, counts)
            articles = itertools.islice(_articles(index), most_articles)
            in_a_row = 0
            done = map_ahead(functools.partial(_of_article, bucket), articles, connections)
            for figures in done:
                _keep(raw, figures, ledger, counts)
                progress(counts)
                in_a_row = in_a_row + 1 if all(figure.failed for figure in figures) else 0
                if in_a_row == _MOST_FAILURES:
                    raise UserError(
                        f"{in_a_row} articles in a row could not be fetched, the last: "
                        f"{figures[-1].failed}; the same command resumes here"
                    )
    _write_gone(raw)
    files.remove_tree(scratch)
    return counts


# --- what is wanted ---------------------------------------------------------------------------


def llava_parts(raw: pathlib.Path) -> list[str]:
    """The parts of LLaVA-Med whose annotation files are there. Raises CorpusError for none."""
    llava = (key for key in PARTS_OF_PMC if key != PMC_OA)
    keys = [key for key in llava if find_annotations(PARTS[key], PARTS[key].options(raw=raw))]
    if not keys:
        raise CorpusError(f"the annotation files of no part of LLaVA-Med are in {raw}")
    return keys


def _index(
    raw: pathlib.Path, key: str, index: sqlite3.Connection, ledger: BinaryIO, counts: Counts
) -> None:
    """Finds the articles of the figures that a part names and that are not there."""
    _, opened = need_annotations(key, PARTS[key], PARTS[key].options(raw=raw))
    place = _place_of_panel if key == PMC_OA else _place_in_list(raw)
    rows = (row for row in opened.rows if not isinstance(row, Rejection))
    for row in tqdm(rows, desc=f"reading {key}", unit=" rows", delay=1):
        path = row.image
        insert = "INSERT OR IGNORE INTO figures VALUES (?, NULL, NULL)"
        if not index.execute(insert, (path,)).rowcount:  # of several rows, or of both parts
            continue
        counts.named += 1
        safe = not _leads_out(path)
        if safe and (raw / path).is_file():
            counts.there += 1
            continue
        query = "SELECT 1 FROM gone_before WHERE path = ?"
        if index.execute(query, (path,)).fetchone():
            counts.gone += 1
            continue
        found = place(path) if safe else "its name leads out of the folder"
        if isinstance(found, str):
            counts.gone += 1
            _append(ledger, [{"path": path, "gone": found}])
        else:
            index.execute(
                "UPDATE figures SET article = ?, figure = ? WHERE path = ?", (*found, path)
            )


def _leads_out(path: str) -> bool:
    pure = pathlib.PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts


def _place_in_list(raw: pathlib.Path) -> Callable[[str], tuple[str, str] | str]:
    """Path of an image -> article and file name, by LLaVA-Med's list; or why there are none."""
    listing = first_file(raw, _URL_PLACES)
    if listing is None:
        raise CorpusError(
            f"{_URLS} is not in {raw}; it names article and file of LLaVA-Med's figures, and "
            f"comes with {PARTS['llava_med_alignment'].access}"
        )
    places = {}
    for _, row in tabular_files.jsonl_records(listing):
        file = str(row.get("image_file_path") or "")
        url = str(row.get("pmc_tar_url") or "").rpartition("/")[2]
        article = _ARTICLE.match(url) or _ARTICLE.match(file)
        if article and file:
            places[str(row.get("pair_id"))] = article[0], file.rpartition("/")[2]

    def place(path: str) -> tuple[str, str] | str:
        return places.get(pathlib.PurePosixPath(path).stem, f"{listing.name} does not name it")

    return place


def _place_of_panel(path: str) -> tuple[str, str] | str:
    """Article and id of the figure by the name of a panel, `PMC212319_Fig3_4.jpg`."""
    match = _PANEL.fullmatch(pathlib.PurePosixPath(path).name)
    return (match[1], match[2]) if match else "its name is not that of a panel of an article"


def _articles(index: sqlite3.Connection) -> Iterator[tuple[str, list[_Figure]]]:
    """Every article with its wanted figures, in the order of their names."""
    rows = index.execute(
        "SELECT article, figure, path FROM figures WHERE article IS NOT NULL ORDER BY 1, 2, 3"
    )
    for article, of_article in itertools.groupby(rows, lambda row: row[0]):
        by_figure = itertools.groupby(of_article, lambda row: row[1])
        yield article, [_Figure(name, tuple(x[2] for x in of)) for name, of in by_figure]


# --- what is fetched --------------------------------------------------------------------------


def _of_article(bucket: PmcBucket, wanted: tuple[str, list[_Figure]]) -> list[_Figure]:
    """The figures of an article with what came of them, the newest version that has each."""
    article, missing = wanted
    done: list[_Figure] = []
    try:
        versions = bucket.versions(article)
        for version in versions:
            found = bucket.article(version)
            places = _places(bucket, found, missing)
            for figure in missing:
                if figure.name in places:
                    done.append(_read(bucket, found, figure, places[figure.name]))
            missing = [figure for figure in missing if figure.name not in places]
            if not missing:
                break
        reason = f"{article} is not in the bucket"
        if versions:
            reason = f"{versions[0]} has no such figure: {{}}"
        done += [dataclasses.replace(figure, gone=reason.format(figure.name)) for figure in missing]
    except Gone as error:  # of the article itself
        done += [dataclasses.replace(figure, gone=str(error)) for figure in missing]
    except Unavailable as error:
        done += [dataclasses.replace(figure, failed=str(error)) for figure in missing]
    return done


def _places(bucket: PmcBucket, article: Article, wanted: Sequence[_Figure]) -> dict[str, Object]:
    """Name of a figure -> its object: by file name, else by the id of the figure in the text."""
    found = {f.name: media for f in wanted if (media := article.figure(f.name))}
    by_id = [f for f in wanted if f.name not in found and not is_image_name(f.name)]
    if by_id and article.xml:
        with contextlib.suppress(ValueError, Gone):
            names = figure_files(bucket.read(article.xml))
            for figure in by_id:
                if media := article.figure(names.get(figure.name, "")):
                    found[figure.name] = media
    return found


def _read(bucket: PmcBucket, article: Article, figure: _Figure, place: Object) -> _Figure:
    try:
        return dataclasses.replace(
            figure,
            content=bucket.read(place),
            object=place,
            licence=article.licence,
            retracted=article.retracted,
        )
    except Gone as error:
        return dataclasses.replace(figure, gone=str(error))
    except Unavailable as error:
        return dataclasses.replace(figure, failed=str(error))


# --- what is kept -----------------------------------------------------------------------------


def _keep(raw: pathlib.Path, figures: Sequence[_Figure], ledger: BinaryIO, counts: Counts) -> None:
    """Writes the figures of an article: first their lines, then the files, each at once."""
    lines: list[dict[str, Any]] = []
    for figure in figures:
        if figure.failed:
            counts.failed += len(figure.paths)
            counts.first_failure = counts.first_failure or figure.failed
        elif figure.gone:
            counts.gone += len(figure.paths)
            lines += [{"path": path, "gone": figure.gone} for path in figure.paths]
        elif figure.object:
            counts.fetched += len(figure.paths)
            counts.num_bytes += len(figure.content)
            facts = {
                "key": figure.object.key,
                "bytes": len(figure.content),
                "md5": hashlib.md5(figure.content, usedforsecurity=False).hexdigest(),
                "sha256": hashlib.sha256(figure.content).hexdigest(),
                "licence": figure.licence,
                "retracted": figure.retracted,
            }
            lines += [{"path": path, **facts} for path in figure.paths]
    _append(ledger, lines)
    ledger.flush()
    os.fsync(ledger.fileno())
    for figure in figures:
        if figure.object:
            _write(raw, figure.content, figure.paths)


def _write(raw: pathlib.Path, content: bytes, paths: Sequence[str]) -> None:
    """One file, under all its names."""
    first = raw / paths[0]
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(first, raw / _SCRATCH) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {first}: {error.strerror}") from error
    for path in paths[1:]:
        try:
            os.link(first, raw / path)
        except OSError:  # in another folder, or a disk without links
            write_bytes_atomically(raw / path, content)


def _append(ledger: BinaryIO, lines: Sequence[Mapping[str, Any]]) -> None:
    for line in lines:
        ledger.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _drop_torn_line(path: pathlib.Path) -> None:
    """Cuts off a last line that a kill left without its end."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            end -= 1
        file.truncate(end)


def _outcomes(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(path, why it is gone, or nothing) of the lines; the last one of a path counts."""
    if not path.is_file():
        return
    with contextlib.closing(sqlite3.connect("")) as index:
        index.execute("CREATE TABLE outcomes (path TEXT PRIMARY KEY, gone TEXT) WITHOUT ROWID")
        for _, line in tabular_files.jsonl_records(path):
            index.execute(
                "INSERT OR REPLACE INTO outcomes VALUES (?, ?)",
                (line["path"], line.get("gone", "")),
            )
        yield from index.execute("SELECT path, gone FROM outcomes ORDER BY path")


def _write_gone(raw: pathlib.Path) -> None:
    """The list of what is gone: a line per image, with the reason."""
    with files.atomic_file(raw / GONE, raw / _SCRATCH) as temporary, temporary.open("wb") as file:
        for path, reason in _outcomes(raw / LEDGER):
            if reason and not (raw / path).is_file():
                line = json.dumps({"path": path, "gone": reason}, ensure_ascii=False)
                file.write(line.encode() + b"\n")
