"""The kinds of evaluators of a dual encoder: to add one is to add it here."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.io.errors import ConfigError
from unimed_jax import config as config_lib
from unimed_jax.evals.embeddings import Features
from unimed_jax.evals.probes import FewShot, LinearProbe
from unimed_jax.evals.retrieval import Retrieval
from unimed_jax.evals.zero_shot import ZeroShot
from unimed_jax.training.task import Evaluator

KINDS = {
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "few_shot": FewShot,
    "retrieval": Retrieval,
}


def complete(name: str, settings: Mapping[str, Any]) -> ConfigDict:
    """The settings of ``config.evals.NAME`` with the defaults of their kind.

    Raises:
      ConfigError: the kind or a key is unknown, or a value has another type.
    """
    kind = settings.get("kind", name)
    if kind not in KINDS:
        raise ConfigError(f"config.evals.{name}.kind={kind!r}; valid: {', '.join(KINDS)}")
    config = ConfigDict({"evals": {name: {"kind": kind, **KINDS[kind].DEFAULTS}}})
    for key, value in settings.items():
        config_lib.assign(config, f"evals.{name}.{key}", value)
    return config.evals[name]


def create(evals: Mapping[str, Mapping[str, Any]], features: Features) -> dict[str, Evaluator]:
    """The evaluators of ``config.evals`` by name; all read their embeddings from `features`.

    Raises:
      UserError: a setting or a corpus is not what it should be.
    """
    made = {}
    for name, given in evals.items():
        settings = complete(name, given)
        made[name] = KINDS[settings.kind](settings, features)
    return made
