"""A corpus directory while it is being written: whose it is, and what an earlier run has left.

An unfinished conversion holds

    .partial/plan.json          what is being written; a run with another plan is refused
    .partial/rows/SHARD.rows    the rows of a shard
    .partial/SHARD.json         proof that SHARD is complete: checksum, counts, rejected rows
    .partial/SHARD.*.tmp        a shard being written
    train-00000-of-00008.tfrecord ...     complete shards only
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from input_pipeline import manifest as manifest_lib
from input_pipeline import tfds_metadata
from input_pipeline.errors import CorpusError
from input_pipeline.files import write_text_atomically
from input_pipeline.manifest import Manifest
from input_pipeline.plan import Plan

REJECTED_FILE = "rejected.jsonl"
REPORT_FILE = "conversion.json"
PARTIAL = ".partial"
ROWS = "rows"

_PLANNING = "planning"
_REMEDY = "give another directory, or --overwrite"


@contextlib.contextmanager
def locked(out_dir: pathlib.Path) -> Iterator[None]:
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


@contextlib.contextmanager
def planning(out_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty directory in `out_dir` to plan in; nothing of it stays unless `claim` takes it."""
    partial = out_dir / PARTIAL
    directory = partial / _PLANNING
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {error.strerror}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds an unfinished conversion
            partial.rmdir()


def claim(out_dir: pathlib.Path, plan: Plan, overwrite: bool) -> Manifest | None:
    """Prepares `out_dir` for the plan; returns its manifest if the corpus is there already."""
    plan_file = out_dir / PARTIAL / "plan.json"
    try:
        if (out_dir / manifest_lib.FILE_NAME).exists():
            if not overwrite:
                return _finished(out_dir, plan)
            _remove_corpus(out_dir)
        elif plan_file.exists():
            if json.loads(plan_file.read_text("utf-8"))["plan"] != plan.hash:
                if not overwrite:
                    raise CorpusError(
                        f"{out_dir} holds an unfinished conversion of other inputs or settings: "
                        f"finish that one with its own command, {_REMEDY}"
                    )
                _remove_corpus(out_dir)
        elif any(out_dir.glob("*.tfrecord")):
            if not overwrite:
                raise CorpusError(f"{out_dir} holds TFRecord files without a manifest: {_REMEDY}")
            _remove_corpus(out_dir)
        shutil.rmtree(out_dir / PARTIAL / ROWS, ignore_errors=True)
        plan.directory.rename(out_dir / PARTIAL / ROWS)
        write_text_atomically(plan_file, json.dumps({"plan": plan.hash}) + "\n")
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {error.strerror}") from error
    return None


def _finished(out_dir: pathlib.Path, plan: Plan) -> Manifest:
    """The manifest of a complete corpus, if it is of this plan and its shards are whole."""
    found = manifest_lib.load(out_dir)
    if found.plan != plan.hash:
        raise CorpusError(f"{out_dir} holds another complete corpus: {_REMEDY}")
    try:
        for split in found.splits:
            manifest_lib.verify(out_dir, found, split)
    except CorpusError as error:
        raise CorpusError(f"{error}; --overwrite writes the corpus anew") from error
    # A run that was killed between its last two actions.
    shutil.rmtree(out_dir / PARTIAL, ignore_errors=True)
    return found


def _remove_corpus(out_dir: pathlib.Path) -> None:
    """Removes the files of a corpus, and no others; the manifest first."""
    names = (manifest_lib.FILE_NAME, REPORT_FILE, REJECTED_FILE, *tfds_metadata.FILE_NAMES)
    shards = (f.name for f in out_dir.iterdir() if manifest_lib.SHARD_PATTERN.fullmatch(f.name))
    for file in (*names, *shards):
        (out_dir / file).unlink(missing_ok=True)
    for leftover in (out_dir / PARTIAL).iterdir():
        if leftover.name != _PLANNING:  # the plan that is about to be claimed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
