"""Training end to end: meshes, real kills, signals, bad input, and what is left behind."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.errors import ConfigError, UserError
from unimed_jax import checkpoint, metrics, train

ROOT = Path(__file__).parents[1]


def losses_of(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics.read_metrics(workdir / "metrics.jsonl")}


def write_recipe(path: Path, corpus: Path, **changes: object) -> Path:
    path.write_text(
        "from unimed_jax.testing import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config({str(corpus)!r}, {changes!r})\n"
    )
    return path


def start(recipe: Path, workdir: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "unimed_jax.train", f"--config={recipe}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_row(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Returns as soon as metrics.jsonl holds a row of ``step`` or later."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if path.is_file() and any(s >= step for s in losses_of(workdir)):
            return
        time.sleep(0.01)
    raise AssertionError(f"no row of step {step} within 240 s")


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == status, output
    return output


@pytest.fixture(scope="module")
def finished(phantom_corpus, tmp_path_factory) -> Path:
    """The work directory of a finished run of 30 steps, saved every 4."""
    from unimed_jax.testing import tiny_config

    workdir = tmp_path_factory.mktemp("finished")
    changes = {"num_train_steps": 30, "checkpoint__every_steps": 4, "checkpoint__keep": 2}
    train.train(tiny_config(str(phantom_corpus), changes), workdir)
    return workdir


@pytest.mark.slow
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
def test_killed_twice_the_losses_go_on_bit_for_bit(finished, phantom_corpus, tmp_path):
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
def test_sigterm_saves_says_so_and_exits_with_zero(finished, phantom_corpus, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.py", phantom_corpus, num_train_steps=30, checkpoint__every_steps=1000
    )
    workdir = tmp_path / "run"
    process = start(recipe, workdir)
    wait_for_row(process, workdir, 5)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    saved = int(re.search(r"stopped by SIGTERM: step (\d+) is saved", output)[1])
    assert checkpoint.find(workdir)[1] == saved
    finish(start(recipe, workdir))
    assert losses_of(workdir) == losses_of(finished)


@pytest.mark.slow
def test_the_loss_curve_is_the_same_on_every_mesh(tiny_config, tmp_path):
    curves = {}
    for shape in ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)):
        mesh = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
        workdir = tmp_path / "x".join(map(str, shape))
        config = tiny_config(num_train_steps=10, evals={}, checkpoint__every_steps=1000, **mesh)
        train.train(config, workdir, jax.devices()[: math.prod(shape)])
        curves[shape] = losses_of(workdir)
    reference = curves.pop((1, 1, 1))
    assert len(reference) == 10
    for shape, curve in curves.items():
        for step, loss in curve.items():
            assert loss == pytest.approx(reference[step], rel=2e-5), (shape, step)


@pytest.mark.slow
def test_a_run_moves_to_another_mesh_and_goes_on(tiny_config, finished, tmp_path):
    workdir = tmp_path / "run"
    shared = {"num_train_steps": 12, "evals": {}, "checkpoint__every_steps": 5}
    whole = tmp_path / "whole"
    train.train(tiny_config(**shared), whole)
    config = tiny_config(**shared, mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    train.train(config, workdir)
    for step in (10, 12):  # as if it had been killed after step 5
        (workdir / "checkpoints" / str(step)).rename(tmp_path / f"away{step}")
    train.train(tiny_config(**shared, mesh__data=1, mesh__fsdp=8), workdir)
    resumed, reference = losses_of(workdir), losses_of(whole)
    assert resumed.keys() == reference.keys()
    for step, loss in resumed.items():
        assert loss == pytest.approx(reference[step], rel=2e-5)


@pytest.mark.slow
def test_two_processes_train_like_one(tiny_config, phantom_corpus, tmp_path):
    changes = {"num_train_steps": 5, "checkpoint__every_steps": 5}
    train.train(tiny_config(**changes), tmp_path / "one")
    recipe = write_recipe(tmp_path / "recipe.py", phantom_corpus, **changes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            recipe,
            tmp_path / "two",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
            XLA_FLAGS="--xla_force_host_platform_device_count=4",
        )
        for index in range(2)
    ]
    for process in processes:
        finish(process)
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=2e-5)
    a, b = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two"))
    assert a["zero_shot/modality/balanced_accuracy"] == pytest.approx(
        b["zero_shot/modality/balanced_accuracy"], abs=0.05
    )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_samples(tiny_config, tmp_path):
    config = tiny_config(
        num_train_steps=20,
        evals={},
        checkpoint__every_steps=2,
        optimizer__learning_rate=1e20,
        optimizer__warmup_steps=0,
    )
    with pytest.raises(
        UserError, match=r"step \d+: loss .*last good checkpoint.*phantom-"
    ) as error:
        train.train(config, tmp_path)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    assert all(s < step for s in losses_of(tmp_path))
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert all(s < step for s in saved)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_accumulated_gradients_are_the_mean_over_microbatches(tiny_config):
    from unimed_jax import optim, tasks, train_step

    config = tiny_config(optimizer__accumulate_steps=2, model__text__dropout=0.0)
    task = tasks.create(config, "")
    optimizer = optim.make_optimizer(config.optimizer, 10)
    state = train_step.init_state(task, optimizer, 0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
        "text": rng.integers(5, 200, (16, 24), np.int32),
    }
    _, got = jax.jit(train_step.make_train_step(task, optimizer, config, 10))(state, batch)
    key = jax.random.key(0)
    halves = [{k: v[i::2] for k, v in batch.items()} for i in range(2)]
    grad = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b, key)[0]))
    values, grads = zip(*(grad(state["params"], half) for half in halves), strict=True)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(mean)))
    assert float(got["loss"]) == pytest.approx(float(sum(values)) / 2, rel=1e-5)
    assert float(got["grad_norm"]) == pytest.approx(norm, rel=1e-4)


# --- what the user may get wrong
# ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size=12.*multiple of .* 8"),
        ({"mesh__data": 3}, "mesh.*8 devices.*product is 8"),
        ({"num_epochs": 1.0}, "num_train_steps.*exactly one"),
        ({"optimizer__schedule": "linear"}, "optimizer.schedule='linear'.*'cosine', 'constant'"),
        ({"loss__kind": "hinge"}, "loss.kind='hinge'.*'softmax', 'sigmoid'"),
        ({"loss__kind": "sigmoid"}, "model.logit_bias_init"),
        ({"model__visual__patch_size": 7}, "image_size 32 .*patch_size 7"),
        ({"model__text__vocab_size": 100}, "vocab_size=100 contradicts .* 296"),
        ({"data__num_streams": 8}, "num_streams=8 does not divide the 4 shards"),
        ({"data__root": "/nonexistent/corpus"}, "/nonexistent/corpus"),
        ({"data__root": ""}, "data.root is empty"),
        ({"data__sources__phantoms__caption_rule": "random"}, "caption rule 'random'"),
        ({"data__sources__phantoms__split": "training"}, "training.*train"),
        ({"tokenizer": "/nonexistent/vocab"}, "/nonexistent/vocab"),
        ({"evals__zero_shot__prompts": "phantom"}, "phantom.*phantoms"),
        ({"evals__zero_shot__kind": "linear"}, "zero_shot.kind='linear'"),
    ],
)
def test_an_impossible_config_is_named_before_anything_is_compiled(
    tiny_config, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        train.train(tiny_config(**changes), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_workdir_of_another_config_is_refused(tiny_config, tmp_path):
    train.claim_workdir(tiny_config(batch_size=8), tmp_path)
    train.claim_workdir(tiny_config(), tmp_path)  # nothing was trained yet
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    train.claim_workdir(tiny_config(mesh__data=4, log_every_steps=7), tmp_path)  # no matter
    with pytest.raises(UserError, match=r"batch_size: 16 -> 32.*another --workdir"):
        train.claim_workdir(tiny_config(batch_size=32), tmp_path)


def test_an_unwritable_workdir_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        train.claim_workdir(tiny_config(), tmp_path / "file" / "run")


@pytest.mark.slow
def test_another_corpus_under_a_resumed_run_is_refused(tiny_config, tmp_path):
    from input_pipeline import phantoms

    shared = {"evals": {}, "num_train_steps": 2, "checkpoint__every_steps": 1}
    train.train(tiny_config(**shared), tmp_path / "run")
    phantoms.write(
        tmp_path / "other", num_train_per_class=6, num_val_per_class=2, image_size=40, seed=1
    )
    moved = tiny_config(**shared, data__root=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"fingerprint.*accept_new_order"):
        train.train(moved, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.optimizer.learnin_rate=1",
            "error: unknown key config.optimizer.learnin_rate; the",
        ),
        ("--config.batch_size=many", "error: flag --config.batch_size=many"),
        ("--config.batch_size=12", "error: config.batch_size=12 is not possible"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line(phantom_corpus, tmp_path, argument, message):
    recipe = write_recipe(tmp_path / "recipe.py", phantom_corpus)
    process = start(recipe, tmp_path / "run", argument)
    output = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, None)
    assert message in output
    assert "Traceback" not in output


def test_find_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.find(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.find(tmp_path)
