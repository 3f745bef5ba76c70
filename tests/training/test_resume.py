"""A whole run and what it leaves; the same run killed, stopped and started again."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import ROOT, finish, losses_of, start, wait_for_row, write_recipe

from unimed_jax.monitoring import metrics
from unimed_jax.weights.checkpoint import CheckpointReader


@pytest.fixture(scope="module")
def finished(phantom_corpus, tmp_path_factory) -> Path:
    """The work directory of a finished run of 30 steps on one device, saved every 4.

    It has a process of its own, as the interrupted runs do: bits depend on the number of devices
    that a process has.
    """
    workdir = tmp_path_factory.mktemp("finished")
    changes = {"num_train_steps": 30, "checkpoint__every_steps": 4, "checkpoint__keep": 2}
    recipe = write_recipe(workdir.with_suffix(".py"), phantom_corpus, **changes)
    finish(start(recipe, workdir))
    return workdir


def test_a_run_leaves_what_its_users_rely_on(finished):
    rows = metrics.read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    wanted = {"loss", "images_per_sec", "data_wait_fraction", "grad_norm", "logit_scale"}
    assert all(wanted <= row.keys() for row in rows)
    assert np.mean([r["loss"] for r in rows[-5:]]) < np.mean([r["loss"] for r in rows[:5]])

    results = json.loads((finished / "results.json").read_text())
    assert 0.0 <= results["zero_shot/modality/balanced_accuracy"] <= 1.0
    assert results["zero_shot/modality/num_samples"] == 34
    assert json.loads((finished / "config.json").read_text())["batch_size"] == 16
    assert "modality" in (finished / "report.html").read_text()
    assert list((finished / "tensorboard").iterdir())
    assert sorted(int(p.name) for p in (finished / "checkpoints").iterdir()) == [28, 30]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_without_its_config(finished, tmp_path):
    command = [sys.executable, "-m", "unimed_jax.evaluate", f"--checkpoint={finished}"]
    subprocess.run([*command, f"--out={tmp_path}"], cwd=ROOT, check=True, timeout=300)
    ours = json.loads((tmp_path / "results.json").read_text())
    theirs = json.loads((finished / "results.json").read_text())
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.slow
def test_after_two_kills_the_losses_continue_bit_for_bit(finished, phantom_corpus, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.py",
        phantom_corpus,
        num_train_steps=30,
        checkpoint__every_steps=4,
        checkpoint__keep=2,
    )
    workdir = tmp_path / "run"
    for step in (6, 17):  # 102 samples in batches of 16: the first epoch ends in step 7
        process = start(recipe, workdir)
        wait_for_row(process, workdir, step)
        process.kill()
        process.wait()
        assert not (workdir / "results.json").exists()
    output = finish(start(recipe, workdir))
    assert int(re.search(r"from step (\d+)", output)[1]) >= 12
    assert losses_of(workdir) == losses_of(finished)  # equal floats, not close ones


@pytest.mark.slow
def test_sigterm_saves_reports_it_and_exits_with_zero(finished, phantom_corpus, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.py", phantom_corpus, num_train_steps=30, checkpoint__every_steps=1000
    )
    workdir = tmp_path / "run"
    process = start(recipe, workdir)
    wait_for_row(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    saved = int(re.search(r"stopped by SIGTERM: step (\d+) is saved", output)[1])
    assert CheckpointReader(workdir).step == saved
    finish(start(recipe, workdir))
    assert losses_of(workdir) == losses_of(finished)
