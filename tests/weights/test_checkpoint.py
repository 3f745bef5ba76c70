"""Which checkpoint a run resumes from: the newest readable one, and it logs which it skips."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import ROOT

from input_pipeline.io.errors import UserError
from input_pipeline.io.library_errors import user_errors
from unimed_jax.weights import checkpoint_folders
from unimed_jax.weights.checkpoint import CheckpointReader, Checkpoints

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


DAMAGES = pytest.mark.parametrize(
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


@DAMAGES
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


@DAMAGES
def test_a_reader_says_in_one_line_which_one_is_damaged(workdir, which, damage):
    folder = workdir / "checkpoints" / "3"
    damage(which(folder))
    if not (folder / "data" / "metadata").exists():  # for training alone
        return
    reader = CheckpointReader(workdir)
    with pytest.raises(UserError) as found:
        reader.params(jax.eval_shape(lambda: state_of(0))["params"])
        _ = reader.meta
    said = str(found.value)
    assert said.startswith(f"checkpoint {folder} is damaged: ")
    assert said.endswith("; restore its files, or take another step (there are: 1, 2)")
    assert len(said) < 1000
    assert "\n" not in said


def test_no_flipped_bit_is_read_as_a_value(workdir, capsys):
    folder = workdir / "checkpoints" / "3"
    path, abstract = files_of(folder)[0], jax.eval_shape(lambda: state_of(0))["params"]
    content, random, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for place in random.integers(0, len(content), 20):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            found = CheckpointReader(workdir).params(abstract)
        except UserError as error:
            assert str(error).startswith(f"checkpoint {folder} is damaged: ")
            noticed += 1
        else:  # the bit means nothing, as in padding
            np.testing.assert_array_equal(found["a"], state_of(3)["params"]["a"])
    assert noticed > 15
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    assert restore_newest(workdir)[1].step == 2
    assert "cannot be read (params/a is not what was saved)" in capsys.readouterr().out


def test_a_meta_without_a_config_is_damaged(workdir):
    folder = workdir / "checkpoints" / "3"
    for content in ("{}", '{"config": 3}', '{"config": {}}'):
        (folder / "meta" / "metadata").write_text(content)
        with pytest.raises(UserError, match=f"checkpoint {folder} is damaged: "):
            _ = CheckpointReader(workdir).config


def test_a_full_disk_is_the_reason_why_a_save_fails(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, allowed[1]))  # files cannot grow beyond
    try:
        message = f"^cannot write {tmp_path}/.*: File too large"
        with pytest.raises(UserError, match=message), user_errors():
            checkpoints.save(1, state_of(1), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert Checkpoints(tmp_path).steps() == []


@pytest.mark.parametrize("name", ["run [a]", "[!b]", "a*b", "a?b", "Läufe 模型", "x {1,2} #%20 &"])
def test_folders_of_any_name_keep_checkpoints(tmp_path, name):
    for other in (1, 2):  # what a pattern would match
        checkpoints = Checkpoints(tmp_path / "axb")
        checkpoints.save(other, state_of(other + 10), {}, {"identity": {}})
        checkpoints.close()
    checkpoints = Checkpoints(tmp_path / name / "run")
    checkpoints.save(1, state_of(1), {}, {"identity": {}})
    checkpoints.close()
    (tmp_path / name / "run").rename(tmp_path / name / "moved")
    _, restored = restore_newest(tmp_path / name / "moved")
    np.testing.assert_array_equal(restored.state["params"]["a"], state_of(1)["params"]["a"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [("a\\b", "a backslash"), ("gs:", "ends in a colon"), ("\udce4", "not UTF-8")],
)
def test_a_name_that_the_storage_cannot_hold_is_refused(tmp_path, name, problem):
    with pytest.raises(UserError, match=f"checkpoints cannot be kept in .*{problem}"):
        Checkpoints(tmp_path / name / "run")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_back_is_noticed_at_the_first_save(tmp_path, monkeypatch):
    # the store that writes elsewhere: the name is accepted, as if it were not known to be bad
    monkeypatch.setattr(checkpoint_folders, "_PROBLEMS", {})
    checkpoints = Checkpoints(tmp_path / "a\\b")
    with pytest.raises(UserError, match="was saved, but cannot be read: "):
        checkpoints.save(1, state_of(1), {}, {"identity": {}})


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
        "checkpoints._was_read_back = True\n"  # the first save of a run is awaited
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
