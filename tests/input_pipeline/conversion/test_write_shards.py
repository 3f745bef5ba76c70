"""Shards: same bytes however they are written, complete or absent, and nothing lost or doubled."""

import dataclasses
import errno
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from input_pipeline import manifest as manifest_lib
from input_pipeline import records
from input_pipeline.conversion.executors import Local
from input_pipeline.conversion.planned_rows import PlannedRow, RejectedSample, Rejection
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io import locks
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.io.locks import LockedError


@dataclasses.dataclass(frozen=True)
class Row:
    number: int


ROWS = {"train": [Row(n) for n in range(50)], "val": [Row(n) for n in range(50, 63)]}
NUM_SHARDS = {"train": 8, "val": 2}


def image_bytes(number):
    pixels = np.random.default_rng(number).integers(0, 256, (6 + number % 3, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, ("JPEG", "PNG")[number % 2])
    return buffer.getvalue()


def make_sample(row):
    if row.number % 10 == 4:
        raise RejectedSample("ends in 4", row=row.number, id=f"s{row.number}")
    return records.Sample(
        id=f"s{row.number}",
        image=image_bytes(row.number),
        captions=(f"Bild {row.number} ü", "shared"),
        num_original_captions=1,
        labels=("even",) if row.number % 2 == 0 else (),
        modality="ct",
        source="numbers",
    )


@dataclasses.dataclass(frozen=True)
class FailsWhile:
    """make_sample that breaks at one row as long as a file exists, as a full disk would."""

    flag: pathlib.Path

    def __call__(self, row):
        if row.number == 30 and self.flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make_sample(row)


def write(out_dir, rows=ROWS, make=make_sample, num_shards=NUM_SHARDS, rejected=(), **options):
    planned = [
        PlannedRow(row, split, f"s{row.number}", row.number)
        for split, part in rows.items()
        for row in part
    ]
    conversion = Conversion("numbers", [*planned, *rejected], make)
    return write_corpus(out_dir, conversion, num_shards=num_shards, **options)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def ids_per_shard(directory, manifest, split):
    return [
        [
            records.decode(record).id
            for record in tf.data.TFRecordDataset(str(directory / s.file)).as_numpy_iterator()
        ]
        for s in manifest.splits[split].shards
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    return directory, write(directory)


def test_every_accepted_row_is_written_once_and_shuffled(corpus):
    directory, manifest = corpus
    for split, rows in ROWS.items():
        shards = ids_per_shard(directory, manifest, split)
        found = [id_ for shard in shards for id_ in shard]
        expected = [f"s{row.number}" for row in rows if row.number % 10 != 4]
        assert sorted(found) == sorted(expected)
        assert found != expected
        assert [len(shard) for shard in shards] == [
            s.num_samples for s in manifest.splits[split].shards
        ]
    shard_files = {s.file for split in manifest.splits.values() for s in split.shards}
    others = {"manifest.json", "conversion.json", "dataset_info.json", "features.json"}
    others |= {"rejected.jsonl", "train.index.safetensors", "val.index.safetensors"}
    assert {path.name for path in directory.iterdir()} == shard_files | others


def test_shards_are_equal_up_to_one_row(tmp_path):
    manifest = write(tmp_path, rows={"train": [Row(10 * n) for n in range(29)]}, num_shards=8)
    assert {s.num_samples for s in manifest.splits["train"].shards} == {3, 4}


def test_counts_add_up_and_rejections_are_listed(corpus):
    directory, manifest = corpus
    assert (manifest.read, manifest.written, manifest.rejected) == (63, 57, 6)
    assert manifest.counts["source"] == {"numbers": 57}
    assert manifest.counts["label"] == {"even": 26}
    assert manifest_lib.load(directory) == manifest
    lines = [json.loads(x) for x in (directory / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [4, 14, 24, 34, 44, 54]
    assert lines[0] == {"reason": "ends in 4", "row": 4, "id": "s4", "path": ""}


def test_shards_match_their_checksums(corpus):
    for split in ROWS:
        manifest_lib.verify(*corpus, split, checksums=True)


@pytest.mark.slow  # two processes import TensorFlow
def test_bytes_do_not_depend_on_workers(corpus, tmp_path):
    write(tmp_path, executor=Local(2))
    assert contents(tmp_path) == contents(corpus[0])


def test_seed_changes_the_order(corpus, tmp_path):
    manifest = write(tmp_path, seed=1)
    assert ids_per_shard(tmp_path, manifest, "val") != ids_per_shard(*corpus, "val")


def test_broken_run_leaves_complete_shards_only_and_continues(tmp_path):
    flag, out = tmp_path / "flag", tmp_path / "out"
    write(tmp_path / "whole", make=FailsWhile(flag))
    flag.touch()
    with pytest.raises(CorpusError, match="No space left"):
        write(out, make=FailsWhile(flag))
    assert not (out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tfrecord")}
    assert 0 < len(kept) < 8
    whole = contents(tmp_path / "whole")
    assert all((out / name).read_bytes() == whole[name] for name in kept)

    flag.unlink()
    write(out, make=FailsWhile(flag))
    assert contents(out) == whole
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}, "written again"


def test_a_shard_truncated_since_is_written_again(tmp_path):
    flag, out = tmp_path / "flag", tmp_path / "out"
    flag.touch()
    with pytest.raises(CorpusError):
        write(out, make=FailsWhile(flag))
    shard = sorted(out.glob("*.tfrecord"))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    flag.unlink()
    write(out, make=FailsWhile(flag))
    for split in ROWS:
        manifest_lib.verify(out, manifest_lib.load(out), split, checksums=True)


def test_unfinished_conversion_of_another_plan_is_refused(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    out = tmp_path / "out"
    with pytest.raises(CorpusError):
        write(out, make=FailsWhile(flag))
    with pytest.raises(CorpusError, match="unfinished conversion of other inputs"):
        write(out)
    assert write(out, overwrite=True).written == 57


def test_complete_corpus_is_found_or_refused_or_replaced(tmp_path):
    first = write(tmp_path)
    (tmp_path / "vocab.txt").write_text("not ours")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write(tmp_path) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(CorpusError, match="another complete corpus"):
        write(tmp_path, seed=1)
    second = write(tmp_path, num_shards=4, overwrite=True)
    assert len(list(tmp_path.glob("*.tfrecord"))) == 8
    assert (tmp_path / "vocab.txt").exists()
    shard = tmp_path / second.splits["train"].shards[0].file
    shard.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"is empty.*--overwrite"):
        write(tmp_path, num_shards=4)


def test_records_of_others_are_not_touched(tmp_path):
    other = tmp_path / "train-00000-of-00001.tfrecord"
    other.write_bytes(b"x")
    with pytest.raises(CorpusError, match="without a manifest"):
        write(tmp_path)
    assert other.read_bytes() == b"x"


def test_directory_in_use_or_not_writable_is_an_error(tmp_path):
    with (
        locks.exclusive(tmp_path),
        pytest.raises(LockedError, match=f"{tmp_path} is in use by process {os.getpid()} on host"),
    ):
        write(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        write(tmp_path / "file" / "corpus")


def test_shard_counts_and_empty_splits_are_checked(tmp_path):
    with pytest.raises(CorpusError, match=r"split 'val' has 13 rows: .* 1 to 13 shards, not 16"):
        write(tmp_path, num_shards=16)
    with pytest.raises(CorpusError, match=r"no split \['tset'\].*found \['train', 'val'\]"):
        write(tmp_path, num_shards={"tset": 1})
    with pytest.raises(CorpusError, match="no rows to convert: no input rows"):
        write(tmp_path, rows={})
    assert not list(tmp_path.iterdir()), "a refused plan leaves something behind"


def test_split_of_rejected_rows_only_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(CorpusError, match=r"every row of split 'val'.*first: ends in 4"):
        write(tmp_path, rows={"train": [Row(1)], "val": [Row(4), Row(14)]}, num_shards=1)
    assert not (tmp_path / "manifest.json").exists()
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2


ERRORS = {
    1: ValueError("the affine is degenerate"),
    3: RuntimeError("not\na number"),
    5: MemoryError(),
    7: np.linalg.LinAlgError("singular"),
    9: FileNotFoundError(errno.ENOENT, "gone", "x.nii"),
    11: RecursionError("deep"),
    13: AssertionError(),
}


def make_or_raise(row):
    if row.number == 15:
        return dataclasses.replace(make_sample(row), captions=("\udcff",))  # not UTF-8
    if row.number in ERRORS:
        raise ERRORS[row.number]
    return make_sample(row)


@pytest.mark.parametrize("threads", [1, 4])
def test_any_exception_of_a_row_rejects_this_row_alone(tmp_path, threads):
    rows = [PlannedRow(Row(n), "train", f"s{n}", n) for n in range(20)]
    conversion = Conversion("numbers", rows, make_or_raise, threads=threads)
    manifest = write_corpus(tmp_path, conversion, num_shards=2)
    assert (manifest.written, manifest.rejected) == (10, 10)
    reasons = {json.loads(x)["reason"] for x in (tmp_path / "rejected.jsonl").open()}
    assert {
        "the affine is degenerate",
        "RuntimeError: not a number",
        "MemoryError",
        "LinAlgError: singular",
        "RecursionError: deep",
        "AssertionError",
    } <= reasons


class NamedRow(Row):
    row, id, image = 7, "scan 7", "scan7.nii"


def test_the_rejection_names_the_row(tmp_path):
    def fail(row):
        if isinstance(row, NamedRow):
            raise KeyError("dim")
        return make_sample(row)

    rows = [PlannedRow(Row(1), "train", "s1", 1), PlannedRow(NamedRow(7), "train", "s7", 7)]
    write_corpus(tmp_path, Conversion("numbers", rows, fail), num_shards=1)
    line = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert line == {"reason": "KeyError: 'dim'", "row": 7, "id": "scan 7", "path": "scan7.nii"}


def test_a_fault_of_the_machine_behind_a_row_ends_the_job(tmp_path):
    def fail(row):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("cannot unpack the volume") from error

    with pytest.raises(CorpusError, match="No space left"):
        write(tmp_path, make=fail)


def test_rows_that_cannot_be_planned_are_rejected(tmp_path):
    rows = [
        PlannedRow(Row(1), "train", "s1", 1),
        PlannedRow(Row(2), "train/a", "s2", 2),
        PlannedRow(Row(3), "train", "s\udce9", 3, "caf\udce9.png"),
        PlannedRow(Row(5), "train", "s5", 5, group=("a", "caf\udce9")),
    ]
    manifest = write_corpus(tmp_path, Conversion("numbers", rows, make_sample), num_shards=1)
    assert (manifest.written, manifest.rejected) == (2, 2)
    lines = [json.loads(x) for x in (tmp_path / "rejected.jsonl").open(encoding="utf-8")]
    assert [line["reason"] for line in lines] == [
        "a split is letters, digits and _, not 'train/a'",
        "the name is not UTF-8: rename the file",
    ]
    assert lines[1]["path"] == "caf\udce9.png"


def test_rows_rejected_before_count_as_read(tmp_path):
    manifest = write(tmp_path, rejected=[Rejection("duplicate id", 99, "s1", "a.jpg")])
    assert (manifest.read, manifest.rejected) == (64, 7)
    assert '"row": 99' in (tmp_path / "rejected.jsonl").read_text().splitlines()[-1]


def test_tfds_reads_the_corpus(corpus):
    import tensorflow_datasets as tfds

    directory, manifest = corpus
    builder = tfds.builder_from_directory(str(directory))
    assert {name: s.num_examples for name, s in builder.info.splits.items()} == {
        "train": 45,
        "val": 12,
    }
    read = list(tfds.as_numpy(builder.as_dataset("train")))
    ids = [example["id"].decode() for example in read]
    assert sorted(ids) == sorted(
        id_ for shard in ids_per_shard(directory, manifest, "train") for id_ in shard
    )
    for example in read:
        number = int(example["id"].decode()[1:])
        np.testing.assert_array_equal(
            example["image"], tf.io.decode_image(image_bytes(number), channels=3)
        )
        assert [c.decode() for c in example["captions"]] == [f"Bild {number} ü", "shared"]
        assert list(example["labels"]) == ([b"even"] if number % 2 == 0 else [])
        assert example["num_original_captions"] == 1


def test_tfds_reads_a_corpus_with_an_empty_shard(tmp_path):
    import tensorflow_datasets as tfds

    manifest = write(tmp_path, rows={"train": [Row(n) for n in (1, 2, 3, 4)]}, num_shards=4)
    assert sorted(s.num_samples for s in manifest.splits["train"].shards) == [0, 1, 1, 1]
    manifest_lib.verify(tmp_path, manifest, "train", checksums=True)
    assert len(list(tfds.builder_from_directory(str(tmp_path)).as_dataset("train"))) == 3
