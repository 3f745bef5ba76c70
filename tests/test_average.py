"""`unimed-jax average`: what it writes, what it records, and what it refuses."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.runs import ROOT, xla_flags

import unimed_jax
from unimed_jax import average, tasks
from unimed_jax.distributed import sharding
from unimed_jax.evals.failures import Failures
from unimed_jax.evals.model_under_test import open_model
from unimed_jax.evals.results import evaluate, named_metrics
from unimed_jax.exporting import open_clip_export
from unimed_jax.training.train_step import TrainStep, initial_state
from unimed_jax.weights import averaging
from unimed_jax.weights.checkpoint import CheckpointReader

METRIC, MODALITY = "zero_shot/*/balanced_accuracy", "zero_shot/modality/balanced_accuracy"


def mesh_of(num_devices: int) -> jax.sharding.Mesh:
    shape = {"data": num_devices, "fsdp": 1, "tensor": 1}
    return sharding.make_mesh(shape, jax.devices()[:num_devices])


def read(path: Path, step: int | None = None):
    reader = CheckpointReader(path, step)
    task = tasks.create(reader.config, str(reader.workdir))
    return reader.params(jax.eval_shape(task.init, jax.random.key(0)))


def recorded(out: Path) -> dict:
    return CheckpointReader(out).meta["average"]


def assert_mixture(out: Path, *terms: tuple[float, dict]) -> None:
    """The parameters of a directory are a sum that numpy computes in float64."""
    shares = [share for share, _ in terms]

    def check(got, *leaves):
        expected = np.tensordot(shares, np.array(leaves, np.float64), axes=1)
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)
        assert got.dtype == np.float32

    jax.tree.map(check, read(out), *(params for _, params in terms))


def scored(path: Path) -> dict[str, float]:
    """The metrics that an evaluation of a directory gives."""
    model = open_model(str(path), path, {})
    task = tasks.create(model.config, model.workdir)
    failures = Failures()
    found = evaluate(task.evaluators(mesh_of(8)), model.params(task, mesh_of(8)), failures)
    assert not failures.reasons
    return named_metrics(found)


def mean_of(metrics: dict[str, float]) -> float:
    return float(np.mean([metrics[name] for name in fnmatch.filter(metrics, METRIC)]))


def run(*arguments: object) -> int:
    return average.main([str(argument) for argument in arguments])


def test_the_last_checkpoints_become_a_model_that_loads_and_exports(
    finished_run, tmp_path, monkeypatch
):
    out = tmp_path / "uniform"
    assert run(finished_run, "--last=2", f"--out={out}") == 0
    assert_mixture(out, (0.5, read(finished_run, 35)), (0.5, read(finished_run, 40)))
    recipe = recorded(out)
    assert recipe["method"] == "uniform"
    assert recipe["inputs"] == [
        {
            "name": f"{number}. finished_run, step {step}",
            "weights": "raw",
            "sha256": averaging.sha256(read(finished_run, step)),
            "share": 0.5,
        }
        for number, step in ((1, 35), (2, 40))
    ]
    model = unimed_jax.load(out)
    assert model.encode_text("a chest X-ray").shape == (1, 16)
    assert model.tokenizer.sha256 == unimed_jax.load(finished_run).tokenizer.sha256
    assert scored(out).keys() == scored(finished_run).keys()

    monkeypatch.setattr(open_clip_export.importlib.util, "find_spec", lambda name: None)
    open_clip_export.export(out, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "from an average of checkpoints, described below." in card
    for term in recipe["inputs"]:
        assert f"| 0.5 | {term['name']} | `{term['sha256']}` |" in card
    assert "This checkpoint was not evaluated." in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_between_the_start_and_the_end_of_a_run(finished_run, tmp_path, monkeypatch, capsys):
    reader = CheckpointReader(finished_run)
    task = tasks.create(reader.config, str(finished_run))
    begun = jax.device_get(
        initial_state(task, TrainStep(task, reader.config, 40, mesh_of(1)))["params"]
    )
    start, out = tmp_path / "start", tmp_path / "wise"
    assert run(finished_run, "--alpha=0", f"--out={start}") == 0
    jax.tree.map(np.testing.assert_array_equal, read(start), begun)

    alphas = (0.0, 0.3, 1.0)
    listed = ",".join(map(str, alphas))
    assert run(finished_run, f"--alpha={listed}", f"--metric={METRIC}", f"--out={out}") == 0
    recipe = recorded(out)
    rows = recipe["evaluation"]["candidates"]
    assert [row["name"] for row in rows] == ["alpha 0", "alpha 0.3", "alpha 1"]
    best = int(np.argmax([row["score"] for row in rows]))
    assert [row["taken"] for row in rows] == [index == best for index in range(3)]
    share = alphas[best]
    assert_mixture(out, (1 - share, begun), (share, read(finished_run)))
    assert recipe["start"]["share"] == pytest.approx(1 - share)
    assert recipe["start"]["sha256"] == averaging.sha256(begun)
    assert rows[0]["score"] == pytest.approx(mean_of(scored(start)), abs=1e-12)
    results = json.loads((finished_run / "results.json").read_text())
    assert rows[2]["score"] == pytest.approx(mean_of(results), abs=1e-12)
    assert rows[2]["score"] > rows[0]["score"]

    # the same from a directory, between the average of two and their start
    again = tmp_path / "again"
    given = f"--start={start}"
    assert run(finished_run, "--last=2", "--alpha=0.25", given, f"--out={again}") == 0
    assert_mixture(
        again, (0.75, begun), (0.125, read(finished_run, 35)), (0.125, read(finished_run, 40))
    )

    monkeypatch.setattr(open_clip_export.importlib.util, "find_spec", lambda name: None)
    open_clip_export.export(out, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    count = len(fnmatch.filter(recipe["scores"], METRIC))
    where = f"on split val of `{Path(reader.config.data.root).name}`. "
    assert f"Chosen by `{METRIC}`, the mean of {count} metrics, {where}" in card
    for row in rows:
        taken = "yes" if row["taken"] else ""
        assert f"| {row['name']} | {row['score']:.4g} | {taken} |" in card
    row = re.search(r"^\| zero_shot/modality \|.*$", card, re.MULTILINE)
    assert f" {recipe['scores'][MODALITY]:.4g} |" in row[0]


@pytest.mark.slow
def test_a_greedy_soup_by_its_own_process_follows_the_rule(finished_run, tmp_path):
    start, out = tmp_path / "start", tmp_path / "soup"
    assert run(finished_run, "--alpha=0", f"--out={start}") == 0
    steps = [finished_run / "checkpoints" / step for step in ("35", "40")]
    command = [sys.executable, "-m", "unimed_jax.cli", "average", start, *steps, "--greedy"]
    command += [f"--metric={METRIC}", f"--out={out}"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "XLA_FLAGS": xla_flags(1)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    recipe = recorded(out)
    rows = {row["name"]: row["score"] for row in recipe["evaluation"]["candidates"]}
    names = [term["name"] for term in recipe["inputs"]]
    order = sorted(names, key=lambda name: -rows[name])
    chosen, reached, taken = [order[0]], rows[order[0]], order[0]
    for name in order[1:]:
        if rows[f"soup with {name}"] >= reached:
            reached, taken = rows[f"soup with {name}"], f"soup with {name}"
            chosen.append(name)
    assert len(rows) == 5
    shares = [term["share"] for term in recipe["inputs"]]
    assert shares == [1 / len(chosen) if name in chosen else 0.0 for name in names]
    assert [row["name"] for row in recipe["evaluation"]["candidates"] if row["taken"]] == [taken]
    params = [read(start), read(finished_run, 35), read(finished_run, 40)]
    assert_mixture(out, *zip(shares, params, strict=True))
    # as the evaluation of the directory, on eight devices, finds
    assert scored(out) == recipe["scores"]
    assert mean_of(recipe["scores"]) == pytest.approx(reached, abs=1e-12)


def other_model(run_directory: Path, directory: Path, **visual: object) -> Path:
    """A copy of a run whose checkpoints say that their image tower is another one."""
    workdir = Path(shutil.copytree(run_directory, directory))
    for path in workdir.glob("checkpoints/*/meta/metadata"):
        meta = json.loads(path.read_text())
        meta["config"]["model"]["visual"] |= visual
        path.write_text(json.dumps(meta))
    return workdir


def test_runs_that_only_dropped_other_shares_of_patches_are_averaged(finished_run, tmp_path):
    other = other_model(finished_run, tmp_path / "other", patch_dropout=0.5)
    assert run(finished_run, other, f"--out={tmp_path / 'out'}") == 0
    assert_mixture(tmp_path / "out", (0.5, read(finished_run)), (0.5, read(other)))


def test_what_cannot_be_averaged_is_one_line_and_leaves_nothing(finished_run, tmp_path, capsys):
    other = other_model(finished_run, tmp_path / "other", activation="gelu_tanh")
    out = f"--out={tmp_path / 'out'}"
    cases = (
        (
            [finished_run, other],
            "another model than .*visual.activation: '.*' -> 'gelu_tanh'",
        ),
        ([finished_run, finished_run / "checkpoints" / "40"], "40 is given twice"),
        ([finished_run, "--last=3"], r"has the checkpoints \[35, 40\]; config.checkpoint.keep"),
        ([finished_run, "--last=-1"], "--last=-1: expected a number"),
        ([finished_run, "--last=2", "--greedy"], "chosen by a score: give --metric"),
        ([finished_run, "--greedy", "--metric=x"], "two checkpoints at least"),
        ([finished_run, "--alpha=0.5,1.5"], "expected numbers of 0 to 1"),
        ([finished_run, "--alpha=half"], "expected numbers of 0 to 1"),
        ([finished_run, "--start=x"], "--start needs --alpha"),
        ([finished_run, "--weights=ema"], "holds no moving average, which a run with"),
        ([finished_run, "--alpha=0,1", "--metric=nothing"], "nothing is none of: zero_shot/modal"),
        ([tmp_path / "absent"], "absent"),
    )
    for arguments, message in cases:
        assert run(*arguments, out) == 2
        said = capsys.readouterr().err
        assert re.search(message, said), said
        assert len(said.splitlines()) == 1
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert run(finished_run, f"--out={tmp_path / 'taken'}") == 2
    assert "is not an empty directory; name another" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "taken"]
