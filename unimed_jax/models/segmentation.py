"""2-D segmentation networks with a projector to the text space, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.losses.contrastive import normalize
from unimed_jax.models import registry
from unimed_jax.models.conv import CONV_2D_AXES, BatchNorm, Conv, max_pool
from unimed_jax.models.functional import Functional, Params, axes_under, statistics
from unimed_jax.models.resnet import RESNET34_WIDTHS
from unimed_jax.models.unet import UNetConfig

_STYLE_CHANNELS, _STYLE_WIDTH = 8, 1024
_PROJECTOR_AXES = (
    (r"^linear_out/kernel$", (None, "joint")),
    (r"^linear_out/bias$", ("joint",)),
    *CONV_2D_AXES,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmentationOutput:
    """Output of a forward pass.

    Attributes:
      logits: float32 (B, H, W, outputs).
      tokens: (B, P, text_dim), the deepest features in the text space, row-major; None without a
        text projector.
      stem: (B, h, w, C), the first features before they are split into content and style.
    """

    logits: jax.Array
    tokens: jax.Array | None
    stem: jax.Array


class StyleProjector(nnx.Module):
    """Projects first features to a unit vector, to compare content and style of two views."""

    parameter_axes = _PROJECTOR_AXES

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        self.conv = Conv(config.width(RESNET34_WIDTHS[0]), _STYLE_CHANNELS, 3, rngs, bias=True)
        self.bn = BatchNorm(_STYLE_CHANNELS, rngs)
        inputs = _STYLE_CHANNELS * (config.image_size // 4) ** 2
        self.linear_out = nnx.Linear(inputs, _STYLE_WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H/2, W/2, C) -> (B, 1024)."""
        x = max_pool(nnx.relu(self.bn(self.conv(x), train)), 2, 2, 0)
        return normalize(self.linear_out(x.reshape(len(x), -1)))


class TextProjector(nnx.Module):
    """Projects the deepest features to the text space by one linear layer."""

    parameter_axes = _PROJECTOR_AXES

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.linear_out = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h w, outputs)."""
        return self.linear_out(x.reshape(len(x), -1, x.shape[-1]))


class _Network(nnx.Module):
    """A 2-D network and its projectors."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        network = registry.NETWORKS_2D[config.network]
        self.network = network(config, rngs)
        if config.text_dim:
            self.text_projector = TextProjector(self.network.deepest_width, config.text_dim, rngs)
        if config.channel_prompts:
            self.style_projector = StyleProjector(config, rngs)


class SegmentationModel:
    """A 2-D network and its projectors.

    The model holds no parameters: ``init`` returns them and the other methods take them. Running
    statistics are leaves of the same dict, with paths that match ``conv.STATISTICS``; a call in
    training returns new ones.
    """

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        network = registry.NETWORKS_2D[config.network]
        self.stride = network.stride(config)
        self._functional = Functional(lambda rngs: _Network(config, rngs))
        self.parameter_axes: ParameterAxes = (
            *axes_under("network", network.parameter_axes),
            *axes_under("text_projector", TextProjector.parameter_axes),
            *axes_under("style_projector", StyleProjector.parameter_axes),
        )

    def init(self, key: jax.Array) -> Params:
        """Random parameters and initial statistics, float32, as a pure function of the key."""
        return self._functional.init(key)

    def apply(
        self, params: Params, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[SegmentationOutput, Params]:
        """Runs a forward pass.

        Args:
          params: parameters and statistics, as from ``init``.
          images: float32 (B, H, W, in_channels), normalized.
          train: normalize by the batch and enable stochastic depth.
          key: random key of stochastic depth; None disables it.

        Returns:
          The output, and the new statistics as a sub-tree of ``params``.
        """
        module = self._functional.bind(params)
        logits, deepest, stem = module.network(images, train, key)
        tokens = module.text_projector(deepest) if self.config.text_dim else None
        return SegmentationOutput(logits, tokens, stem), statistics(module)

    def content_and_style(
        self, params: Params, stem: jax.Array
    ) -> tuple[jax.Array, jax.Array, Params]:
        """Projects the content and the style of first features.

        Gradients reach the channel prompts and the projector, but not the stem.

        Returns:
          Content (B, 1024), style (B, 1024), and the new statistics.
        """
        module = self._functional.bind(params)
        share = module.network.content_share()
        stem = jax.lax.stop_gradient(stem)
        content = module.style_projector(stem * share, True)
        style = module.style_projector(stem * (1 - share), True)
        return content, style, statistics(module)
