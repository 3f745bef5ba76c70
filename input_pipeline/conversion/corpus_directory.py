"""A corpus directory during conversion: its plan and files of an interrupted run.

An unfinished conversion holds

    .partial/plan.json          the plan; a run with another plan is refused
    .partial/rows/SHARD.rows    the rows of a shard
    .partial/SHARD.json         proof that SHARD is complete: checksum, counts, rejected rows
    .partial/*.tmp              a shard being written, on a local disk
    train-00000-of-00008.tfrecord ...     complete shards only

One process writes the directory at a time (``io.locks``); Beam's workers write for it.
"""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

from input_pipeline import manifest as manifest_lib
from input_pipeline import record_index
from input_pipeline.conversion import tfds_metadata
from input_pipeline.conversion.plan import Plan
from input_pipeline.io import files
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath
from input_pipeline.manifest import Manifest

REJECTED_FILE = "rejected.jsonl"
REPORT_FILE = "conversion.json"
PARTIAL = ".partial"
ROWS = "rows"

_PLANNING = "planning"
_PLAN_FILE = "plan.json"
_REMEDY = "give another directory, or --overwrite"


@contextlib.contextmanager
def planning(out_dir: AnyPath) -> Iterator[pathlib.Path]:
    """An empty local directory to plan in, inside `out_dir` if that is local.

    It is removed afterwards, unless `claim` moves it.
    """
    if not files.is_local(out_dir):
        with tempfile.TemporaryDirectory() as temporary:
            yield pathlib.Path(temporary)
        return
    partial = out_dir / PARTIAL
    directory = partial / _PLANNING
    try:
        files.remove_tree(directory)
        directory.mkdir(parents=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {error.strerror}") from error
    try:
        yield directory
    finally:
        files.remove_tree(directory)
        with contextlib.suppress(OSError):  # it holds an unfinished conversion
            partial.rmdir()


def claim(out_dir: AnyPath, plan: Plan, overwrite: bool) -> Manifest | None:
    """Prepares `out_dir` for the plan; returns its manifest if the corpus is there already."""
    manifest_file, plan_file = out_dir / manifest_lib.FILE_NAME, out_dir / PARTIAL / _PLAN_FILE
    try:
        if manifest_file.exists():
            if not overwrite:
                return _finished(out_dir, plan)
            _remove_corpus(out_dir)
        elif plan_file.exists():
            if not _is_of(plan_file, plan):
                if not overwrite:
                    raise CorpusError(_other_plan(out_dir))
                _remove_corpus(out_dir)
        elif files.sorted_glob(out_dir, "*.tfrecord"):
            if not overwrite:
                raise CorpusError(f"{out_dir} holds TFRecord files without a manifest: {_REMEDY}")
            _remove_corpus(out_dir)
        if files.create(plan_file, json.dumps({"plan": plan.hash}) + "\n"):
            files.remove_tree(
                out_dir / PARTIAL / ROWS
            )  # of a run that was killed while removing it
        elif not _is_of(plan_file, plan):  # created by another process since
            raise CorpusError(_other_plan(out_dir))
        if manifest_file.exists():  # another process has finished since
            files.remove_tree(plan_file.parent)
            return _finished(out_dir, plan)
        assert files.is_local(plan.directory), plan.directory  # see `planning`
        files.move_folder(plan.directory, out_dir / PARTIAL / ROWS)
    except OSError as error:
        raise CorpusError(f"cannot write to {out_dir}: {files.reason(error)}") from error
    return None


def _is_of(plan_file: AnyPath, plan: Plan) -> bool:
    return json.loads(plan_file.read_text("utf-8"))["plan"] == plan.hash


def _other_plan(out_dir: AnyPath) -> str:
    return (
        f"{out_dir} holds an unfinished conversion of other inputs or settings: finish that one "
        f"with its command, {_REMEDY}"
    )


def _finished(out_dir: AnyPath, plan: Plan) -> Manifest:
    """The manifest of a complete corpus, if it has this plan and its shards are intact."""
    manifest = manifest_lib.load(out_dir)
    if manifest.plan != plan.hash:
        raise CorpusError(f"{out_dir} holds another complete corpus: {_REMEDY}")
    try:
        for split in manifest.splits:
            manifest_lib.verify(out_dir, manifest, split)
    except CorpusError as error:
        raise CorpusError(f"{error}; --overwrite writes the corpus anew") from error
    # the run was killed between its last two actions
    files.remove_tree(out_dir / PARTIAL)
    return manifest


def _remove_corpus(out_dir: AnyPath) -> None:
    """Removes the files of a corpus, and no others, starting with the manifest."""
    names = (manifest_lib.FILE_NAME, REPORT_FILE, REJECTED_FILE, *tfds_metadata.FILE_NAMES)
    found = [file.name for file in out_dir.iterdir()]
    shards = [name for name in found if manifest_lib.SHARD_PATTERN.fullmatch(name)]
    indices = [name for name in found if name.endswith(record_index.SUFFIX)]
    for file in (*names, *indices, *shards):
        (out_dir / file).unlink(missing_ok=True)
    if not files.is_local(out_dir):
        files.remove_tree(out_dir / PARTIAL)
        return
    for leftover in (out_dir / PARTIAL).iterdir():
        if leftover.name != _PLANNING:  # the plan that is about to be claimed
            files.remove_tree(leftover) if leftover.is_dir() else leftover.unlink()
