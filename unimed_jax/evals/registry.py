"""The evaluators by name; to add one, write its class and add it here.

Evaluators are grouped by the context they are built from; a task supports one group. A class may
also have ``CHOICES``, the valid values of keys, and ``ENTRY_DEFAULTS``, the default entries of keys
that map names to entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax.evals.probes import FewShot, LinearProbe
from unimed_jax.evals.retrieval import Retrieval
from unimed_jax.evals.segmentation.image_evaluator import ImageEvaluator
from unimed_jax.evals.segmentation.volume_evaluator import VolumeEvaluator
from unimed_jax.evals.zero_shot import ZeroShot
from unimed_jax.models.functional import Params
from unimed_jax.training.task import Evaluation, Evaluator


class RegisteredEvaluator(Protocol):
    """An evaluator with settings in ``config.evals``.

    Attributes:
      DEFAULTS: keys of its entry in ``config.evals`` with their default values.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]]

    def __init__(self, name: str, settings: ConfigDict, context: Any) -> None: ...

    def __call__(self, params: Params) -> Evaluation: ...


Registry = Mapping[str, type[RegisteredEvaluator]]
"""Name -> evaluator class; the first is the default where a config has no evaluators."""

# built from a CorpusEmbedder
DUAL_ENCODER: Registry = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "few_shot": FewShot,
    "retrieval": Retrieval,
}
# built from a SegmentationContext
IMAGE_SEGMENTATION: Registry = {"segmentation": ImageEvaluator}
VOLUME_SEGMENTATION: Registry = {"volumes": VolumeEvaluator}

EVALUATORS: Registry = {**DUAL_ENCODER, **IMAGE_SEGMENTATION, **VOLUME_SEGMENTATION}


def complete(
    name: str, settings: Mapping[str, Any], evaluators: Registry = EVALUATORS
) -> ConfigDict:
    """The settings of ``config.evals.NAME`` with the defaults of the keys that they lack.

    Args:
      name: of the entry, and of the evaluator where ``settings`` has no ``kind``.
      settings: the keys that are set.
      evaluators: those that are valid.

    Raises:
      ConfigError: the kind or a key is unknown, or a value has another type or is not possible.
    """
    kind = settings.get("kind", name)
    if kind not in evaluators:
        valid = ", ".join(evaluators) or "none, this task has no evaluators"
        raise ConfigError(f"config.evals.{name}.kind={kind!r}; valid: {valid}")
    evaluator = evaluators[kind]
    entry_defaults = getattr(evaluator, "ENTRY_DEFAULTS", {})
    given = dict(settings)
    for key in given.keys() & entry_defaults.keys():
        given[key] = {
            entry: _with_defaults(f"evals.{name}.{key}.{entry}", entry_defaults[key], values)
            for entry, values in given[key].items()
        }
    completed = _with_defaults(f"evals.{name}", {"kind": kind, **evaluator.DEFAULTS}, given)
    for key, choices in getattr(evaluator, "CHOICES", {}).items():
        valid = ", ".join(map(repr, choices))
        config_lib.require(completed[key] in choices, f"evals.{name}.{key}", completed[key], valid)
    return completed


def _with_defaults(
    key: str, defaults: Mapping[str, Any], settings: Mapping[str, Any]
) -> ConfigDict:
    """The defaults with ``settings`` assigned, each under the dotted ``key`` for messages."""
    config = ConfigDict()
    parent = config
    *outer, last = key.split(".")
    for part in outer:
        parent[part] = ConfigDict()
        parent = parent[part]
    parent[last] = ConfigDict(dict(defaults))
    for name, value in settings.items():
        config_lib.assign(config, f"{key}.{name}", value)
    return parent[last]


def validate(evals: Mapping[str, Mapping[str, Any]], evaluators: Registry) -> None:
    """Raises ConfigError naming the first key of ``config.evals`` that is not possible."""
    for name, settings in evals.items():
        complete(name, settings, evaluators)


def default(task: str, evaluators: Registry) -> ConfigDict:
    """``config.evals`` of a config without any: the default evaluator of the task.

    Raises:
      ConfigError: the task has no evaluators.
    """
    if not evaluators:
        raise ConfigError(f"the task {task} has no evaluators")
    name = next(iter(evaluators))
    return ConfigDict({name: complete(name, {}, evaluators)})


def choose(config: ConfigDict, evaluators: Registry, names: Sequence[str], prompts: str) -> None:
    """Sets ``config.evals`` for an evaluation after training.

    Args:
      config: of the run, whose evaluators are kept unless others are named.
      evaluators: those of its task.
      names: of evaluators, with their defaults, in place of the config's.
      prompts: a prompt set for every evaluator that takes one; "": theirs.

    Raises:
      ConfigError: the task does not take such an evaluator, or takes none.
    """
    with config_lib.edit(config):
        if names:
            config.evals = ConfigDict({name: complete(name, {}, evaluators) for name in names})
        elif not config.evals:
            config.evals = default(config.task, evaluators)
        for settings in config.evals.values():
            if prompts and "prompts" in settings:
                settings.prompts = prompts


def create(
    evals: Mapping[str, Mapping[str, Any]], evaluators: Registry, context: Any
) -> dict[str, Evaluator]:
    """The evaluators of ``config.evals`` by name.

    Args:
      evals: name -> settings, completed by the defaults.
      evaluators: those of the task.
      context: what their classes are built from.

    Raises:
      UserError: a setting or a corpus is not what it should be.
    """
    made: dict[str, Evaluator] = {}
    for name, given in evals.items():
        settings = complete(name, given, evaluators)
        made[name] = evaluators[settings.kind](name, settings, context)
    return made
