"""U-Nets for segmentation with a projector to the space of texts, as pure functions on plain dicts.

Two host networks (docs/guides/segmentation.md): a ResNet whose first features are split by channel
prompts into content and style (CCSDG, MICCAI 2023), and an EfficientNet with the decoder of
segmentation-models (SLAug, arXiv 2211.05868). And one on the image tower of a dual encoder, which
can be a pretrained one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.losses.contrastive import normalize
from unimed_jax.models import parameters
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.models.conv import BatchNorm, Conv, UpConv, double_size, max_pool
from unimed_jax.models.efficientnet import B2_STAGES, STEM_WIDTH, EfficientNetEncoder, Stage
from unimed_jax.models.resnet import RESNET34_BLOCKS, RESNET34_WIDTHS, ResNetEncoder
from unimed_jax.models.vit import VisionTransformer

Params = dict[str, Any]

NETWORKS = ("resnet34", "efficientnet_b2", "vit")
_PROMPT_TEMPERATURE = 0.1
_STYLE_CHANNELS, _STYLE_WIDTH = 8, 1024
_SKIPS = 3  # of the network on an image tower

PARAMETER_AXES = (
    *(
        (p.replace("^visual/", "^network/encoder/"), axes)
        for p, axes in parameters.PARAMETER_AXES
        if p.startswith(("^visual/", "blocks/"))
    ),
    (r"linear_out/kernel$", (None, "joint")),
    (r"linear_out/bias$", ("joint",)),
    (r"kernel$", (None, None, None, "embed")),
    (r"channel_prompt$", (None, None)),
    (r"(bias|scale|mean|var)$", (None,)),
)
"""Logical axes of the parameters and statistics; see models/parameters.py."""


@dataclass(frozen=True)
class UNetConfig:
    """A network and its size.

    Attributes:
      network: of `NETWORKS`.
      image_size: side of the input, a multiple of 32.
      in_channels: of the input.
      num_outputs: channels of the logits.
      text_dim: width of the text vectors; 0: no projector, no tokens.
      width_factor: of all channel counts but the outputs', which become multiples of 8.
      blocks: of the four stages of the ResNet.
      channel_prompts: split the first features of the ResNet into content and style.
      drop_path: see EfficientNetEncoder.
      same_padding: see EfficientNetEncoder.
      tower: of "vit"; its image_size is that above. Of all widths, width_factor leaves its own.
    """

    network: str = "resnet34"
    image_size: int = 512
    in_channels: int = 3
    num_outputs: int = 2
    text_dim: int = 512
    width_factor: float = 1.0
    blocks: tuple[int, ...] = RESNET34_BLOCKS
    channel_prompts: bool = True
    drop_path: float = 0.2
    same_padding: bool = True
    tower: VisualConfig = field(default_factory=VisualConfig)

    @property
    def stride(self) -> int:
        """Pixels along a side of the patch that a token of the deepest features stands for."""
        return self.tower.patch_size if self.network == "vit" else 32

    def tower_model(self) -> ModelConfig:
        """The dual encoder whose image tower "vit" has."""
        return ModelConfig(visual=replace(self.tower, image_size=self.image_size))

    def width(self, channels: int) -> int:
        """A channel count after scaling."""
        if self.width_factor == 1.0:
            return channels
        return max(8, 8 * round(channels * self.width_factor / 8))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
      logits: float32 (B, H, W, outputs).
      tokens: (B, P, text_dim), the deepest features in the space of texts, row-major; or None.
      stem: (B, h, w, C), the first features, before they are split.
    """

    logits: jax.Array
    tokens: jax.Array | None
    stem: jax.Array


