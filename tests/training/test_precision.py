"""A run in bfloat16 against the same run in float32."""

import jax
import numpy as np
import pytest
from helpers.runs import losses_of

from unimed_jax import train

STEPS, WINDOW = 200, 25


@pytest.mark.slow
def test_bfloat16_follows_the_loss_curve_of_float32(tiny_config, tmp_path):
    """Tolerances of docs/guides/tpu.md#bfloat16: 1 % before the loss falls, 10 % while it does."""
    curves = []
    for dtype in ("float32", "bfloat16"):
        config = tiny_config(
            num_train_steps=STEPS,
            evals={},
            checkpoint__every_steps=1000,
            optimizer__learning_rate=3e-3,
            optimizer__warmup_steps=10,
            model__compute_dtype=dtype,
        )
        train.train(config, tmp_path / dtype, jax.devices()[:1])
        losses = list(losses_of(tmp_path / dtype).values())
        curves.append(np.array(losses).reshape(-1, WINDOW).mean(axis=1))
    exact, rounded = curves
    assert exact[-1] < 0.5 * exact[0]
    assert (exact != rounded).all()
    np.testing.assert_allclose(rounded[0], exact[0], rtol=0.01)
    np.testing.assert_allclose(rounded, exact, rtol=0.10)
