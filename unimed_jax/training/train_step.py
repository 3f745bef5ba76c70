"""One optimizer step as a pure function (state, batch, key) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unimed_jax.distributed import sharding, xla_options
from unimed_jax.monitoring import flops
from unimed_jax.training import ema
from unimed_jax.training import optimizer as optim
from unimed_jax.training.task import Task

# {"params", "opt_state", "step": int32 ()}, and with optimizer.ema_decay "ema", like "params"
State = dict[str, Any]
Batch = Mapping[str, jax.Array]


def init_state(
    task: Task, optimizer: optax.GradientTransformation, config: ConfigDict, key: jax.Array
) -> State:
    """The state before the first step; depends on the key alone, not on the mesh."""
    params = task.init(key)
    state = {
        "params": params,
        "opt_state": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    return {**state, "ema": ema.start(params)} if config.optimizer.ema_decay else state


def initial_state(task: Task, step: "TrainStep") -> State:
    """The state before the first step: random parameters, the pretrained ones replaced."""
    state = jax.jit(
        step.init,
        out_shardings=step.shardings,
        compiler_options=xla_options.one_shot_options(step.mesh),
    )(step.key())
    abstract = step.abstract_state["params"]
    wanted = {
        sharding.path_string(path): (leaf.dtype, placement)
        for (path, leaf), placement in zip(
            jax.tree_util.tree_leaves_with_path(abstract),
            jax.tree.leaves(step.shardings["params"]),
            strict=True,
        )
    }

    def place(path: Any, value: Any) -> jax.Array:
        dtype, placement = wanted[sharding.path_string(path)]
        return sharding.place_like(np.asarray(value, dtype), placement)

    loaded = jax.tree_util.tree_map_with_path(place, task.pretrained(abstract))
    state["params"] = sharding.replace_leaves(state["params"], loaded)
    if "ema" in state:
        state["ema"] = sharding.replace_leaves(state["ema"], ema.start(loaded))
    return state


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, config: ConfigDict, num_train_steps: int
) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """Builds the step of a task.

    Args:
      task: provides ``loss`` and ``constrain``.
      optimizer: from ``optim.make_optimizer``.
      config: the config of the run; ``config.optimizer`` is read.
      num_train_steps: length of the schedule, for the reported learning rate.

    Returns:
      A pure function of the state, a batch and the run's key. The key is the same at every step; it
      is an argument so that runs with different seeds share one compiled program. The metrics are
      float32 scalars, among them ``loss``, ``grad_norm`` (before clipping) and ``learning_rate``.
    """
    schedule = optim.learning_rate_schedule(config.optimizer, num_train_steps)
    frozen, decay = tuple(config.optimizer.frozen), config.optimizer.ema_decay

    def loss(params: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if frozen:  # no gradients of frozen parameters
            mask = optim.path_mask(params, frozen)
            params = jax.tree.map(
                lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, mask
            )
        return task.loss(params, batch, rng)

    grad = jax.value_and_grad(loss, has_aux=True)

    def train_step(
        state: State, batch: Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        rng = jax.random.fold_in(key, state["step"])
        params = state["params"]
        (value, metrics), grads = grad(params, batch, rng)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        statistics = metrics.pop("statistics", {})
        params = sharding.replace_leaves(optax.apply_updates(params, updates), statistics)
        params = task.constrain(params)
        metrics = {
            **metrics,
            "loss": value,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": schedule(state["step"]),
        }
        new_state = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        if decay:
            new_state["ema"] = ema.update(state["ema"], params, decay, new_state["step"])
        return new_state, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}

    return train_step


class TrainStep:
    """The train step of a task on a mesh, ready to be lowered and compiled.

    Attributes:
      mesh: the devices.
      abstract_state: shapes and dtypes of the state.
      shardings: the sharding of every array of the state.
    """

    def __init__(self, task: Task, config: ConfigDict, num_train_steps: int, mesh: Mesh) -> None:
        self._task, self._config, self.mesh = task, config, mesh
        self._num_train_steps = num_train_steps
        self._optimizer = optim.make_optimizer(config.optimizer, num_train_steps)
        self._batch = task.batch_spec(config.batch_size)
        self._abstract_key = jax.eval_shape(lambda: jax.random.key(config.seed))
        self.abstract_state: State = jax.eval_shape(self.init, self._abstract_key)
        self.shardings = sharding.state_shardings(self.abstract_state, task.parameter_axes, mesh)

    def key(self) -> jax.Array:
        """The key that all randomness of the run derives from, on every device."""
        make = jax.jit(
            lambda: jax.random.key(self._config.seed), out_shardings=sharding.replicated(self.mesh)
        )
        return make()

    def init(self, key: jax.Array) -> State:
        """The state before the first step."""
        return init_state(self._task, self._optimizer, self._config, key)

    def lower(self) -> jax.stages.Lowered:
        """The lowered step; it donates the memory of its input state."""
        everywhere = sharding.replicated(self.mesh)
        step = jax.jit(
            make_train_step(self._task, self._optimizer, self._config, self._num_train_steps),
            in_shardings=(self.shardings, sharding.batch_sharding(self.mesh), everywhere),
            out_shardings=(self.shardings, everywhere),
            donate_argnums=0,
            compiler_options=xla_options.options(self.mesh),
        )
        with jax.set_mesh(self.mesh):  # for code written per device, such as the losses
            return step.lower(self.abstract_state, self._batch, self._abstract_key)

    def model_flops(self) -> float:
        """FLOPs of the mathematics of one step, without recomputation."""
        # the backward pass has two matrix products for each one of the forward pass
        return 3 * flops.matmul_flops(
            self._task.loss, self.abstract_state["params"], self._batch, self._abstract_key
        )
