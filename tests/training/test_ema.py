"""The moving average of the weights: its formula, its place on the mesh, and what is scored."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax import config as config_lib
from unimed_jax import tasks, train
from unimed_jax.distributed import sharding
from unimed_jax.evals.failures import Failures
from unimed_jax.evals.model_under_test import open_model
from unimed_jax.evals.results import evaluate, named_metrics
from unimed_jax.training import ema
from unimed_jax.training.train_step import TrainStep
from unimed_jax.weights.checkpoint import CheckpointReader

DECAY, STEPS = 0.9, 4
SMALL = {"model__visual__layers": 1, "model__text__layers": 1, "optimizer__ema_decay": DECAY}


def closed_form(history: list[np.ndarray], decay: float) -> np.ndarray:
    """sum_i decay^(t-i) p_i / sum_i decay^(t-i), float64."""
    weights = decay ** np.arange(len(history) - 1, -1, -1, dtype=np.float64)
    return np.tensordot(weights / weights.sum(), np.array(history, np.float64), axes=1)


def mesh_of(shape: tuple[int, int, int]) -> jax.sharding.Mesh:
    axes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return sharding.make_mesh(axes, jax.devices()[: np.prod(shape)])


@pytest.mark.parametrize("decay", [0.5, 0.999, 0.999999])
def test_long_averages_are_those_of_float64_and_of_optax(decay):
    rng = np.random.default_rng(0)
    history = list(rng.standard_normal((300, 7)).astype(np.float32))
    average = ema.start({"a": jnp.asarray(rng.standard_normal(7), jnp.float32)})
    independent = optax.ema(decay, debias=True)
    state = independent.init(jnp.zeros(7))
    step = jax.jit(lambda e, p, t: ema.update(e, {"a": p}, decay, t))
    for count, params in enumerate(history, 1):
        average = step(average, params, jnp.int32(count))
        theirs, state = independent.update(jnp.asarray(params), state)
    expected = closed_form(history, decay)
    np.testing.assert_allclose(average["a"], expected, atol=2e-6)
    # optax takes 1 - decay of a float32 decay, which is 0.01 off for the longest
    np.testing.assert_allclose(theirs, expected, atol=2e-6 if decay < 0.9999 else 0.05)


def test_the_average_of_bfloat16_weights_is_float32_and_is_scored_as_bfloat16():
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    average = ema.start(params)
    for count in range(1, 40):
        params = {"a": params["a"] + jnp.asarray(2**-7, jnp.bfloat16)}
        average = ema.update(average, params, 0.999, jnp.int32(count))
    assert average["a"].dtype == jnp.float32
    mean = 1 + 20 / 128  # of 1 + i / 128 for i in 1..39, almost equally weighted
    np.testing.assert_allclose(average["a"], mean, atol=2e-3)
    scored = ema.evaluated({"params": params, "ema": average})
    assert scored["a"].dtype == jnp.bfloat16
    assert ema.evaluated({"params": params}) is params


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_the_step_averages_what_it_trains_on_every_mesh(tiny_config, shape):
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
    config = tiny_config(optimizer__frozen=("^text/blocks/",), **SMALL, **axes)
    mesh = mesh_of(shape)
    program = TrainStep(tasks.create(config, ""), config, 10, mesh)
    assert jax.tree.structure(program.shardings["ema"]) == jax.tree.structure(
        program.shardings["params"]
    )
    assert jax.tree.leaves(program.shardings["ema"]) == jax.tree.leaves(program.shardings["params"])
    compiled = program.lower().compile()
    state = jax.jit(program.init, out_shardings=program.shardings)(program.key())
    jax.tree.map(np.testing.assert_array_equal, state["ema"], state["params"])
    rng = np.random.default_rng(0)
    history = []
    for _ in range(STEPS):
        batch = {
            "image": rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
            "text": rng.integers(5, 200, (16, 24), np.int32),
        }
        given = state
        state, _ = compiled(
            state, jax.device_put(batch, sharding.batch_sharding(mesh)), program.key()
        )
        history.append(jax.device_get(state["params"]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given["ema"]))  # donated

    def check(average, frozen, *newest_last):
        if frozen:
            np.testing.assert_array_equal(average, newest_last[-1])
        else:
            assert np.abs(newest_last[-1] - newest_last[0]).max() > 0
            expected = closed_form(list(newest_last), DECAY)
            np.testing.assert_allclose(average, expected, atol=3e-7 * np.abs(expected).max())

    blocks = sharding.select_leaves(history[0], lambda path: path.startswith("text/blocks/"))
    frozen = sharding.replace_leaves(
        jax.tree.map(lambda _: False, history[0]), jax.tree.map(lambda _: True, blocks)
    )
    jax.tree.map(check, jax.device_get(state["ema"]), frozen, *history)


def test_without_the_key_the_state_is_what_it_was(tiny_config):
    config = tiny_config(**SMALL | {"optimizer__ema_decay": 0.0})
    program = TrainStep(tasks.create(config, ""), config, 10, mesh_of((1, 1, 1)))
    assert program.abstract_state.keys() == {"params", "opt_state", "step"}


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(tiny_config, decay):
    with pytest.raises(ConfigError, match=r"optimizer\.ema_decay=.* below 1"):
        config_lib.validate(tiny_config(optimizer__ema_decay=decay), 1)


# --- a run ----------------------------------------------------------------------------------------


def config_of_run(tiny_config, **changes):
    return tiny_config(
        **SMALL, num_train_steps=STEPS, checkpoint__every_steps=2, mesh__fsdp=2,
        optimizer__learning_rate=1e-2, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(phantom_corpus, tmp_path_factory) -> Path:
    """A run on eight devices with checkpoints of the steps 2 and 4."""
    from unimed_jax.testing import tiny_config

    workdir = tmp_path_factory.mktemp("ema") / "run"
    config = config_of_run(lambda **changes: tiny_config(str(phantom_corpus), changes))
    assert train.train(config, workdir)
    return workdir


def read(workdir: Path, weights: str | None = None, step: int | None = None):
    reader = CheckpointReader(workdir, step, weights)
    task = tasks.create(reader.config, str(workdir))
    return reader.params(jax.eval_shape(task.init, jax.random.key(0)))


@pytest.mark.slow
def test_interrupted_the_average_continues_bit_for_bit(run, tiny_config, tmp_path, capsys):
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert train.train(config_of_run(tiny_config), workdir)
    said = capsys.readouterr().out
    assert "from step 2" in said
    assert f"scored and exported: the EMA of the weights, decay {DECAY}\n" in said
    for weights in ("ema", "raw"):
        jax.tree.map(np.testing.assert_array_equal, read(workdir, weights), read(run, weights))
    assert (workdir / "results.json").read_text() == (run / "results.json").read_text()


@pytest.mark.slow
def test_a_run_does_not_change_to_or_from_an_average(run, tiny_config):
    config = config_of_run(tiny_config)
    config.optimizer.ema_decay = 0.0
    with pytest.raises(UserError, match=r"optimizer\.ema_decay: 0\.9 -> 0\.0.*another --workdir"):
        train.train(config, run)


def scores(workdir: Path, out: Path, weights: str | None) -> dict[str, float]:
    model = open_model(str(workdir), out, {}, weights)
    task = tasks.create(model.config, model.workdir)
    mesh = mesh_of((4, 2, 1))
    failures = Failures()
    found = evaluate(task.evaluators(mesh), model.params(task, mesh), failures)
    assert not failures.reasons
    return named_metrics(found)


@pytest.mark.slow
def test_the_run_scores_the_average_and_an_evaluation_may_take_either(run, tmp_path):
    recorded = json.loads((run / "results.json").read_text())
    of_average, of_newest = (scores(run, tmp_path, weights) for weights in (None, "raw"))
    assert of_average == recorded
    assert of_newest != recorded
    assert "decay 0.9" in (run / "report.html").read_text()
    two, four = read(run, "ema", 2), read(run, "raw", 4)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), two, four)
    assert max(jax.tree.leaves(changed)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, read(run), read(run, "ema"))


def test_asking_a_run_without_an_average_for_it_is_refused(finished_run, tmp_path):
    with pytest.raises(UserError, match="holds no moving average, which a run with"):
        read(finished_run, "ema")
    assert open_model(str(finished_run), tmp_path, {}).title.endswith("step 40")
