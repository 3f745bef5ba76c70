"""Rows -> globally shuffled TFRecord shards of equal size, a manifest and TFDS metadata.

The output depends only on (name, rows, make_sample, num_shards, seed): rows are permuted and cut
into shards before the first one is written (``plan.py``). The bytes are the same for any executor
and number of workers, and after any interruption. A run with the same plan resumes after the
complete shards (``corpus_directory.py``). ``manifest.json`` is written last.
"""

import collections
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from input_pipeline import manifest as manifest_lib
from input_pipeline import record_index, records
from input_pipeline.conversion import corpus_directory, guard, report, tfds_metadata
from input_pipeline.conversion import plan as plan_lib
from input_pipeline.conversion.corpus_directory import PARTIAL, REJECTED_FILE, ROWS
from input_pipeline.conversion.executors import Executor, Local
from input_pipeline.conversion.plan import Plan
from input_pipeline.conversion.planned_rows import (
    RejectedSample,
    Rejection,
    Row,
    SampleWithNotes,
    rejecting_invalid,
)
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.io import files, locks
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, PathLike, write_text_atomically
from input_pipeline.io.threads import map_ahead
from input_pipeline.manifest import Counts, Manifest, Shard, Split

_IN_PROCESS = Local(workers=1)

MakeSample = Callable[[Row], Any]  # -> a sample of the schema, or SampleWithNotes


@dataclasses.dataclass(frozen=True)
class _WrittenShard:
    shard: Shard
    counts: Counts
    remarks: Mapping[str, int]  # see conversion_report.count
    findings: Mapping[str, int] = dataclasses.field(default_factory=dict)  # see guard
    first_found: Mapping[str, str] = dataclasses.field(default_factory=dict)  # finding -> id
    record_bytes: Sequence[int] = ()


def write_corpus(
    out_dir: PathLike,
    conversion: Conversion,
    *,
    name: str = "",
    num_shards: Mapping[str, int] | int | None = None,
    seed: int = 0,
    executor: Executor = _IN_PROCESS,
    overwrite: bool = False,
    progress: bool = False,
    max_rejected: float = 0.5,
    max_suspect: float | None = None,
) -> Manifest:
    """Writes a corpus directory, or finishes one that was interrupted.

    Args:
      out_dir: directory for this corpus alone, local or in a bucket; created if missing.
      conversion: the rows, how they become samples, and their schema.
      name: name of the corpus in the manifest and the TFDS metadata; "": name of the conversion.
      num_shards: shards of each split, or one number for all; None, and splits without a number:
        chosen by size.
      seed: seed of the permutation.
      executor: runs the writing of shards.
      overwrite: remove another corpus that `out_dir` holds, complete or not.
      progress: show progress bars.
      max_rejected: share of rejected rows above which the corpus is not finished.
      max_suspect: share of samples with a finding of ``guard`` above which the corpus is not
        finished; None: a limit for each finding.

    Returns:
      The manifest that was written, or the one found if the same corpus is already there.

    Raises:
      UserError: `out_dir` is not writable, or in use by another conversion.
      CorpusError: `out_dir` holds another corpus; there are no rows; more shards than rows are
        requested; or, as RefusedCorpus, every row of a split or too many rows are rejected, or
        samples are suspect. RefusedCorpus leaves reports, and no manifest.
    """
    out_dir, name, schema = files.to_path(out_dir), name or conversion.name, conversion.schema
    with locks.exclusive(out_dir), corpus_directory.planning(out_dir) as directory:
        plan = plan_lib.build(
            directory,
            name,
            conversion.rows,
            conversion.make_sample,
            num_shards=num_shards,
            seed=seed,
            schema=schema,
            progress=progress,
        )
        finished = corpus_directory.claim(out_dir, plan, overwrite)
        if finished is not None:
            return finished
        plan = dataclasses.replace(plan, directory=out_dir / PARTIAL / ROWS)
        _write_shards(out_dir, name, plan, conversion, executor, progress)
        manifest = _finish(out_dir, name, plan, conversion, max_rejected, max_suspect)
    return manifest


def _write_shards(
    out_dir: AnyPath,
    name: str,
    plan: Plan,
    conversion: Conversion,
    executor: Executor,
    progress: bool,
) -> None:
    """Writes the shards that an earlier run has not completed."""
    for leftover in files.sorted_glob(out_dir / PARTIAL, "*.tmp"):
        leftover.unlink()
    missing = {file: n for file, n in plan.shards.items() if not _is_complete(out_dir, file)}
    total = sum(plan.shards.values())
    with tqdm(
        total=total,
        initial=total - sum(missing.values()),
        unit=" samples",
        desc=f"writing {name}",
        delay=1,
        disable=not progress,
    ) as bar:
        write = functools.partial(
            write_shard, out_dir, conversion.make_sample, conversion.schema, conversion.threads
        )
        for file in executor(write, missing):
            bar.update(plan.shards[file])


