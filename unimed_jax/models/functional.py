"""Flax NNX modules as pure functions of a nested dict of arrays; NNX ends here.

A model outside this package is a set of pure functions: ``init`` returns the parameters and every
other function takes them. Running statistics, where a module has them, are leaves of the same dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.random_streams import random_streams

Params = dict[str, Any]
"""A nested dict of arrays: the parameters and running statistics of a model."""


class Functional:
    """A module class and its arguments, without any parameters.

    Attributes:
      graphdef: the static structure of the module.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]) -> None:
        """
        Args:
          make: builds the module from random number streams.
        """
        self._make = make
        self.graphdef, self._abstract = nnx.split(
            nnx.eval_shape(lambda: make(random_streams(jax.random.key(0))))
        )

    @property
    def has_statistics(self) -> bool:
        """Whether the module holds state besides its parameters."""
        return bool(jax.tree.leaves(nnx.filter_state(self._abstract, nnx.Not(nnx.Param))))

    def init(self, key: jax.Array) -> Params:
        """Random parameters and initial statistics, a function of the key alone.

        Pure: ``jax.eval_shape(functional.init, key)`` gives the shapes without memory, and
        ``jax.jit(functional.init, out_shardings=...)`` creates each array on its devices.
        """
        return nnx.to_pure_dict(nnx.state(self._make(random_streams(key))))

    def bind(self, params: Params) -> Any:
        """The module with these parameters, to be called."""
        return nnx.merge(self.graphdef, params)


def statistics(module: nnx.Module) -> Params:
    """The running statistics of a bound module, a sub-tree of its parameters (empty without any).

    A call in training replaces them.
    """
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def axes_under(prefix: str, rules: ParameterAxes) -> ParameterAxes:
    """The rules of a submodule as rules of the module that holds it at ``prefix``.

    Args:
      prefix: path of the submodule, such as ``visual``.
      rules: (regular expression over the path within the submodule, logical axis of each dim).
    """
    return tuple(
        (f"^{prefix}/" + (pattern[1:] if pattern.startswith("^") else f".*{pattern}"), axes)
        for pattern, axes in rules
    )
