"""Runs of several stages, such as pretraining, each in the work directory of the final run.

``config.stages`` maps the name of a stage to its task and to the keys in which it differs from the
run; it inherits all other keys. A stage is a complete run, with checkpoints, results and report, in
WORKDIR/stages/NAME; a later stage, or the run, starts from it by ``config.init`` and
``stage:NAME``.
"""

from __future__ import annotations

import copy
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from input_pipeline.io.files import AnyPath
from unimed_jax import config as config_lib

FOLDER = "stages"
_NOT_INHERITED = ("task", "stages", "evals", "init")
_LENGTH = ("num_train_steps", "num_epochs")


def directory(workdir: AnyPath, name: str) -> AnyPath:
    """The work directory of a stage."""
    return workdir / FOLDER / name


def derived(config: ConfigDict, name: str, corpus: AnyPath) -> ConfigDict:
    """The config of a stage.

    Args:
      config: the config of the run.
      name: the name of the stage.
      corpus: the corpus of the run, which the stage reads as well.

    Raises:
      ConfigError: ``config.stages`` has a key that the stage's task does not have.
    """
    changes = config.stages[name].to_dict()
    stage = config_lib.base_config(changes.pop("task"))
    with stage.unlocked():
        for key in stage:
            if key in config and key not in _NOT_INHERITED:
                stage[key] = copy.deepcopy(config[key])
        stage.data.raw = ConfigDict()
        stage.data.root = str(corpus)
        stage.checkpoint.best_metric = ""
    if any(key in changes for key in _LENGTH):
        changes = {"num_train_steps": 0, "num_epochs": 0.0, **changes}
    for key, value in _leaves(changes):
        try:
            config_lib.assign(stage, key, value)
        except ConfigError as error:
            raise ConfigError(f"config.stages.{name}: {error}") from error
    return stage


def _leaves(changes: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in changes.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def is_finished(stage: ConfigDict, workdir: AnyPath) -> bool:
    """Whether a stage with this config has finished."""
    path = workdir / "config.json"
    if not path.is_file() or not (workdir / "results.json").is_file():
        return False
    return not config_lib.differences(config_lib.from_json(path.read_text()), stage)
