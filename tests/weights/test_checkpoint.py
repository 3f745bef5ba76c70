"""Which checkpoint a run resumes from: the newest readable one, and it logs which it skips."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.runs import ROOT

from input_pipeline.io.errors import UserError
from unimed_jax.weights.checkpoint import Checkpoints

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_of(step: int) -> dict:
    """Of random values, which do not compress to nothing, all of them marked by the step."""
    noise = jax.random.uniform(jax.random.key(step), (64, 32))
    return {"params": {"a": noise + step, "b": jnp.arange(5) + step}}


def restore_newest(workdir: Path):
    abstract = jax.eval_shape(lambda: state_of(0))
    checkpoints = Checkpoints(workdir, keep=5)
    restored = checkpoints.restore_newest(abstract, jax.tree.map(lambda _: HERE, abstract))
    return checkpoints, restored


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    """A work directory with the checkpoints 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("steps")
    checkpoints = Checkpoints(workdir, keep=5)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step), {"step": step}, {"identity": {}})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(three_steps, tmp_path) -> Path:
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


def files_of(step_folder: Path) -> list[Path]:
    """The files with the values of arrays, the largest first."""
    found = (step_folder / "state").glob("ocdbt.process_0/d/*")
    return sorted(found, key=lambda path: -path.stat().st_size)


def test_the_newest_is_taken(workdir, capsys):
    _, restored = restore_newest(workdir)
    assert (restored.step, restored.position, restored.meta) == (3, {"step": 3}, {"identity": {}})
    assert int(restored.state["params"]["a"][0, 0]) == 3
    assert f"resuming from {workdir / 'checkpoints' / '3'}\n" in capsys.readouterr().out


def test_there_may_be_none(tmp_path):
    _, restored = restore_newest(tmp_path)
    assert restored is None


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        (lambda folder: files_of(folder)[0], remove),
        (lambda folder: files_of(folder)[0], halve),
        (lambda folder: folder / "state" / "manifest.ocdbt", halve),
        (lambda folder: folder / "state" / "_METADATA", remove),
        (lambda folder: folder / "data" / "metadata", remove),
        (lambda folder: folder / "meta" / "metadata", halve),
    ],
    ids=["array missing", "array cut", "index cut", "tree missing", "data missing", "meta cut"],
)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(workdir, capsys, which, damage):
    folder = workdir / "checkpoints"
    damage(which(folder / "3"))
    checkpoints, restored = restore_newest(workdir)
    assert restored.step == 2
    assert int(restored.state["params"]["a"][0, 0]) == 2
    said = capsys.readouterr().out
    assert f"skipping {folder / '3'}, renamed to damaged-3: it cannot be read (" in said
    assert f"resuming from {folder / '2'}\n" in said
    # its step is free again
    checkpoints.save(3, state_of(7), {"step": 3}, {"identity": {}})
    checkpoints.close()
    assert int(restore_newest(workdir)[1].state["params"]["a"][0, 0]) == 7
    assert (folder / "damaged-3").is_dir()


def test_if_none_can_be_read_the_run_does_not_start_anew(workdir):
    for step in (1, 2, 3):
        files_of(workdir / "checkpoints" / str(step))[0].unlink()
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be read"):
        restore_newest(workdir)


def test_one_that_does_not_fit_the_model_is_not_taken_for_damaged(workdir):
    abstract = jax.eval_shape(lambda: {"params": {"a": jnp.zeros((64, 33)), "c": jnp.zeros(2)}})
    with pytest.raises(UserError, match=r"params/a has shape \(64, 32\), the model needs \(64, 33"):
        Checkpoints(workdir).restore_newest(abstract, jax.tree.map(lambda _: HERE, abstract))
    del abstract["params"]["a"]
    with pytest.raises(UserError, match="params/c has shape absent"):
        Checkpoints(workdir).restore_newest(abstract, jax.tree.map(lambda _: HERE, abstract))
    assert (workdir / "checkpoints" / "3").is_dir()


@pytest.mark.slow
def test_what_a_kill_leaves_of_a_save_is_ignored_aloud(workdir, capsys):
    program = (
        "import os, signal, jax.numpy as jnp\n"
        "from unimed_jax.weights.checkpoint import Checkpoints\n"
        f"checkpoints = Checkpoints({str(workdir)!r}, keep=5)\n"
        "state = {'params': {'a': jnp.ones((4096, 4096))}}\n"
        "checkpoints.save(4, state, {}, {'identity': {}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"  # while 64 MiB are being written
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert killed.returncode == -signal.SIGKILL
    left = [p for p in (workdir / "checkpoints").iterdir() if p.name not in ("1", "2", "3")]
    assert len(left) == 1
    _, restored = restore_newest(workdir)
    assert restored.step == 3
    assert f"skipping {left[0]}: its save was interrupted\n" in capsys.readouterr().out
