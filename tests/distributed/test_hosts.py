"""A job of two processes on uneven shards, really killed and preempted."""

import dataclasses
import json
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import jax
import pytest
import tensorflow as tf
from helpers.runs import (
    finish,
    job_environment,
    losses_of,
    start,
    wait_for_row,
    write_recipe,
)

from input_pipeline import dataset, manifest
from input_pipeline.conversion.phantom_corpus import write_phantoms
from unimed_jax import train
from unimed_jax.distributed.failure_detector import RESTART_STATUS
from unimed_jax.testing import tiny_config
from unimed_jax.weights.checkpoint import CheckpointReader

SHARE = (3, 60, 30, 9)  # records of each shard
CHANGES = {
    "num_train_steps": 60,
    "checkpoint__every_steps": 20,
    "checkpoint__keep": 2,
    "model__visual__layers": 1,
    "model__text__layers": 1,
}


@pytest.fixture(scope="module")
def uneven_corpus(tmp_path_factory) -> Path:
    """The phantoms of ``phantom_corpus``, in shards of very different sizes."""
    directory = tmp_path_factory.mktemp("uneven")
    write_phantoms(directory, num_train_per_class=6, num_val_per_class=2, image_size=40)
    found = manifest.load(directory)
    paths = [str(directory / shard.file) for shard in found.splits["train"].shards]
    records = iter(list(tf.data.TFRecordDataset(paths).as_numpy_iterator()))
    shards = []
    for shard, count in zip(found.splits["train"].shards, SHARE, strict=True):
        path = directory / shard.file
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(count):
                writer.write(next(records))
        size, sha256 = path.stat().st_size, manifest.file_sha256(path)
        shards.append(dataclasses.replace(shard, num_samples=count, num_bytes=size, sha256=sha256))
    split = dataclasses.replace(found.splits["train"], shards=tuple(shards))
    manifest.save(directory, dataclasses.replace(found, splits={**found.splits, "train": split}))
    return directory


def test_hosts_of_uneven_data_draw_every_record_equally_often(uneven_corpus):
    sources = [dataset.MixtureSource("phantoms", str(uneven_corpus), "train", None)]
    manifests = dataset.open_sources(sources)
    spec = dataset.StreamSpec(sources, manifests, seed=0, batch_size=16, block_size=8)

    def decode(serialized, seeds, sources):
        del seeds, sources
        return tf.io.parse_example(serialized, {"id": tf.io.FixedLenFeature((), tf.string)})

    draws = Counter()
    for rows in (range(8), range(8, 16)):
        batches = [*dataset.train_batches(spec, decode, 0, 40, rows=rows)]
        assert [len(batch["id"]) for batch in batches] == [8] * 40
        draws.update(sample_id for batch in batches for sample_id in batch["id"])
    # 640 draws of 102 records
    assert len(draws) == 102
    assert set(draws.values()) <= {5, 6, 7}


@pytest.mark.slow
def test_killed_and_preempted_two_processes_train_like_one(uneven_corpus, tmp_path):
    train.train(tiny_config(str(uneven_corpus), CHANGES), tmp_path / "one", jax.devices()[:2])
    recipe, workdir = write_recipe(tmp_path / "r.py", uneven_corpus, **CHANGES), tmp_path / "two"

    def start_both():
        return [start(recipe, workdir, **environment) for environment in job_environment(2)]

    # kill process 0, which serves the others: they name it and exit. test_failure_detector.py
    # kills others.
    processes = start_both()
    wait_for_row(processes[0], workdir, 22)
    processes[0].kill()
    killed = time.monotonic()
    output = finish(processes[1], RESTART_STATUS)
    assert time.monotonic() - killed < 60
    said = f"error: process 0 of 2 (host {socket.gethostname()}) is lost: "
    assert output.splitlines()[-1].startswith(said)
    assert "Traceback" not in output
    processes[0].communicate()
    assert max(losses_of(workdir)) < 60

    # one of them receives SIGTERM: both save the same step and exit normally
    processes = start_both()
    wait_for_row(processes[0], workdir, 42)
    processes[1].send_signal(signal.SIGTERM)
    output = finish(processes[0])
    finish(processes[1])
    saved = int(re.search(r"stopped by a signal .*: step (\d+) is saved", output)[1])
    assert CheckpointReader(workdir).step == saved > 40

    outputs = [finish(process) for process in start_both()]
    assert f"from step {saved}" in outputs[0]
    one, two = losses_of(tmp_path / "one"), losses_of(workdir)
    assert list(two) == list(one) == list(range(1, 61))
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-3 if step > 10 else 2e-5), step
    a, b = (json.loads((d / "results.json").read_text()) for d in (tmp_path / "one", workdir))
    assert a.keys() == b.keys()
