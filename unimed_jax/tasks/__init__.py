"""What can be trained: one module per task, with ``default_config``, ``validate`` and ``TASK``."""

import importlib

from ml_collections import ConfigDict

from unimed_jax.training.task import Task


def create(config: ConfigDict, workdir: str) -> Task:
    """The task that ``config.task`` names: the class ``TASK`` of the module of that name."""
    module = importlib.import_module(f"unimed_jax.tasks.{config.task}")
    return module.TASK(config, workdir)
