"""Networks for volumes as pure functions on plain dicts: logits, and the order of sub-volumes.

A network is UNETR or UNETR++; four linear heads on its encoder tell which sub-volume stands where
(learnable weight initialisation, arXiv 2306.09320). Volumes are (B, D, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.parameters import PARAMETER_AXES as _TRANSFORMER_AXES
from unimed_jax.models.unetr import UNETR, UNETRConfig
from unimed_jax.models.unetr_pp import UNETRPP, UNETRPPConfig

Params = dict[str, Any]

NETWORKS = {"unetr": (UNETRConfig, UNETR), "unetr_pp": (UNETRPPConfig, UNETRPP)}

PARAMETER_AXES = (
    *(rule for rule in _TRANSFORMER_AXES if rule[0].startswith("blocks/")),
    (r"patch_embedding/kernel$", ("patch", "embed")),
    (r"positional_embedding$", ("positions", "embed")),
    (r"qkvv/kernel$", ("embed", None, "heads", "head_dim")),
    (r"project_(keys|values)/kernel$", ("positions", None)),
    (r"out_(spatial|channel)/kernel$", (None, "embed")),
    (r"temperature_(channel|spatial)$", ("heads",)),
    (r"order_heads/head\d/kernel$", (None, None)),
    (r"kernel$", (None, None, None, None, "embed")),
    (r"(bias|scale|gamma|mean|var)$", (None,)),
)
"""Logical axes of the parameters and statistics; see models/parameters.py."""


@dataclass(frozen=True)
class VolumetricConfig:
    """A network, its input and its outputs.

    Attributes:
      network: of `NETWORKS`.
      sizes: of the network.
      crop: voxels (D, H, W) of the input.
      in_channels: of the input.
      num_outputs: channels of every output.
      order_slots: sub-volumes whose order the heads tell; 0: no heads.
      order_grouping: see `pool_slots`.
    """

    network: str
    sizes: UNETRConfig | UNETRPPConfig
    crop: tuple[int, int, int]
    in_channels: int = 1
    num_outputs: int = 2
    order_slots: int = 0
    order_grouping: str = "depth"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
      logits: float32 (B, d, h, w, outputs) of every output, that at full resolution first.
      order: float32 (B, T, T) of every stage: slot, sub-volume; empty without heads.
    """

    logits: list[jax.Array]
    order: list[jax.Array]


GROUPINGS = ("depth", "width", "modulo")


def pool_slots(features: jax.Array, slots: int, grouping: str) -> jax.Array:
    """The mean feature of every slot: (B, d, h, w, C) -> (B, slots, C).

    ``depth``: slot n is the n-th slab along the axis that was shuffled. The released code groups
    otherwise, so that a slot's mean holds all depths: UNETR's by slabs along the last axis
    (``width``), UNETR++'s by the flat index of a position modulo the slots (``modulo``).
    """
    batch, channels = len(features), features.shape[-1]
    if grouping == "modulo":
        return features.reshape(batch, -1, slots, channels).mean(1)
    if grouping == "width":
        features = jnp.moveaxis(features, 3, 1)
    return features.reshape(batch, slots, -1, channels).mean(2)


class _OrderHeads(nnx.Module):
    """A linear layer per stage, the same for all slots."""

    def __init__(self, config: VolumetricConfig, rngs: nnx.Rngs) -> None:
        self.slots, self.grouping = config.order_slots, config.order_grouping
        for index, width in enumerate(config.sizes.stage_widths):
            setattr(self, f"head{index}", nnx.Linear(width, self.slots, rngs=rngs))

    def __call__(self, stages: list[jax.Array]) -> list[jax.Array]:
        return [
            getattr(self, f"head{index}")(pool_slots(features, self.slots, self.grouping))
            for index, features in enumerate(stages)
        ]


class _Whole(nnx.Module):
    def __init__(self, config: VolumetricConfig, rngs: nnx.Rngs) -> None:
        network = NETWORKS[config.network][1]
        self.network = network(
            config.sizes, config.crop, config.in_channels, config.num_outputs, rngs
        )
        self.order_heads = _OrderHeads(config, rngs) if config.order_slots else None


class VolumetricModel:
    """A network with or without order heads. Nothing here holds parameters: `init` returns them."""

    def __init__(self, config: VolumetricConfig) -> None:
        self.config = config
        abstract = nnx.eval_shape(lambda: _Whole(config, nnx.Rngs(0)))
        self._graphdef, _ = nnx.split(abstract)

    def init(self, key: jax.Array) -> Params:
        """Random parameters and fresh statistics, float32; a function of the key alone."""
        return nnx.to_pure_dict(nnx.state(_Whole(self.config, nnx.Rngs(key))))

    def apply(
        self, params: Params, volumes: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[Output, Params]:
        """A forward pass.

        Args:
          params: from `init`.
          volumes: float32 (B, D, H, W, in_channels).
          train: normalise by the batch.
          key: of this pass, for dropout; None: nothing is dropped.

        Returns:
          the output, and the statistics after it, a sub-tree of ``params`` (empty without any).
        """
        whole = nnx.merge(self._graphdef, params)
        logits, stages = whole.network(volumes, train, key)
        order = [] if whole.order_heads is None else whole.order_heads(stages)
        return Output(logits, order), nnx.to_pure_dict(nnx.state(whole, nnx.BatchStat))
