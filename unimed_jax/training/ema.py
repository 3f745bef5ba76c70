"""The exponential moving average (EMA) of the parameters, which follows them during training."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def start(params: Any) -> Any:
    """The average before the first step: a copy of the parameters, float32 at least.

    bfloat16 would lose most of the updates of an average: they are smaller than its rounding.
    """
    return jax.tree.map(
        lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params
    )


def update(average: Any, params: Any, decay: float, count: jax.Array) -> Any:
    """The average of the parameters p_1, ..., p_t after t steps.

    The weight of p_i is proportional to decay^(t-i): e_t = e_(t-1) + w_t (p_t - e_(t-1)) with
    w_t = (1 - decay) / (1 - decay^t). This is the average of Polyak & Juditsky (1992) with an
    exponential window, and the bias correction of Adam (Kingma & Ba, arXiv 1412.6980, section 3):
    the parameters before the first step have no weight, and early averages are short. A parameter
    that does not change is its own average to the bit.

    Args:
      average: e_(t-1), from ``start`` or ``update``.
      params: p_t.
      decay: above 0 and below 1; the window is about 1 / (1 - decay) steps.
      count: t, at least 1, int ().
    """
    log_decay = math.log(decay)
    weight = -math.expm1(log_decay) / -jnp.expm1(log_decay * count.astype(jnp.float32))
    return jax.tree.map(lambda e, p: e + weight * (p.astype(e.dtype) - e), average, params)


def evaluated(state: Mapping[str, Any]) -> Any:
    """The parameters that are scored: the average if the state has one, else the newest ones."""
    params = state["params"]
    if "ema" not in state:
        return params
    return jax.tree.map(lambda e, p: e.astype(p.dtype), state["ema"], params)
