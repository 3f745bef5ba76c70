"""One optimiser step as a pure function (state, batch) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from unimed_jax import optim, trees
from unimed_jax.tasks.base import Task

State = dict[str, Any]  # {"params", "opt_state", "step": int32 ()}
Batch = Mapping[str, jax.Array]


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step; a function of the seed alone, whatever the mesh."""
    params = task.init(jax.random.key(seed))
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def _microbatches(batch: Batch, count: int) -> Batch:
    """(B, ...) -> (count, B / count, ...); microbatch a holds rows a, a + count, a + 2 count, ...

    Rows are taken with a stride so that each device finds its share of every microbatch among its
    own rows.
    """
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0), batch
    )


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, config: ConfigDict, num_train_steps: int
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Builds the step of a task.

    With ``optimizer.accumulate_steps`` = A > 1 the gradient is the mean over A microbatches; a
    task whose loss compares rows with each other compares them within a microbatch.

    Args:
      task: supplies ``loss`` and ``constrain``.
      optimizer: from ``optim.make_optimizer``.
      config: the whole config; ``seed`` and ``optimizer`` are read.
      num_train_steps: length of the schedule, for the reported learning rate.

    Returns:
      A pure function whose metrics are float32 scalars, among them ``loss``, ``grad_norm`` (before
      clipping) and ``learning_rate``.
    """
    schedule = optim.learning_rate_schedule(config.optimizer, num_train_steps)
    frozen = tuple(config.optimizer.frozen)
    accumulate = config.optimizer.accumulate_steps

    def loss(params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if frozen:  # no gradient is computed for what is frozen
            mask = optim.path_mask(params, frozen)
            params = jax.tree.map(
                lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, mask
            )
        return task.loss(params, batch, rng)

    grad = jax.value_and_grad(loss, has_aux=True)

    def train_step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        # the base key is rebuilt from the seed, so the state carries no key and a step is
        # reproducible
        rng = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        params = state["params"]
        if accumulate == 1:
            (value, metrics), grads = grad(params, batch, rng)
        else:
            keys = jax.random.split(rng, accumulate)
            micro = _microbatches(batch, accumulate)
            shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], micro), keys[0])
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

            def add(total: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, grad(params, *inputs)), None

            total, _ = jax.lax.scan(add, zero, (micro, keys))
            (value, metrics), grads = jax.tree.map(lambda x: x / accumulate, total)

        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        statistics = metrics.pop("statistics", {})
        params = trees.replaced(optax.apply_updates(params, updates), statistics)
        params = task.constrain(params)
        metrics = {
            **metrics,
            "loss": value,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": schedule(state["step"]),
        }
        new_state = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        return new_state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}

    return train_step