def write_shard(
    out_dir: AnyPath, make_sample: MakeSample, schema: records.Schema, threads: int, file: str
) -> None:
    """Writes one shard atomically, and the proof that it is complete."""
    import tensorflow as tf

    counts: dict[str, collections.Counter[str]] = {
        field: collections.Counter() for field in manifest_lib.COUNTED_FIELDS
    }
    remarks: collections.Counter[str] = collections.Counter()
    found: collections.Counter[str] = collections.Counter()
    first_found: dict[str, str] = {}
    rejections = []
    record_bytes: list[int] = []
    rows = plan_lib.shard_rows(out_dir / PARTIAL / ROWS, file)
    try:
        with files.atomic_file(out_dir / file, out_dir / PARTIAL) as temporary:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                make = functools.partial(_made, make_sample, schema.encode)
                for made in map_ahead(make, rows, threads):
                    if isinstance(made, Rejection):
                        rejections.append(made)
                        continue
                    noted, record, findings = made
                    sample = noted.sample
                    writer.write(record)
                    record_bytes.append(len(record))
                    counts["source"][sample.source] += 1
                    counts["modality"][sample.modality] += 1
                    counts["label"].update(sample.labels)
                    remarks.update(report.count(noted))
                    found.update(findings)
                    first_found = {**dict.fromkeys(findings, sample.id), **first_found}
            num_bytes, sha256 = temporary.stat().st_size, manifest_lib.file_sha256(temporary)
        written = _WrittenShard(
            Shard(file, len(record_bytes), num_bytes, sha256),
            manifest_lib.add_counts([counts]),
            dict(remarks),
            dict(found),
            first_found,
            record_bytes,
        )
        proof = dataclasses.asdict(written)
        proof["rejections"] = [dataclasses.asdict(rejection) for rejection in rejections]
        write_text_atomically(_proof_file(out_dir, file), json.dumps(proof))
    except (OSError, tf.errors.OpError) as error:
        raise CorpusError(f"cannot write shard {out_dir / file}: {error}") from error


def _made(
    make_sample: MakeSample, encode: Callable[[Any], bytes], row: Any
) -> tuple[SampleWithNotes, bytes, tuple[str, ...]] | Rejection:
    """The sample of a row, its record and what is suspect about it, or why there is none."""
    try:
        with rejecting_invalid(row):
            made = make_sample(row)
            noted = made if isinstance(made, SampleWithNotes) else SampleWithNotes(made, ())
            return noted, encode(noted.sample), guard.findings(noted)
    except RejectedSample as error:
        return error.rejection


def _proof_file(out_dir: AnyPath, file: str) -> AnyPath:
    return out_dir / PARTIAL / f"{file}.json"


def _is_complete(out_dir: AnyPath, file: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return (out_dir / file).stat().st_size == _proof(out_dir, file)[0].shard.num_bytes
    return False


def _proof(out_dir: AnyPath, file: str) -> tuple[_WrittenShard, list[Rejection]]:
    content = json.loads(_proof_file(out_dir, file).read_text("utf-8"))
    rejections = [Rejection(**rejection) for rejection in content.pop("rejections")]
    return _WrittenShard(**content | {"shard": Shard(**content["shard"])}), rejections


def _finish(
    out_dir: AnyPath,
    name: str,
    plan: Plan,
    conversion: Conversion,
    max_rejected: float,
    max_suspect: float | None,
) -> Manifest:
    """Writes the files that need all shards: report, rejections, TFDS metadata and manifest."""
    schema = conversion.schema
    splits, offsets = {}, {}
    remarks: collections.Counter[str] = collections.Counter()
    found: collections.Counter[str] = collections.Counter()
    first_found: dict[str, str] = {}
    for split, shards in plan.splits.items():
        parts = [_proof(out_dir, shard)[0] for shard in shards]
        for part in parts:
            remarks.update(part.remarks)
            found.update(part.findings)
            first_found = {**part.first_found, **first_found}
        splits[split] = Split(
            num_samples=sum(part.shard.num_samples for part in parts),
            counts=manifest_lib.add_counts([part.counts for part in parts]),
            shards=tuple(part.shard for part in parts),
        )
        offsets[split] = np.concatenate([record_index.offsets_of(p.record_bytes) for p in parts])
    planned = sum(plan.shards.values()) + plan.num_rejected
    written = sum(split.num_samples for split in splits.values())
    manifest = Manifest(
        name,
        splits,
        planned + plan.num_merged,
        written,
        planned - written,
        plan.hash,
        schema.version,
        schema.name,
        plan.num_merged,
    )

    def rejections() -> Iterator[Rejection]:
        yield from plan.rejected()
        for file in plan.shards:
            yield from _proof(out_dir, file)[1]

    reasons = report.write_rejected(out_dir / REJECTED_FILE, rejections(), out_dir / PARTIAL)
    if sum(reasons.values()) != manifest.rejected:
        raise CorpusError(f"{planned} rows were planned, {written} written, rejected {reasons}")
    limits = conversion.limits if max_suspect is None else dict.fromkeys(guard.LIMITS, max_suspect)
    suspects = guard.suspects(found, first_found, written, limits)
    report.write(
        out_dir / corpus_directory.REPORT_FILE,
        manifest,
        reasons,
        remarks,
        plan.num_shared_groups,
        plan.shared_group,
        conversion.inputs,
        suspects,
        conversion.metadata,
    )
    guard.check_splits(manifest, out_dir / REJECTED_FILE)
    guard.check_rejected(manifest, max_rejected, out_dir / REJECTED_FILE)
    guard.check(suspects, out_dir / corpus_directory.REPORT_FILE)
    tfds_metadata.write(out_dir, manifest, schema.tfds_features())
    for split, content in splits.items():
        if len(offsets[split]) == content.num_samples:  # an older version wrote no lengths
            index = record_index.RecordIndex(out_dir, content.shards, offsets[split])
            record_index.save(index, manifest, split)
    manifest_lib.save(out_dir, manifest)
    files.remove_tree(out_dir / PARTIAL)
    return manifest