class SumDecoderBlock(nnx.Module):
    """CCSDG's: BN(relu([up(x), conv1x1(skip)])), half of the channels from each."""

    def __init__(self, inputs: int, skip: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.up = UpConv(inputs, outputs // 2, rngs)
        self.skip_conv = Conv(skip, outputs // 2, 1, rngs, bias=True)
        self.bn = BatchNorm(outputs, rngs)

    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        joined = jnp.concatenate([self.up(x), self.skip_conv(skip)], axis=-1)
        return self.bn(nnx.relu(joined), train)


class DecoderBlock(nnx.Module):
    """segmentation-models': nearest x 2, the skip beside it, two times relu(BN(conv 3 x 3))."""

    def __init__(self, inputs: int, skip: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(inputs + skip, outputs, 3, rngs)
        self.bn1 = BatchNorm(outputs, rngs)
        self.conv2 = Conv(outputs, outputs, 3, rngs)
        self.bn2 = BatchNorm(outputs, rngs)

    def __call__(self, x: jax.Array, skip: jax.Array | None, train: bool) -> jax.Array:
        x = double_size(x)
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        x = nnx.relu(self.bn1(self.conv1(x), train))
        return nnx.relu(self.bn2(self.conv2(x), train))


class ResNetUNet(nnx.Module):
    """ResNet encoder, channel prompts, light decoder."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        widths = tuple(config.width(w) for w in RESNET34_WIDTHS)
        self.encoder = ResNetEncoder(config.in_channels, config.blocks, widths, rngs)
        if config.channel_prompts:
            self.channel_prompt = nnx.Param(jax.random.normal(rngs.params(), (2, widths[0])))
        self.has_prompts = config.channel_prompts
        inputs, outputs = widths[-1], config.width(256)
        for index, skip in enumerate(self.encoder.widths[-2::-1]):
            setattr(self, f"decoder{index}", SumDecoderBlock(inputs, skip, outputs, rngs))
            inputs = outputs
        self.head = UpConv(inputs, config.num_outputs, rngs)

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del key
        stem = self.encoder.stem(x)
        content = stem * self.content_share() if self.has_prompts else stem
        *skips, x = self.encoder.features(content, train)
        deepest = x
        for index, skip in enumerate(skips[::-1]):
            x = getattr(self, f"decoder{index}")(x, skip, train)
        return self.head(x), deepest, stem

    def content_share(self) -> jax.Array:
        """Per channel of the first features, the share (C,) that is content; the rest is style."""
        return jax.nn.softmax(self.channel_prompt[...] / _PROMPT_TEMPERATURE, axis=0)[0]


class EfficientUNet(nnx.Module):
    """EfficientNet encoder and the decoder of segmentation-models."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        stages = tuple(
            Stage(s.blocks, s.kernel, s.stride, s.expansion, config.width(s.width))
            for s in B2_STAGES
        )
        self.encoder = EfficientNetEncoder(
            config.in_channels,
            stages,
            config.width(STEM_WIDTH),
            config.drop_path,
            config.same_padding,
            rngs,
        )
        inputs = self.encoder.widths[-1]
        skips = (*self.encoder.widths[-2::-1], 0)
        for index, (skip, width) in enumerate(zip(skips, (256, 128, 64, 32, 16), strict=True)):
            outputs = config.width(width)
            setattr(self, f"decoder{index}", DecoderBlock(inputs, skip, outputs, rngs))
            inputs = outputs
        self.head = Conv(inputs, config.num_outputs, 3, rngs, bias=True)

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        stem = self.encoder.stem(x)
        *skips, x = self.encoder.features(stem, train, key)
        deepest = x
        for index, skip in enumerate([*skips[::-1], None]):
            x = getattr(self, f"decoder{index}")(x, skip, train)
        return self.head(x), deepest, stem


class ViTUNet(nnx.Module):
    """A dual encoder's image tower and the light decoder, whose skips are what leaves a quarter,
    half and three quarters of the blocks (after UNETR, arXiv 2103.10504), doubled to fit."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        self.encoder = VisionTransformer(config.tower_model(), rngs)
        del self.encoder.proj  # to the space shared with texts: there is a projector for that
        layers, width, outputs = config.tower.layers, config.tower.width, config.width(256)
        self.taps = tuple(layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        inputs = width
        for index in range(_SKIPS):  # the deepest first
            for step in range(index + 1):
                up = UpConv(outputs if step else width, outputs, rngs)
                setattr(self, f"skip{index}_up{step}", up)
            setattr(self, f"decoder{index}", SumDecoderBlock(inputs, outputs, outputs, rngs))
            inputs = outputs
        self.head = UpConv(inputs, config.num_outputs, rngs, (config.stride // 2**_SKIPS,) * 2)

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del key
        *skips, x = stages = self.encoder.features(x, self.taps)
        deepest = x
        for index, skip in enumerate(skips[::-1]):
            for step in range(index + 1):
                skip = nnx.relu(getattr(self, f"skip{index}_up{step}")(skip))
            x = getattr(self, f"decoder{index}")(x, skip, train)
        return self.head(x), deepest, stages[0]


class StyleProjector(nnx.Module):
    """First features -> one vector of unit length, to compare content and style of two views."""

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
    """One linear layer from the deepest features to the space of texts."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.linear_out = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h w, outputs)."""
        return self.linear_out(x.reshape(len(x), -1, x.shape[-1]))


class _Whole(nnx.Module):
    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        networks = {"resnet34": ResNetUNet, "efficientnet_b2": EfficientUNet, "vit": ViTUNet}
        self.network = networks[config.network](config, rngs)
        if config.text_dim:
            width = (
                config.tower.width if config.network == "vit" else self.network.encoder.widths[-1]
            )
            self.text_projector = TextProjector(width, config.text_dim, rngs)
        if config.channel_prompts:
            self.style_projector = StyleProjector(config, rngs)


class SegmentationModel:
    """A U-Net and its projectors. Nothing here holds parameters: `init` returns them.

    Running statistics are leaves of the same dict, their paths end as `conv.STATISTICS` says: a
    call in training gives new ones back.
    """

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        abstract = nnx.eval_shape(lambda: _Whole(config, nnx.Rngs(0)))
        self._graphdef, _ = nnx.split(abstract)

    def init(self, key: jax.Array) -> Params:
        """Random parameters and fresh statistics, float32; a function of the key alone."""
        return nnx.to_pure_dict(nnx.state(_Whole(self.config, nnx.Rngs(key))))

    def apply(
        self, params: Params, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[Output, Params]:
        """A forward pass.

        Args:
          params: from `init`.
          images: float32 (B, H, W, in_channels), normalised.
          train: normalise by the batch, and drop paths with ``key``.
          key: of this pass.

        Returns:
          the output, and the statistics after it, a sub-tree of ``params``.
        """
        whole = nnx.merge(self._graphdef, params)
        logits, deepest, stem = whole.network(images, train, key)
        tokens = whole.text_projector(deepest) if self.config.text_dim else None
        return Output(logits, tokens, stem), _statistics(whole)

    def content_and_style(
        self, params: Params, stem: jax.Array
    ) -> tuple[jax.Array, jax.Array, Params]:
        """Projected content and style (B, 1024) of first features, and the statistics after it.

        The gradient reaches the channel prompts and the projector, not what made the features.
        """
        whole = nnx.merge(self._graphdef, params)
        share = whole.network.content_share()
        stem = jax.lax.stop_gradient(stem)
        content = whole.style_projector(stem * share, True)
        style = whole.style_projector(stem * (1 - share), True)
        return content, style, _statistics(whole)


def _statistics(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
