"""Rows -> globally shuffled TFRecord shards of equal size, a manifest and TFDS metadata.

What is written depends on (name, rows, make_sample, num_shards, seed) alone: rows are permuted and
cut into shards before the first one is written, so the bytes are the same for any number of workers
and after any interruption. While a conversion is unfinished the directory holds

    .partial/plan.json          what is being written; a run with another plan is refused
    .partial/SHARD.json         proof that SHARD is complete: checksum, counts, rejected rows
    .partial/SHARD.tmp          a shard being written
    train-00000-of-00008.tfrecord ...     complete shards only

and a run with the same plan goes on after the shards that are complete. `manifest.json` comes last.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import inspect
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from input_pipeline import manifest as manifest_lib
from input_pipeline import records, tfds_metadata
from input_pipeline.errors import CorpusError
from input_pipeline.files import write_text_atomically
from input_pipeline.manifest import Counts, Manifest, Shard, Split
from input_pipeline.records import Sample

REJECTED_FILE = "rejected.jsonl"
_PARTIAL = ".partial"

Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A row that was read and not written; `row` counts from 1 in the input, None if unnumbered."""

    reason: str
    row: int | None = None
    id: str = ""
    path: str = ""


class RejectedSample(Exception):
    """Raised by a `make_sample` for a row that cannot become a sample."""

    def __init__(
        self, reason: str, *, row: int | None = None, id: str = "", path: str = ""
    ) -> None:
        super().__init__(reason)
        self.rejection = Rejection(reason, row, id, path)


@dataclasses.dataclass(frozen=True)
class _WrittenShard:
    shard: Shard
    counts: Counts
    rejections: tuple[Rejection, ...]


