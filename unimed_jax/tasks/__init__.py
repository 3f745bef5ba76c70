"""The tasks, one module each, with ``default_config``, ``validate`` and the class ``TASK``."""

import importlib

from ml_collections import ConfigDict

from unimed_jax.training.task import Task


def task_class(name: str) -> type[Task]:
    """The class ``TASK`` of the module of that name."""
    return importlib.import_module(f"unimed_jax.tasks.{name}").TASK


def create(config: ConfigDict, workdir: str) -> Task:
    """The task that ``config.task`` names."""
    return task_class(config.task)(config, workdir)
