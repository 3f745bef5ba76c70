"""A whole run and what it leaves; the same run killed, stopped and started again."""

import json
import re
import signal
import time

import numpy as np
import pytest
from helpers.runs import WHOLE_RUN, finish, losses_of, start, wait_for_row, write_recipe

from unimed_jax.monitoring import goodput, metrics
from unimed_jax.weights.checkpoint import CheckpointReader


def test_a_run_leaves_what_its_users_rely_on(finished_run):
    rows = metrics.read_metrics(finished_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    wanted = {"loss", "images_per_sec", "data_wait_fraction", "grad_norm", "logit_scale"}
    assert all(wanted <= row.keys() for row in rows)
    stages = ("data_wait_reading", "data_wait_decoding", "data_wait_placing")
    for row in rows:
        assert sum(row[stage] for stage in stages) == pytest.approx(row["data_wait_fraction"])
    assert np.mean([r["loss"] for r in rows[-5:]]) < np.mean([r["loss"] for r in rows[:5]])

    results = json.loads((finished_run / "results.json").read_text())
    assert 0.0 <= results["zero_shot/modality/balanced_accuracy"] <= 1.0
    assert results["zero_shot/modality/num_samples"] == 34
    assert json.loads((finished_run / "config.json").read_text())["batch_size"] == 16
    report = (finished_run / "report.html").read_text()
    assert "modality" in report
    found = json.loads((finished_run / "goodput.json").read_text())
    assert (found["starts"], found["repeated_steps"]) == (1, 0)
    assert found["not_running_seconds"] < 0.1
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    spent = ("steps", "start_up", "compilation", "evaluation", "checkpoints")
    assert all(found["shares"][name] > 0 for name in spent)
    assert sum(found["shares"][stage] for stage in stages) > 0
    assert f"goodput {100 * found['goodput']:.1f} % of" in report
    assert list((finished_run / "tensorboard").iterdir())
    assert sorted(int(p.name) for p in (finished_run / "checkpoints").iterdir()) == [35, 40]


@pytest.mark.slow
def test_killed_and_then_stopped_the_losses_continue_bit_for_bit(
    finished_run, phantom_corpus, tmp_path
):
    recipe = write_recipe(tmp_path / "recipe.py", phantom_corpus, **WHOLE_RUN)
    workdir = tmp_path / "run"
    began = time.time()
    process = start(recipe, workdir)
    wait_for_row(process, workdir, 12)  # step 10 is being saved, so step 5 has been
    process.kill()
    process.wait()
    done = goodput.read_rows(workdir / goodput.FILE)[-1]["step"]

    process = start(recipe, workdir)  # 102 samples in batches of 16: epochs end in steps 7, 13, ...
    wait_for_row(process, workdir, 26)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    resumed = int(re.search(r"from step (\d+)", output)[1])
    assert resumed >= 5
    saved = int(re.search(r"stopped by SIGTERM: step (\d+) is saved", output)[1])
    assert CheckpointReader(workdir).step == saved >= 26
    assert not (workdir / "results.json").exists()

    assert re.search(r"^goodput [\d.]+ % of .*; 2 starts, .*; in %: start-up", output, re.MULTILINE)

    output = finish(start(recipe, workdir))
    wall = time.time() - began
    assert f"from step {saved}" in output
    assert losses_of(workdir) == losses_of(finished_run)  # equal floats, not close ones

    # where the time went, over the three processes
    found = json.loads((workdir / "goodput.json").read_text())
    assert (found["starts"], found["repeated_steps"]) == (3, done - resumed)
    assert found["shares"]["lost_steps"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    # less the end of the last process, and what the killed one did after its last row
    recorded = found["running_seconds"] + found["not_running_seconds"]
    assert 0.8 * wall < recorded < wall + 1
    assert found["running_seconds"] > 0.7 * wall
    assert output.splitlines()[-1].startswith(f"goodput {100 * found['goodput']:.1f} % of")
