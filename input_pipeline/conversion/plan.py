"""Any number of rows -> one file of rows per shard, in the order in which they will be written.

Planning reads the source once, in a stream. Whatever concerns all rows together (equal ids, groups
in several splits, the rank in the shuffle) is in an SQLite file beside the plan, so memory does not
grow with the corpus. The plan depends only on the rows and settings.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import pathlib
import pickle
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from input_pipeline import manifest as manifest_lib
from input_pipeline import records
from input_pipeline.conversion.planned_rows import PlannedRow, Rejection
from input_pipeline.io import files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath

_MAX_SHARD_BYTES = 128 << 20
_MIN_SHARDS = {"train": 8}  # other splits: 2
_INDEX_FILE = "index.sqlite"
_REJECTED_FILE = "rejected.rows"

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -8192; -- KiB
CREATE TABLE rows (row BLOB);
CREATE TABLE ranks (split TEXT, rank BLOB, row INTEGER);
CREATE TABLE ids (digest BLOB PRIMARY KEY, number INTEGER, row INTEGER) WITHOUT ROWID;
CREATE TABLE groups (digest BLOB, split TEXT, name TEXT, PRIMARY KEY (digest, split)) WITHOUT ROWID;
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be written; the rows are in files in `directory`.

    Attributes:
      directory: the directory of the rows.
      hash: SHA-256 (hex) over everything that determines the bytes of the corpus.
      shards: file name of a shard -> its number of rows; splits in alphabetical order.
      num_rejected: number of rows rejected during planning.
      num_merged: number of rows whose texts were added to an earlier row of the same id.
      num_shared_groups: number of groups (patients) in more than one split.
      shared_group: one of them; empty if there is none.
    """

    directory: AnyPath
    hash: str
    shards: Mapping[str, int]
    num_rejected: int
    num_merged: int
    num_shared_groups: int
    shared_group: str

    @property
    def splits(self) -> Mapping[str, list[str]]:
        """Shard files per split, in order."""
        splits = collections.defaultdict(list)
        for file in self.shards:
            splits[manifest_lib.split_of_shard(file)].append(file)
        return dict(splits)

    def rejected(self) -> Iterator[Rejection]:
        """The rows rejected during planning."""
        return _unpickled(self.directory / _REJECTED_FILE)


def shard_rows(directory: AnyPath, shard: str) -> Iterator[Any]:
    """The rows of a shard, in the order in which they are written."""
    return _unpickled(directory / f"{shard}.rows")


def build(
    directory: pathlib.Path,
    name: str,
    rows: Iterable[PlannedRow | Rejection],
    make_sample: Callable[[Any], Any],
    *,
    num_shards: Mapping[str, int] | int | None,
    seed: int,
    schema: records.Schema = records.SCHEMA,
    progress: bool = False,
) -> Plan:
    """Reads all rows and writes the plan.

    Args:
      directory: an empty local directory; it needs about the size of the pickled rows, twice.
      name: name of the corpus.
      rows: the rows of the source.
      make_sample: part of the hash: a function, a `functools.partial` of one, or an object with a
        stable `repr` (a dataclass).
      num_shards: shards of each split, or one number for all; None, and splits without a number:
        `default_num_shards`.
      seed: seed of the shuffle.
      schema: schema of the records that will be written.
      progress: show a progress bar.

    Raises:
      CorpusError: there are no rows; a split name is not a word; a split has fewer rows than
        shards; the directory cannot be written.
    """
    try:
        with contextlib.closing(sqlite3.connect(directory / _INDEX_FILE)) as index:
            index.executescript(_TABLES)
            rows = tqdm(rows, unit=" rows", desc=f"reading {name}", delay=1, disable=not progress)
            sizes, num_rejected, num_merged = _index(index, directory, rows, seed)
            shards = _name_shards(sizes, num_shards)
            digest = hashlib.sha256()
            settings = (name, str(schema.version), _describe(make_sample))
            for part in (*settings, *map(repr, _unpickled(directory / _REJECTED_FILE))):
                digest.update(part.encode() + b"\0")
            _write_rows(index, directory, shards, digest)
            (num_shared,) = index.execute(
                "SELECT count(*) FROM (SELECT 1 FROM groups GROUP BY digest HAVING count(*) > 1)"
            ).fetchone()
            shared = index.execute(
                "SELECT min(name) FROM groups GROUP BY digest HAVING count(*) > 1 LIMIT 1"
            ).fetchone()
        (directory / _INDEX_FILE).unlink()
    except (OSError, sqlite3.OperationalError) as error:
        raise CorpusError(f"planning in {directory} failed: {error}") from error
    return Plan(
        directory,
        digest.hexdigest(),
        shards,
        num_rejected,
        num_merged,
        num_shared,
        shared[0] if shared else "",
    )