def write_corpus(
    out_dir: str | os.PathLike[str],
    name: str,
    rows: Mapping[str, Sequence[Row]],
    make_sample: Callable[[Row], Sample],
    *,
    num_shards: Mapping[str, int] | int,
    seed: int = 0,
    workers: int = 1,
    rejected: Sequence[Rejection] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """Writes a corpus directory, or finishes one that an interrupted run has begun.

    Args:
      out_dir: directory of this corpus alone; made if missing.
      name: name of the corpus, in the manifest and the TFDS metadata.
      rows: per split, what `make_sample` turns into samples. Their `repr` must say all that
        determines the sample, as it identifies the plan. Shards of a split differ by at most one
        row, and by the rows that are rejected.
      make_sample: called in worker processes when `workers` > 1: it and the rows must be picklable.
        It may raise RejectedSample. A function, a `functools.partial` of one, or an object with a
        stable `repr` (a dataclass).
      num_shards: of each split, or one number for all.
      seed: of the permutation.
      workers: processes; 1 writes in this process.
      rejected: rows that were rejected before; they count as read.
      overwrite: remove another corpus that `out_dir` holds, complete or not.
      progress: show a progress bar.

    Returns:
      The manifest that was written, or the one found when this very corpus is there already.

    Raises:
      CorpusError: `out_dir` is not writable, is in use by another conversion, or holds another
        corpus; more shards than rows are asked for; every row of a split was rejected.
    """
    out_dir = pathlib.Path(out_dir)
    if isinstance(num_shards, int):
        num_shards = dict.fromkeys(rows, num_shards)
    shard_rows = {
        shard: part
        for split, split_rows in rows.items()
        for shard, part in _cut(split, split_rows, num_shards[split], seed)
    }
    plan = _plan(name, shard_rows, make_sample, rejected)
    partial = out_dir / _PARTIAL

    with _locked(out_dir):
        finished = _claim(out_dir, plan, overwrite)
        if finished is not None:
            return finished
        written = _resume(out_dir, shard_rows)
        missing = {shard: part for shard, part in shard_rows.items() if shard not in written}
        total = sum(map(len, shard_rows.values()))
        with tqdm(
            total=total,
            initial=total - sum(map(len, missing.values())),
            unit=" samples",
            desc=f"writing {name}",
            disable=not progress,
        ) as bar:
            for shard, result in _write_all(out_dir, missing, make_sample, workers):
                written[shard] = result
                bar.update(len(missing[shard]))

        # In the order of the plan, so that nothing depends on which worker was first.
        results = {
            split: [written[manifest_lib.shard_name(split, i, n)] for i in range(n)]
            for split, n in _shards_per_split(shard_rows).items()
        }
        rejections = [*rejected]
        rejections += [r for part in results.values() for w in part for r in w.rejections]
        rejections.sort(key=lambda r: (r.row is None, r.row or 0, r.id, r.path))
        manifest = Manifest(
            name=name,
            splits={split: _split(part) for split, part in results.items()},
            read=total + len(rejected),
            written=sum(w.shard.num_samples for part in results.values() for w in part),
            rejected=len(rejections),
            plan=plan,
        )
        assert manifest.read == manifest.written + manifest.rejected, manifest
        lines = [json.dumps(dataclasses.asdict(r), ensure_ascii=False) for r in rejections]
        write_text_atomically(out_dir / REJECTED_FILE, "".join(f"{x}\n" for x in lines))
        for split, content in manifest.splits.items():
            if content.num_samples == 0:
                raise CorpusError(
                    f"every row of split {split!r} was rejected; {out_dir / REJECTED_FILE} "
                    f"says why, the first: {rejections[0].reason}"
                )
        tfds_metadata.write(out_dir, manifest)
        manifest_lib.save(out_dir, manifest)
        shutil.rmtree(partial)
    return manifest


def _cut(
    split: str, rows: Sequence[Row], num_shards: int, seed: int
) -> Iterator[tuple[str, list[Row]]]:
    """Permutes the rows of a split and yields (shard file name, its rows)."""
    if not rows:
        raise CorpusError(f"split {split!r} has no rows")
    if not 1 <= num_shards <= len(rows):
        raise CorpusError(
            f"split {split!r} has {len(rows)} rows: it can be cut into 1 to {len(rows)} shards, "
            f"not {num_shards}"
        )

    # A hash, because NumPy does not promise the same permutation from every version.
    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=16).digest()

    order = sorted(range(len(rows)), key=rank)
    for shard in range(num_shards):
        begin, end = (len(rows) * i // num_shards for i in (shard, shard + 1))
        file = manifest_lib.shard_name(split, shard, num_shards)
        yield file, [rows[index] for index in order[begin:end]]


def _plan(
    name: str,
    shard_rows: Mapping[str, Sequence[Row]],
    make_sample: Callable[[Row], Sample],
    rejected: Sequence[Rejection],
) -> str:
    """SHA-256 (hex) over all that determines the bytes of the corpus."""
    digest = hashlib.sha256()
    for part in (name, str(records.SCHEMA_VERSION), _describe(make_sample), repr(tuple(rejected))):
        digest.update(part.encode() + b"\0")
    for shard, part in shard_rows.items():
        digest.update(shard.encode() + b"\0")
        for row in part:
            digest.update(repr(row).encode() + b"\0")
    return digest.hexdigest()


def _describe(function: Any) -> str:
    """A name for a callable that is the same in every process (no memory addresses)."""
    if isinstance(function, functools.partial):
        return f"{_describe(function.func)}{function.args!r}{sorted(function.keywords.items())!r}"
    if inspect.isroutine(function):
        return f"{function.__module__}.{function.__qualname__}"
    return repr(function)


def _shards_per_split(shard_files: Iterable[str]) -> dict[str, int]:
    return dict(
        collections.Counter(manifest_lib.SHARD_PATTERN.fullmatch(f)[1] for f in shard_files)
    )


def _split(parts: Sequence[_WrittenShard]) -> Split:
    return Split(
        num_samples=sum(part.shard.num_samples for part in parts),
        counts=manifest_lib.add_counts([part.counts for part in parts]),
        shards=tuple(part.shard for part in parts),
    )


# --- the directory: whose it is, and what an earlier run has left -----------------------------


@contextlib.contextmanager
def _locked(out_dir: pathlib.Path) -> Iterator[None]:
    """Makes the directory and holds it for this process; a killed process lets go by itself."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(out_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CorpusError(f"{out_dir} is being written by another conversion") from None
    try:
        yield
    finally:
        os.close(lock)


def _claim(out_dir: pathlib.Path, plan: str, overwrite: bool) -> Manifest | None:
    """Prepares `out_dir` for the plan; returns its manifest if the corpus is there already."""
    remedy = "give another directory, or --overwrite"
    plan_file = out_dir / _PARTIAL / "plan.json"
    try:
        if (out_dir / manifest_lib.FILE_NAME).exists():
            if not overwrite:
                found = manifest_lib.load(out_dir)
                if found.plan != plan:
                    raise CorpusError(f"{out_dir} holds another complete corpus: {remedy}")
                try:
                    for split in found.splits:
                        manifest_lib.verify(out_dir, found, split)
                except CorpusError as error:
                    raise CorpusError(f"{error}; --overwrite writes the corpus anew") from error
                # A run that was killed between its last two actions.
                shutil.rmtree(out_dir / _PARTIAL, ignore_errors=True)
                return found
            _remove_corpus(out_dir)
        elif plan_file.exists():
            if json.loads(plan_file.read_text("utf-8"))["plan"] == plan:
                return None
            if not overwrite:
                raise CorpusError(
                    f"{out_dir} holds an unfinished conversion of other inputs or settings: "
                    f"finish that one with its own command, {remedy}"
                )
            _remove_corpus(out_dir)
        elif any(out_dir.glob("*.tfrecord")):
            if not overwrite:
                raise CorpusError(f"{out_dir} holds TFRecord files without a manifest: {remedy}")
            _remove_corpus(out_dir)
        plan_file.parent.mkdir(exist_ok=True)
        write_text_atomically(plan_file, json.dumps({"plan": plan}) + "\n")
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {error.strerror}") from error
    return None


def _remove_corpus(out_dir: pathlib.Path) -> None:
    """Removes the files of a corpus, and no others; the manifest first."""
    names = (manifest_lib.FILE_NAME, REJECTED_FILE, *tfds_metadata.FILE_NAMES)
    shards = (f.name for f in out_dir.iterdir() if manifest_lib.SHARD_PATTERN.fullmatch(f.name))
    for file in (*names, *shards):
        (out_dir / file).unlink(missing_ok=True)
    shutil.rmtree(out_dir / _PARTIAL, ignore_errors=True)


def _resume(out_dir: pathlib.Path, shard_files: Iterable[str]) -> dict[str, _WrittenShard]:
    """Collects the shards that an earlier run completed and removes what it left half done."""
    for leftover in (out_dir / _PARTIAL).glob("*.tmp"):
        leftover.unlink()
    written = {}
    for file in shard_files:
        with contextlib.suppress(FileNotFoundError):
            content = json.loads((out_dir / _PARTIAL / f"{file}.json").read_text("utf-8"))
            shard = Shard(**content["shard"])
            if (out_dir / file).stat().st_size == shard.num_bytes:
                rejections = tuple(Rejection(**r) for r in content["rejections"])
                written[file] = _WrittenShard(shard, content["counts"], rejections)
    return written


# --- writing ----------------------------------------------------------------------------------


def _write_all(
    out_dir: pathlib.Path,
    shard_rows: Mapping[str, Sequence[Row]],
    make_sample: Callable[[Row], Sample],
    workers: int,
) -> Iterator[tuple[str, _WrittenShard]]:
    """Writes shards, yielding each when it is complete, in any order."""
    if workers <= 1 or len(shard_rows) <= 1:
        for file, rows in shard_rows.items():
            yield file, _write_shard(out_dir, file, rows, make_sample)
        return
    # Not fork: TensorFlow's threads do not survive it.
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(shard_rows)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_die_with_parent,
    ) as pool:
        futures = {
            pool.submit(_write_shard, out_dir, file, rows, make_sample): file
            for file, rows in shard_rows.items()
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise CorpusError(
                "a conversion worker was killed (out of memory?); run the same command again to "
                "continue, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A worker of a killed parent would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(
    out_dir: pathlib.Path,
    file: str,
    rows: Sequence[Row],
    make_sample: Callable[[Row], Sample],
) -> _WrittenShard:
    """Writes one shard under a temporary name, then renames it and leaves the proof."""
    import tensorflow as tf

    # Of this process: a worker whose parent was just killed may still be writing its own.
    temporary = out_dir / _PARTIAL / f"{file}.{os.getpid()}.tmp"
    counts = {field: collections.Counter() for field in manifest_lib.COUNTED_FIELDS}
    rejections = []
    num_samples = 0
    try:
        with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
            for row in rows:
                try:
                    sample = make_sample(row)
                except RejectedSample as error:
                    rejections.append(error.rejection)
                    continue
                writer.write(records.encode(sample))
                num_samples += 1
                counts["source"][sample.source] += 1
                counts["modality"][sample.modality] += 1
                counts["label"].update(sample.labels)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        shard = Shard(
            file, num_samples, temporary.stat().st_size, manifest_lib.file_sha256(temporary)
        )
        temporary.replace(out_dir / file)
        written = _WrittenShard(shard, manifest_lib.add_counts([counts]), tuple(rejections))
        write_text_atomically(
            out_dir / _PARTIAL / f"{file}.json", json.dumps(dataclasses.asdict(written))
        )
    except (OSError, tf.errors.OpError) as error:
        raise CorpusError(f"cannot write shard {out_dir / file}: {error}") from error
    return written
