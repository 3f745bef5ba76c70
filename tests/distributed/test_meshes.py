"""A run on different meshes and numbers of processes: same records, same losses."""

import itertools
import math
import shutil
from pathlib import Path

import jax
import pytest
from helpers.runs import (
    ROOT,
    finish,
    job_environment,
    losses_of,
    recorded,
    recording,
    start,
    write_recipe,
)

from input_pipeline import dataset, sampling_order
from unimed_jax import train
from unimed_jax.testing import tiny_config
from unimed_jax.training.data_loader import DataLoader

STEPS = {
    "num_train_steps": 6,
    "checkpoint__every_steps": 3,
    "evals": {},
    "model__visual__layers": 1,
    "model__text__layers": 1,
}
TOLERANCE = 2e-5  # relative: the order of summation depends on the mesh


def train_here(corpus: Path, workdir: Path, mesh: tuple[int, int, int]) -> None:
    """Trains in this process on a mesh (data, fsdp, tensor)."""
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataLoader, "read", recording(DataLoader.read, workdir / "batches"))
        config = tiny_config(str(corpus), {**STEPS, **axes})
        train.train(config, workdir, jax.devices()[: math.prod(mesh)])


def train_in_processes(corpora: list[Path], workdir: Path, devices_each: int) -> None:
    """Trains in a job of one process per corpus directory."""
    processes = [
        start(
            write_recipe(workdir.parent / f"{workdir.name}-{index}.py", corpus, **STEPS),
            workdir,
            program=("tests/helpers/recorded_train.py",),
            RECORD=str(workdir / "batches"),
            PYTHONPATH=str(ROOT),
            **environment,
        )
        for index, (corpus, environment) in enumerate(
            zip(corpora, job_environment(len(corpora), devices_each), strict=True)
        )
    ]
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()


def only_own_records(corpus: Path, copy: Path, host: int, num_hosts: int) -> Path:
    """A copy in which the blocks of records that other hosts read are zeros."""
    shutil.copytree(corpus, copy)
    config = tiny_config(str(corpus), STEPS)
    source = dataset.MixtureSource("phantoms", str(corpus), "train", None)
    manifests = dataset.open_sources([source])
    spec = dataset.StreamSpec(
        [source], manifests, config.seed, config.batch_size, config.data.block_size
    )
    (blocks,), size = spec.blocks, config.batch_size
    plan = sampling_order.assignments(spec.seed, [blocks], spec.weights, size, 0)
    own = set()
    for assignment in itertools.islice(plan, config.num_train_steps):
        mine = assignment.rows * num_hosts // size == host
        own |= set(assignment.entries.block[mine].tolist())
    assert own and len(own) < len(blocks)
    for block in set(range(len(blocks))) - own:
        begin, end = map(int, blocks.span[block])
        shard = manifests[0].splits["train"].shards[blocks.shard[block]]
        with (copy / shard.file).open("r+b") as file:
            file.seek(begin)
            file.write(bytes(end - begin))
    return copy


def assert_same_losses(workdir: Path, reference: Path) -> None:
    losses, expected = losses_of(workdir), losses_of(reference)
    assert list(losses) == list(expected) == [1, 2, 3, 4, 5, 6]
    for step, loss in losses.items():
        assert loss == pytest.approx(expected[step], rel=TOLERANCE), step


@pytest.fixture(scope="module")
def one_process(phantom_corpus, tmp_path_factory) -> Path:
    """The work directory of an uninterrupted run on eight devices of one process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train_here(phantom_corpus, workdir, (8, 1, 1))
    return workdir


@pytest.fixture(scope="module")
def four_processes(phantom_corpus, tmp_path_factory) -> Path:
    """The same with four processes of two devices each, which can read only their blocks."""
    directory = tmp_path_factory.mktemp("four")
    corpora = [
        only_own_records(phantom_corpus, directory / f"corpus{host}", host, 4) for host in range(4)
    ]
    train_in_processes(corpora, directory / "run", devices_each=2)
    return directory / "run"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_the_loss_curve_is_the_same_on_every_mesh(one_process, phantom_corpus, tmp_path, mesh):
    train_here(phantom_corpus, tmp_path, mesh)
    assert_same_losses(tmp_path, one_process)


@pytest.mark.slow
def test_four_processes_that_read_only_their_records_train_like_one(four_processes, one_process):
    assert recorded(four_processes / "batches") == recorded(one_process / "batches")
    assert len(list((four_processes / "batches").iterdir())) == 4
    assert_same_losses(four_processes, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["1 x 8", "fsdp and tensor", "2 x 2"])
def test_a_checkpoint_of_four_processes_resumes_on_other_meshes(
    four_processes, one_process, phantom_corpus, tmp_path, target
):
    workdir = tmp_path / "run"
    shutil.copytree(four_processes, workdir)
    shutil.rmtree(workdir / "batches")
    shutil.rmtree(workdir / "checkpoints" / "6")  # as if it had been killed after step 3
    if target == "2 x 2":
        train_in_processes([phantom_corpus] * 2, workdir, devices_each=2)
    else:
        train_here(phantom_corpus, workdir, (8, 1, 1) if target == "1 x 8" else (2, 2, 2))
    expected = recorded(one_process / "batches")
    assert recorded(workdir / "batches") == {step: expected[step] for step in (4, 5, 6)}
    assert_same_losses(workdir, one_process)
