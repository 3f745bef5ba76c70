"""The same run on other meshes and on two processes gives the same losses."""

import json
import math
import socket

import jax
import pytest
from runs import finish, losses_of, start, write_recipe

from unimed_jax import train


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
def test_a_run_moves_to_another_mesh_and_goes_on(tiny_config, tmp_path):
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
