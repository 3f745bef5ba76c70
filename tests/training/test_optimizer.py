"""Schedule and AdamW against the published formulas and torch's AdamW (in its own process)."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unimed_jax.config import base_config
from unimed_jax.training import optimizer as optim

REFERENCE = Path(__file__).parents[1] / "helpers" / "torch_reference.py"


def _settings(**changes):
    settings = base_config().optimizer
    settings.update(changes)
    return settings


def test_the_schedule_is_the_published_one():
    steps, warmup, peak = 1000, 100, 5e-4
    schedule = optim.learning_rate_schedule(
        _settings(learning_rate=peak, warmup_steps=warmup), steps
    )
    for t in (0, 1, 50, 99, 100, 101, 550, 999, 1000):
        if t < warmup:
            expected = peak * (t + 1) / warmup
        else:
            expected = peak / 2 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-5, atol=1e-10)


def test_constant_schedule_and_no_warmup():
    schedule = optim.learning_rate_schedule(
        _settings(schedule="constant", warmup_steps=0, learning_rate=0.1), 10
    )
    assert {round(float(schedule(t)), 6) for t in (0, 5, 9, 20)} == {0.1}


def _params():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }


def _run(params, gradients, **changes):
    optimizer = optim.make_optimizer(_settings(warmup_steps=0, schedule="constant", **changes), 10)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_the_polynomial_schedule_is_nnunets():
    schedule = optim.learning_rate_schedule(
        _settings(learning_rate=0.01, warmup_steps=0, schedule="polynomial"), 1000
    )
    for t in (0, 1, 500, 999, 1000):
        np.testing.assert_allclose(schedule(t), 0.01 * (1 - t / 1000) ** 0.9, rtol=1e-4, atol=1e-9)


def test_the_schedule_of_slaug_is_flat_and_then_linear():
    schedule = optim.learning_rate_schedule(
        _settings(
            learning_rate=3e-4,
            warmup_steps=0,
            schedule="polynomial",
            power=1.0,
            hold_fraction=0.025,
        ),
        2000,
    )
    for epoch in (0, 49, 50, 51, 1000, 1999):
        # published: epoch - 49 over 1951, a step earlier than ours
        expected = 3e-4 * (1 - max(0, epoch - 50) / 1950)
        np.testing.assert_allclose(schedule(epoch), expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parity
def test_the_optimizer_is_torchs(tmp_path, name):
    params = _params()
    rng = np.random.default_rng(1)
    gradients = [
        {k: jnp.asarray(rng.standard_normal(v.shape), jnp.float32) for k, v in params.items()}
        for _ in range(5)
    ]
    ours = _run(params, gradients, learning_rate=1e-2, name=name)
    arrays = {f"p_{k}": v for k, v in params.items()}
    arrays |= {f"g_{k}": np.stack([g[k] for g in gradients]) for k in params}
    np.savez(tmp_path / "in.npz", **arrays)
    command = [sys.executable, REFERENCE, name, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=300)
    for key, expected in np.load(tmp_path / "out.npz").items():
        np.testing.assert_allclose(ours[key], expected, rtol=2e-6, atol=2e-6)


def test_frozen_parameters_stay_and_others_move():
    params = _params()
    gradient = jax.tree.map(jnp.ones_like, params)
    after = _run(params, [gradient] * 3, frozen=("^kernel$",))
    np.testing.assert_array_equal(after["kernel"], params["kernel"])
    assert not np.allclose(after["bias"], params["bias"])


def test_weight_decay_spares_biases_and_norms_only():
    params = {
        "visual": {"blocks": {"ln_1": {"scale": 0, "bias": 0}, "attn": {"qkv": {"kernel": 0}}},
                   "class_embedding": 0, "positional_embedding": 0},
        "text": {"word_embeddings": {"embedding": 0}},
        "logit_scale": 0,
    }  # fmt: skip
    mask = optim.decay_mask(params, tuple(_settings().no_decay))
    assert mask == {
        "visual": {"blocks": {"ln_1": {"scale": False, "bias": False},
                              "attn": {"qkv": {"kernel": True}}},
                   "class_embedding": False, "positional_embedding": True},
        "text": {"word_embeddings": {"embedding": True}},
        "logit_scale": False,
    }  # fmt: skip


def test_clipping_bounds_the_gradient_norm():
    params = _params()
    big = jax.tree.map(lambda x: 1e3 * jnp.ones_like(x), params)
    small = jax.tree.map(lambda x: x / optax.global_norm(big), big)
    clipped = _run(params, [big], clip_norm=1.0)
    expected = _run(params, [small])
    for key in params:
        np.testing.assert_allclose(clipped[key], expected[key], rtol=1e-6)