def default_num_shards(split: str, num_rows: int, num_bytes: int) -> int:
    """The smallest power of two with which shards have at most 128 MiB.

    At least 8 for `train` and 2 for other splits, but never more than the number of rows.
    """
    num_shards = _MIN_SHARDS.get(split, 2)
    while num_shards * _MAX_SHARD_BYTES < num_bytes:
        num_shards *= 2
    while num_shards > num_rows:
        num_shards //= 2
    return num_shards


@dataclasses.dataclass
class _Size:
    num_rows: int = 0
    num_bytes: int = 0


def _index(
    index: sqlite3.Connection,
    directory: pathlib.Path,
    rows: Iterable[PlannedRow | Rejection],
    seed: int,
) -> tuple[dict[str, _Size], int, int]:
    """Stores rows and rejections.

    Returns:
      The size of every split, the number of rejections, and that of merged rows.
    """
    sizes: dict[str, _Size] = collections.defaultdict(_Size)
    num_rejected, num_merged, first_rejection = 0, 0, None
    with (directory / _REJECTED_FILE).open("wb") as rejected:
        for row in rows:
            refused = row if isinstance(row, Rejection) else _unusable(row)
            first = None if refused or isinstance(row, Rejection) else _first_of_id(index, row)
            if first and isinstance(row, PlannedRow):
                refused = _merge(index, row, *first)
            if refused or isinstance(row, Rejection):
                pickle.dump(refused, rejected)
                num_rejected += 1
                first_rejection = first_rejection or refused
                continue
            if first:
                num_merged += 1
                continue
            size = sizes[row.split]
            # A hash, because NumPy does not guarantee the same permutation in every version.
            rank = _digest(f"{seed}/{row.split}/{size.num_rows}")
            stored = index.execute(
                "INSERT INTO rows VALUES (?)", (pickle.dumps(row.row),)
            ).lastrowid
            index.execute("INSERT INTO ranks VALUES (?, ?, ?)", (row.split, rank, stored))
            index.execute("INSERT INTO ids VALUES (?, ?, ?)", (_digest(row.id), row.number, stored))
            if row.group:
                shown = str(row.group[-1]).encode("utf-8", "backslashreplace").decode()
                key = (_digest(repr(row.group)), row.split, shown)
                index.execute("INSERT OR IGNORE INTO groups VALUES (?, ?, ?)", key)
            size.num_rows += 1
            size.num_bytes += row.num_bytes
    if not sizes:
        why = "no input rows"
        if first_rejection:
            why = f"all {num_rejected} were rejected, the first: {first_rejection.reason}"
        raise CorpusError(f"there are no rows to convert: {why}")
    return sizes, num_rejected, num_merged


def _unusable(row: PlannedRow) -> Rejection | None:
    """Why a row cannot be planned; None if it can."""
    where = (row.number, row.id, row.image)
    if not re.fullmatch(r"\w+", row.split):
        return Rejection(f"a split is letters, digits and _, not {row.split!r}", *where)
    try:
        row.id.encode()
    except UnicodeEncodeError:  # a file name in another encoding
        return Rejection("the name is not UTF-8: rename the file", *where)
    return None


