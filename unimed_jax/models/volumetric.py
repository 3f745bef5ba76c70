"""3-D segmentation networks as pure functions: logits, and the permutation of sub-volumes.

The network is UNETR or UNETR++ (``registry.NETWORKS_3D``); four linear heads on its encoder predict
which sub-volume is at which position (learnable weight initialization, arXiv 2306.09320). Volumes
are (B, D, H, W, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models import registry
from unimed_jax.models.conv import CONV_3D_AXES
from unimed_jax.models.functional import Functional, Params, axes_under, statistics

GROUPINGS = ("depth", "width", "modulo")


@dataclass(frozen=True)
class VolumetricConfig:
    """A network, its input and its outputs.

    Attributes:
      network: an entry of ``registry.NETWORKS_3D``.
      sizes: an instance of the ``config_class`` of the network.
      crop: voxels (D, H, W) of the input.
      in_channels: channels of the input.
      num_outputs: channels of every output.
      num_sub_volumes: sub-volumes whose permutation the heads predict; 0: no heads.
      permutation_grouping: see ``pool_positions``.
    """

    network: str
    sizes: Any
    crop: tuple[int, int, int]
    in_channels: int = 1
    num_outputs: int = 2
    num_sub_volumes: int = 0
    permutation_grouping: str = "depth"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VolumetricOutput:
    """The result of a forward pass.

    Attributes:
      logits: float32 (B, d, h, w, outputs) of every output, full resolution first.
      permutation: float32 (B, T, T) of every stage: position, sub-volume; empty without heads.
    """

    logits: list[jax.Array]
    permutation: list[jax.Array]


def pool_positions(features: jax.Array, num_positions: int, grouping: str) -> jax.Array:
    """The mean feature at every position of a sub-volume: (B, d, h, w, C) -> (B, T, C).

    Args:
      features: of a stage of the encoder.
      num_positions: T, the number of sub-volumes.
      grouping: ``depth``: position n is the n-th slab along the axis that was shuffled. The
        released code groups differently, so that the mean of a position covers all depths: UNETR by
        slabs along the last axis (``width``), UNETR++ by the flat index of a voxel modulo T
        (``modulo``).
    """
    batch, channels = len(features), features.shape[-1]
    if grouping == "modulo":
        return features.reshape(batch, -1, num_positions, channels).mean(1)
    if grouping == "width":
        features = jnp.moveaxis(features, 3, 1)
    return features.reshape(batch, num_positions, -1, channels).mean(2)


class PermutationHeads(nnx.Module):
    """A linear layer per stage, shared by all positions."""

    parameter_axes = ((r"^head\d/kernel$", (None, None)), *CONV_3D_AXES)

    def __init__(self, config: VolumetricConfig, rngs: nnx.Rngs) -> None:
        self.num_positions = config.num_sub_volumes
        self.grouping = config.permutation_grouping
        for index, width in enumerate(config.sizes.stage_widths):
            setattr(self, f"head{index}", nnx.Linear(width, self.num_positions, rngs=rngs))

    def __call__(self, stages: list[jax.Array]) -> list[jax.Array]:
        """Features (B, d, h, w, C) of every stage -> logits (B, T, T) of every stage."""
        return [
            getattr(self, f"head{index}")(
                pool_positions(features, self.num_positions, self.grouping)
            )
            for index, features in enumerate(stages)
        ]


class _Network(nnx.Module):
    """A 3-D network with or without permutation heads."""

    def __init__(self, config: VolumetricConfig, rngs: nnx.Rngs) -> None:
        self.network = registry.NETWORKS_3D[config.network](
            config.sizes, config.crop, config.in_channels, config.num_outputs, rngs
        )
        # the name is part of the parameter paths of checkpoints
        self.order_heads = PermutationHeads(config, rngs) if config.num_sub_volumes else None


class VolumetricModel:
    """A network with or without permutation heads. Nothing here holds parameters: ``init`` returns
    them."""

    def __init__(self, config: VolumetricConfig) -> None:
        self.config = config
        self._functional = Functional(lambda rngs: _Network(config, rngs))
        self.parameter_axes: ParameterAxes = (
            *axes_under("network", registry.NETWORKS_3D[config.network].parameter_axes),
            *axes_under("order_heads", PermutationHeads.parameter_axes),
        )

    def init(self, key: jax.Array) -> Params:
        """Random parameters and initial statistics, float32; a function of the key alone."""
        return self._functional.init(key)

    def apply(
        self, params: Params, volumes: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[VolumetricOutput, Params]:
        """A forward pass.

        Args:
          params: from ``init``.
          volumes: float32 (B, D, H, W, in_channels).
          train: normalize by the batch.
          key: random key of this pass, for dropout; None: nothing is dropped.

        Returns:
          The output, and the statistics after it, a sub-tree of ``params`` (empty without any).
        """
        module = self._functional.bind(params)
        logits, stages = module.network(volumes, train, key)
        permutation = [] if module.order_heads is None else module.order_heads(stages)
        return VolumetricOutput(logits, permutation), statistics(module)
