"""The stream of batches: same step, same batch; bad records; damaged files."""

import dataclasses
import shutil
import time
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from helpers.corpora import write_shards

from input_pipeline import (
    dataset,
    device_prefetch,
    manifest,
    record_index,
    records,
    transforms,
)
from input_pipeline.io.errors import CorpusError, UserError
from input_pipeline.stage_clock import StageClock

BATCH, BLOCK = 8, 5


def decode(serialized, seeds, sources):
    samples = records.parse(serialized)
    images = transforms.random_resized_crops(samples["image"], 16, seeds)
    return {"id": samples["id"], "image": images, "source": sources}


def spec_of(directories, weights=None, seed=3):
    weights = weights or [None] * len(directories)
    sources = [
        dataset.MixtureSource(f"s{i}", str(d), "train", w)
        for i, (d, w) in enumerate(zip(directories, weights, strict=True))
    ]
    manifests = dataset.open_sources(sources)
    return dataset.StreamSpec(sources, manifests, seed, batch_size=BATCH, block_size=BLOCK)


def read(directories, start, stop, *, threads=2, weights=None, seed=3, **options):
    spec = spec_of(directories, weights, seed)
    return [*dataset.train_batches(spec, decode, start, stop, num_threads=threads, **options)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def corpus(phantom_corpus):
    return phantom_corpus


@pytest.fixture(scope="module")
def three_epochs(corpus):
    """102 records in batches of 8: 40 steps end in the fourth epoch."""
    return read([corpus], 0, 40)


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(corpus, three_epochs):
    assert_same(read([corpus], 0, 12, threads=1), three_epochs[:12])
    assert_same(read([corpus], 0, 12, threads=5), three_epochs[:12])


def test_another_seed_gives_another_order(corpus, three_epochs):
    other = read([corpus], 0, 1, seed=4)
    assert list(other[0]["id"]) != list(three_epochs[0]["id"])


# 102 / 8 = 12.75: steps 12 and 13 lie on both sides of the first epoch's end, 25 and 26 of the
# second's
@pytest.mark.parametrize("step", [1, 3, 7, 12, 13, 25, 26, 39])
def test_resuming_at_any_step_continues_the_stream(corpus, three_epochs, step):
    assert_same(read([corpus], step, 40), three_epochs[step:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(corpus, three_epochs, hosts):
    share = BATCH // hosts
    parts = [
        read([corpus], 0, 15, rows=range(host * share, (host + 1) * share)) for host in range(hosts)
    ]
    joined = [
        {key: np.concatenate([rows[key] for rows in batches]) for key in batches[0]}
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, three_epochs[:15])


def test_every_record_is_drawn_equally_often(corpus, three_epochs):
    draws = Counter(sample_id for batch in three_epochs for sample_id in batch["id"])
    assert len(draws) == 102
    # 320 draws of 102 records; the blocks that the rows hold at the end are not used up
    assert set(draws.values()) <= {3, 4}


def test_crops_differ_between_draws_of_one_image(three_epochs):
    images = {}
    for batch in three_epochs:
        for name, image in zip(batch["id"], batch["image"], strict=True):
            images.setdefault(name, []).append(image.tobytes())
    again = [group for group in images.values() if len(group) > 1]
    assert again
    # at 40 px two of three visits may well round to the same crop, but seldom all
    assert np.mean([len(set(group)) > 1 for group in again]) > 0.8


@pytest.mark.parametrize("step", [0, 9, 14])
def test_a_mixture_keeps_its_weights_and_resumes(corpus, tmp_path, step):
    second = tmp_path / "second"
    shutil.copytree(corpus, second)
    whole = read([corpus, second], 0, 30, weights=[3.0, 1.0])
    assert abs(np.mean([b["source"] for b in whole]) - 0.25) < 0.1
    assert_same(read([corpus, second], step, 30, weights=[3.0, 1.0]), whole[step:])


def _damage(directory, corpus, index):
    """A copy of the corpus in which the image of one record does not decode; returns its id."""
    shutil.copytree(corpus, directory)
    path = directory / manifest.load(corpus).splits["train"].shards[0].file
    samples = [records.decode(r) for r in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, s in enumerate(samples):
            image = s.image[: len(s.image) // 8] if i == index else s.image
            fields = {**s.__dict__, "image": image}
            writer.write(records.encode(records.Sample(**fields)))
    content = manifest.load(directory)
    train = content.splits["train"]
    sums = {"num_bytes": path.stat().st_size, "sha256": manifest.file_sha256(path)}
    shards = (dataclasses.replace(train.shards[0], **sums), *train.shards[1:])
    splits = {**content.splits, "train": dataclasses.replace(train, shards=shards)}
    manifest.save(directory, dataclasses.replace(content, splits=splits))
    return samples[index].id


def test_the_fast_way_gives_what_the_tolerant_one_does(corpus, three_epochs, tmp_path):
    assert_same(read([corpus], 0, 40, tolerant=True), three_epochs)
    _damage(tmp_path / "damaged", corpus, 4)
    tolerant = read([tmp_path / "damaged"], 2, 60, tolerant=True)
    made, numpy_batches = [], dataset._train_batches

    def recording(spec, decode, start, stop, rows, num_threads, tolerant, reading):
        made.append((start, stop, tolerant))
        return numpy_batches(spec, decode, start, stop, rows, num_threads, tolerant, reading)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "_train_batches", recording)
        fast = read([tmp_path / "damaged"], 2, 60)
    assert_same(fast, tolerant)
    bad = [2 + k for k, batch in enumerate(tolerant) if not batch["valid"].all()]
    assert len(bad) >= dataset._FAILURES  # once an epoch
    again = [(start, stop) for start, stop, tolerant in made if tolerant]
    few = bad[: dataset._FAILURES]
    assert again == [*((k, k + 1) for k in few), (few[-1] + 1, 60)]


def test_a_bad_image_keeps_its_place_and_is_replaced_or_named(corpus, tmp_path):
    bad_id = _damage(tmp_path / "damaged", corpus, 4)
    good, bad = read([corpus], 0, 13), read([tmp_path / "damaged"], 0, 13)
    place = [(k, row) for k, b in enumerate(bad) for row in np.flatnonzero(~b["valid"])]
    assert place
    for k, row in place:
        assert good[k]["id"][row].decode() == bad[k]["id"][row].decode() == bad_id
    replaced = list(dataset.replace_bad_rows(iter(bad), "replace"))
    for k, batch in enumerate(replaced):
        assert "valid" not in batch
        for row in range(BATCH):
            if (k, row) in place:
                neighbour = row ^ 1  # the other row of its pair
                np.testing.assert_array_equal(batch["image"][row], good[k]["image"][neighbour])
            else:
                np.testing.assert_array_equal(batch["image"][row], good[k]["image"][row])
    with pytest.raises(CorpusError, match=bad_id):
        list(dataset.replace_bad_rows(iter(bad), "error"))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_shard_is_named_before_anything_is_read(corpus, tmp_path, damage):
    shutil.copytree(corpus, tmp_path / "copy")
    shard = tmp_path / "copy" / manifest.load(corpus).splits["train"].shards[2].file
    content = shard.read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(CorpusError, match=shard.name):
        read([tmp_path / "copy"], 0, 1)


def test_a_shard_altered_under_a_running_job_is_named(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    shard = tmp_path / "copy" / manifest.load(corpus).splits["train"].shards[1].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(CorpusError, match=shard.name):
        read([tmp_path / "copy"], 0, 13)


def test_a_group_of_bad_rows_is_replaced_alike_on_any_number_of_hosts():
    valid = np.array([1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1], bool)
    ids = np.array([b"%d" % row for row in range(16)], object)
    whole = next(dataset.replace_bad_rows(iter([{"id": ids, "valid": valid}]), "replace"))["id"]
    halves = [
        next(dataset.replace_bad_rows(iter([{"id": i, "valid": v}]), "replace", first))["id"]
        for i, v, first in ((ids[:8], valid[:8], 0), (ids[8:], valid[8:], 8))
    ]
    assert list(whole) == [*np.concatenate(halves)]
    assert [int(row) for row in whole] == [0, 0, 0, 0, 4, 5, 6, 6, 11, 11, 11, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("batch_size", [8, 16, 34, 40])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_meets_every_record_once(corpus, batch_size, hosts):
    content = manifest.load(corpus)
    parts = []
    for host in range(hosts):
        batches = dataset.evaluation_batches(
            str(corpus), content, "val", decode, batch_size=batch_size, host=host, num_hosts=hosts
        )
        parts.append(list(batches))
    assert len({len(p) for p in parts}) == 1
    ids, valid = [], []
    for batches in zip(*parts, strict=True):
        ids += [i for b in batches for i in b["id"]]
        valid += [v for b in batches for v in b["valid"]]
    files = [str(corpus / s.file) for s in content.splits["val"].shards]
    expected = [records.decode(r).id for r in tf.data.TFRecordDataset(files).as_numpy_iterator()]
    assert [i.decode() for i, v in zip(ids, valid, strict=True) if v] == expected
    assert len(ids) % batch_size == 0


@pytest.mark.parametrize("slow", ["reading", "decoding"])
def test_what_batches_wait_for_is_told_apart(corpus, monkeypatch, slow):
    """Every block takes 0.1 s longer to read, or every image 0.05 s to decode."""
    read_block = record_index.RecordIndex.read

    def read_slowly(*arguments):
        time.sleep(0.1)
        return read_block(*arguments)

    def decode_slowly(serialized, seeds, sources):
        features = decode(serialized, seeds, sources)
        seconds = 0.05 * len(serialized)
        wait = tf.numpy_function(lambda: time.sleep(seconds), [], [], stateful=True)
        with tf.control_dependencies([wait]):
            return {key: tf.identity(value) for key, value in features.items()}

    if slow == "reading":
        monkeypatch.setattr(record_index.RecordIndex, "read", read_slowly)
    stages = StageClock()
    batches = dataset.train_batches(
        spec_of([corpus]),
        decode if slow == "reading" else decode_slowly,
        0,
        25,
        num_threads=4,
        reading=stages.reading,
    )
    stream = device_prefetch.prefetch(batches, stages=stages)
    next(stream)
    before = stages.seconds()
    assert len([*stream]) == 24
    spent = {stage: seconds - before[stage] for stage, seconds in stages.seconds().items()}
    assert spent[slow] > 0.6 * sum(spent.values()) > 0.5


def test_a_record_of_another_layout_is_refused(tmp_path):
    write_shards(tmp_path / "corpus", [[b"no Example"] * 20])
    with pytest.raises(CorpusError, match="a record cannot be parsed"):
        read([tmp_path / "corpus"], 0, 2)


def test_a_bucket_that_fails_is_the_error_of_the_run(storage, corpus):
    storage.put_folder(corpus, "corpus")
    sources = [dataset.MixtureSource("a", "gs://bucket/corpus", "train", None)]
    spec = dataset.StreamSpec(sources, dataset.open_sources(sources), 3, BATCH, BLOCK)
    batches = dataset.train_batches(spec, decode, 0, 100)
    assert len(next(batches)["id"]) == BATCH
    storage.objects.clear()
    with pytest.raises(UserError, match=r"cannot read shard gs://bucket/corpus/train-\d+"):
        list(batches)