def _first_of_id(index: sqlite3.Connection, row: PlannedRow) -> tuple[int, int | None] | None:
    """Where an earlier row of the same id is stored, and its number; None if there is none."""
    query = "SELECT row, number FROM ids WHERE digest = ?"
    return index.execute(query, (_digest(row.id),)).fetchone()


def _merge(
    index: sqlite3.Connection, row: PlannedRow, stored: int, number: int | None
) -> Rejection | None:
    """Adds the texts of a row to an earlier one of its id; or why that is not possible."""
    reason = f"duplicate id, first in row {number}"
    (blob,) = index.execute("SELECT row FROM rows WHERE rowid = ?", (stored,)).fetchone()
    first = pickle.loads(blob)
    try:
        merged = first.merged(row.row) if hasattr(first, "merged") else None
    except ValueError as error:
        merged, reason = None, f"{reason}, {error}"
    if merged is None:
        return Rejection(reason, row.number, row.id, row.image)
    index.execute("UPDATE rows SET row = ? WHERE rowid = ?", (pickle.dumps(merged), stored))
    return None


def _name_shards(
    sizes: Mapping[str, _Size], num_shards: Mapping[str, int] | int | None
) -> dict[str, int]:
    """File name -> number of rows of every shard; they differ by at most one row in a split."""
    if isinstance(num_shards, int):
        num_shards = dict.fromkeys(sizes, num_shards)
    num_shards = num_shards or {}
    if unknown := sorted(num_shards.keys() - sizes.keys()):
        raise CorpusError(f"there is no split {unknown} to cut into shards; found {sorted(sizes)}")
    shards = {}
    for split, size in sorted(sizes.items()):
        rows = size.num_rows
        count = num_shards.get(split, default_num_shards(split, rows, size.num_bytes))
        if not 1 <= count <= rows:
            raise CorpusError(
                f"split {split!r} has {rows} rows: it can be cut into 1 to {rows} shards, "
                f"not {count}"
            )
        for shard in range(count):
            file = manifest_lib.shard_name(split, shard, count)
            shards[file] = rows * (shard + 1) // count - rows * shard // count
    return shards


def _write_rows(
    index: sqlite3.Connection,
    directory: pathlib.Path,
    shards: Mapping[str, int],
    digest: "hashlib._Hash",
) -> None:
    """Writes the file of rows of every shard and adds their content to the digest."""
    # Only ranks are sorted; rows are looked up, so that the sort needs little space in /tmp.
    ranked = index.execute("SELECT row FROM ranks ORDER BY split, rank")
    for shard, num_rows in shards.items():
        digest.update(shard.encode() + b"\0")
        with (directory / f"{shard}.rows").open("wb") as file:
            for _ in range(num_rows):
                (blob,) = index.execute(
                    "SELECT row FROM rows WHERE rowid = ?", next(ranked)
                ).fetchone()
                digest.update(repr(pickle.loads(blob)).encode() + b"\0")
                file.write(blob)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


# Functions of moved modules keep their first name, so that corpora keep their hash.
_FIRST_MODULES = {
    "input_pipeline.phantoms.masks": "input_pipeline.segmentation.phantoms",
    "input_pipeline.phantoms.volumes": "input_pipeline.segmentation.volume_phantoms",
}


def _describe(function: Any) -> str:
    """A name for a callable that is the same in every process (no memory addresses)."""
    if isinstance(function, functools.partial):
        return f"{_describe(function.func)}{function.args!r}{sorted(function.keywords.items())!r}"
    if inspect.isroutine(function):
        module = _FIRST_MODULES.get(function.__module__, function.__module__)
        return f"{module}.{function.__qualname__}"
    return repr(function)


def _unpickled(path: AnyPath) -> Iterator[Any]:
    with files.open_to_read(path) as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)
