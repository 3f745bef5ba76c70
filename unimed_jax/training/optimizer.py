"""AdamW, Adam and SGD with schedules; decay and freezing by regular expressions over paths."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from unimed_jax.distributed.sharding import path_string


def learning_rate_schedule(config: ConfigDict, num_train_steps: int) -> optax.Schedule:
    """The learning rate lr(t) of update t, counted from 0.

    lr0 (t+1)/w for t < w; then lr0 for a fraction ``hold_fraction`` of the rest, until step h; then
    lr0 (constant), lr0/2 (1 + cos(pi (t-h)/(T-h))) (cosine), or lr0 (1 - (t-h)/(T-h))^power
    (polynomial).

    Args:
      config: ``config.optimizer``.
      num_train_steps: T.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    hold = warmup + config.hold_fraction * max(num_train_steps - warmup, 0)

    def schedule(count: jax.Array) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((t - hold) / max(num_train_steps - hold, 1), 0.0, 1.0)
        after = {
            "cosine": peak / 2 * (1 + jnp.cos(jnp.pi * progress)),
            "polynomial": peak * (1 - progress) ** config.power,
            "constant": peak,
        }[config.schedule]
        return jnp.where(t < warmup, peak * (t + 1) / max(warmup, 1), after)

    return schedule


def path_mask(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of bools: whether any of the regular expressions matches the path of the leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, path_string(path)) for pattern in patterns), params
    )


def decay_mask(params: Any, no_decay: Sequence[str]) -> Any:
    """A tree of bools: True where weight decay applies."""
    return jax.tree.map(lambda exempt: not exempt, path_mask(params, no_decay))


def learning_rate_factor(path: str, factors: Sequence[tuple[str, float]]) -> float:
    """The factor of the first regular expression that matches a parameter's path; 1 without one."""
    return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)


def scale_by_path(factors: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies the update of every parameter by its ``learning_rate_factor``.

    Args:
      factors: (regular expression over the path, factor).
    """

    def scale(updates: Any, params: Any = None) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * learning_rate_factor(path_string(path), factors), updates
        )

    return optax.stateless(scale)


def make_optimizer(config: ConfigDict, num_train_steps: int) -> optax.GradientTransformation:
    """AdamW: p <- p - lr (m / (sqrt(v) + eps) + weight_decay p), moments bias-corrected.

    Loshchilov & Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101. Adam and SGD
    are those of torch, with L2 regularization g <- g + weight_decay p: SGD has Nesterov momentum,
    m <- momentum m + g; p <- p - lr (g + momentum m).

    Args:
      config: ``config.optimizer``.
      num_train_steps: length of the schedule.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    no_decay = tuple(config.no_decay)
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: decay_mask(params, no_decay)
    )
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    rule = {
        "adamw": (adam, decay),
        "adam": (decay, adam),
        "sgd": (decay, optax.trace(config.momentum, nesterov=True)),
    }[config.name]
    optimizer = optax.chain(
        *clip,
        *rule,
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_train_steps)),
        scale_by_path(config.learning_rate_factors),
    )
    if not config.frozen:
        return optimizer

    def label(params: Any) -> Any:
        mask = path_mask(params, tuple(config.frozen))
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", mask)

    # frozen parameters have no moments
    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, label)
