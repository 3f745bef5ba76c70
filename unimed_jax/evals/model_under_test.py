"""The model that an evaluation measures: a run, or imported weights with a matching config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.io.files import AnyPath
from unimed_jax import config as config_lib
from unimed_jax.distributed import sharding
from unimed_jax.training.task import Params, Task
from unimed_jax.weights.checkpoint import CheckpointReader, is_ours
from unimed_jax.weights.loader import open_weights
from unimed_jax.weights.pretrained import part_of
from unimed_jax.weights.uri import resolve


@dataclasses.dataclass(frozen=True)
class ModelUnderTest:
    """A model to evaluate.

    Attributes:
      title: name in the log and the report.
      config: config of the run; for imported weights, the default config with their model section
        and tokenizer.
      workdir: work directory of the run, the base of relative paths in ``config``.
      parts: available parts of "visual", "text" and "logits"; None: all parameters of the task.
      read: (abstract parameters, shardings) -> parameters with these shardings.
    """

    title: str
    config: ConfigDict
    workdir: str
    parts: tuple[str, ...] | None
    read: Callable[[Any, Any], Params]

    def params(self, task: Task, mesh: Mesh) -> Params:
        """Reads the available parameters, sharded over a mesh."""
        abstract = jax.eval_shape(task.init, jax.random.key(0))
        if self.parts is not None:
            abstract = {key: x for key, x in abstract.items() if part_of(key) in self.parts}
        state = {"params": abstract}
        shardings = sharding.state_shardings(state, task.parameter_axes, mesh)
        return self.read(abstract, shardings["params"])


def open_model(
    uri: str, out: AnyPath, model: Mapping[str, Any], weights: str | None = None
) -> ModelUnderTest:
    """Opens a work directory or checkpoint of unimed_jax, or any weights that can be imported.

    Args:
      uri: see ``weights.loader.open_weights``.
      out: directory of the results, also the work directory of imported weights.
      model: values of dotted keys below ``config.model``.
      weights: see ``weights.loader.open_weights``.

    Raises:
      UserError: the path does not exist or cannot be read as a model.
    """
    path = resolve(uri)
    if is_ours(path):
        reader = CheckpointReader(path, weights=weights)
        config = reader.config
        for key, value in model.items():
            config_lib.assign(config, f"model.{key}", value)
        return ModelUnderTest(
            title=f"{reader.workdir.name}, step {reader.step}"
            + (f" ({reader.weights})" if reader.holds_ema else ""),
            config=config,
            workdir=str(reader.workdir),
            parts=tuple(reader.meta["parts"]) if "parts" in reader.meta else None,
            read=reader.params,
        )
    pretrained = open_weights(uri, weights=weights)
    model_config = pretrained.model_config(model)
    config = config_lib.base_config("contrastive")
    config.model.update(dataclasses.asdict(model_config))
    config.tokenizer = pretrained.tokenizer
    return ModelUnderTest(
        title=uri,
        config=config,
        workdir=str(out),
        parts=tuple(pretrained.parts),
        read=lambda abstract, shardings: sharding.place_like(
            pretrained.params(abstract, model_config), shardings
        ),
    )
