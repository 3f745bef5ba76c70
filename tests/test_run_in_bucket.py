"""A run whose data and work directory are in a bucket: the losses of a local one, after a kill."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import ROOT, WHOLE_RUN, finish, losses_of, start, write_recipe

import unimed_jax
from input_pipeline.io.errors import UserError
from input_pipeline.io.files import local_copy, to_path
from unimed_jax import train
from unimed_jax.exporting import open_clip_directory
from unimed_jax.monitoring import metrics
from unimed_jax.testing import tiny_config
from unimed_jax.weights.checkpoint import CheckpointReader
from unimed_jax.weights.loader import open_weights

RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def run(storage, phantom_corpus, tmp_path_factory):
    """The output of the run in the bucket, killed in the uploads after its first checkpoint, and
    started again."""
    storage.put_folder(phantom_corpus, "corpus")
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.py"
    write_recipe(recipe, "gs://bucket/corpus", **WHOLE_RUN)
    storage.held.clear()
    storage.hold = lambda: "run/checkpoints/5/commit_success.txt" in storage.objects
    process = start(recipe, RUN)
    assert storage.held.wait(600), process.communicate()[0]
    process.kill()
    process.wait()
    storage.hold = None
    assert b'"step": 5,' in storage.objects["run/metrics.jsonl"]
    assert "run/checkpoints/10/commit_success.txt" not in storage.objects
    return finish(start(recipe, RUN))


@pytest.mark.slow
def test_killed_and_resumed_in_a_bucket_the_losses_are_those_of_a_local_run(
    run, finished_run, storage
):
    assert ", from step 5" in run
    assert losses_of(to_path(RUN)) == losses_of(finished_run)  # equal floats, not close ones
    results = json.loads(storage.objects["run/results.json"])
    assert results == json.loads((finished_run / "results.json").read_text())
    assert b"modality" in storage.objects["run/report.html"]
    goodput = json.loads(storage.objects["run/goodput.json"])
    assert (goodput["starts"], sum(goodput["shares"].values())) == (2, pytest.approx(1.0))
    assert CheckpointReader(RUN).step == 40
    names = {name.split("/")[0] for name in storage.below("run/checkpoints/") if "/" in name}
    assert names - {""} == {"35", "40"}
    events = sorted(storage.below("run/tensorboard/"))
    assert len(events) == 2  # of the killed process, and of the next
    files = [f"gs://bucket/run/tensorboard/{name}" for name in events]
    found = [tf.compat.v1.Event.FromString(x.numpy()).step for x in tf.data.TFRecordDataset(files)]
    assert found[-1] == 40
    with pytest.raises(UserError, match=r"^gs://bucket/run belongs to another config"):
        train.claim_workdir(tiny_config("gs://bucket/corpus", {"seed": 1}), to_path(RUN))


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_is_evaluated_into_a_bucket(run, storage):
    command = [sys.executable, "-m", "unimed_jax.evaluate", f"--checkpoint={RUN}"]
    subprocess.run([*command, "--out=gs://bucket/eval"], cwd=ROOT, check=True, timeout=600)
    ours = json.loads(storage.objects["eval/results.json"])
    theirs = json.loads(storage.objects["run/results.json"])
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key
    assert b"modality" in storage.objects["eval/report.html"]


@pytest.mark.slow
def test_a_model_is_loaded_from_a_bucket(run, finished_run, storage, tmp_path):
    texts = ["a chest X-ray", "an MRI slice"]
    ours = unimed_jax.load(RUN)
    np.testing.assert_array_equal(
        ours.encode_text(texts), unimed_jax.load(finished_run).encode_text(texts)
    )
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    encoded = tf.io.encode_png(picture).numpy()
    storage.put("a.png", encoded)
    np.testing.assert_array_equal(
        ours.encode_image("gs://bucket/a.png"), ours.encode_image(picture)
    )
    with pytest.raises(UserError, match=r"cannot read gs://bucket/none.png: No such file"):
        ours.encode_image("gs://bucket/none.png")


@pytest.mark.slow
def test_weights_in_a_bucket_are_imported_into_a_bucket(run, storage, tmp_path):
    texts = ["a chest X-ray"]
    expected = unimed_jax.load(RUN).encode_text(texts)
    tool = ROOT / "tools" / "import_weights.py"
    spec = importlib.util.spec_from_file_location("import_weights", tool)
    import_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(import_weights)
    assert import_weights.main([RUN, "--out=gs://bucket/imported"]) == 0
    found = unimed_jax.load("gs://bucket/imported").encode_text(texts)
    np.testing.assert_array_equal(found, expected)
    # as files of another library, which are opened by name
    pretrained = open_weights(RUN)
    config = pretrained.model_config()
    tokenizer = local_copy(to_path(pretrained.tokenizer))
    open_clip_directory.write(tmp_path, pretrained, config, tokenizer, "any")
    storage.put_folder(tmp_path, "open_clip")
    found = unimed_jax.load("gs://bucket/open_clip").encode_text(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_an_incomplete_checkpoint_in_a_bucket_is_skipped(run, storage):
    for name, content in storage.below("run/checkpoints/40/").items():
        if name != "commit_success.txt":  # Orbax writes it last
            storage.put(f"torn/checkpoints/45/{name}", content)
    for name, content in storage.below("run/checkpoints/35/").items():
        storage.put(f"torn/checkpoints/35/{name}", content)
    assert CheckpointReader("gs://bucket/torn").step == 35
    with pytest.raises(UserError, match=r"no checkpoint in gs://bucket/nothing"):
        CheckpointReader("gs://bucket/nothing")


def test_metrics_in_a_bucket_outlive_the_process_at_every_row(storage):
    writer = metrics.MetricWriter("gs://bucket/metrics")
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0 / step})
        found = metrics.read_metrics("gs://bucket/metrics/metrics.jsonl")
        assert [row["step"] for row in found] == list(range(1, step + 1))
        (events,) = storage.below("metrics/tensorboard/")
        dataset = tf.data.TFRecordDataset(f"gs://bucket/metrics/tensorboard/{events}")
        assert len(list(dataset)) == 2 + step
    # never closed, as if it were killed here
    with metrics.MetricWriter("gs://bucket/metrics", resume_step=2) as writer:
        writer.write(3, {"loss": 5.0})
    losses = losses_of(to_path("gs://bucket/metrics"))
    assert losses == {1: 1.0, 2: 0.5, 3: 5.0}
