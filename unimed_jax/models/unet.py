"""U-Nets for 2-D segmentation.

Two host networks (docs/guides/segmentation.md): a ResNet with channel prompts, which split its
first features into content and style (CCSDG, MICCAI 2023), and an EfficientNet with the decoder of
segmentation-models (SLAug, arXiv 2211.05868). The third uses the image tower of a dual encoder,
which may be pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.config import ModelConfig, VisualConfig
from unimed_jax.models.conv import CONV_2D_AXES, BatchNorm, Conv, UpConv, double_size
from unimed_jax.models.efficientnet import (
    B2_STAGES,
    STEM_WIDTH,
    EfficientNetEncoder,
    MBConvStage,
)
from unimed_jax.models.functional import axes_under
from unimed_jax.models.resnet import RESNET34_BLOCKS, RESNET34_WIDTHS, ResNetEncoder
from unimed_jax.models.vit import VisionTransformer

_PROMPT_TEMPERATURE = 0.1
_NUM_SKIPS = 3  # of ViTUNet


@dataclass(frozen=True)
class UNetConfig:
    """A 2-D network and its sizes.

    Attributes:
      network: a key of ``registry.NETWORKS_2D``.
      image_size: side of the input in pixels, a multiple of the network's stride.
      in_channels: channels of the input.
      num_outputs: channels of the logits.
      text_dim: width of the text vectors; 0: no projector and no tokens.
      width_factor: factor of all channel counts but ``num_outputs``, rounded to multiples of 8.
      blocks: blocks in each of the four stages of the ResNet.
      channel_prompts: split the first features of the ResNet into content and style.
      drop_path: see EfficientNetEncoder.
      same_padding: see EfficientNetEncoder.
      tower: image tower of "vit"; ``image_size`` above replaces its image size, and
        ``width_factor`` does not apply to it.
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

    def tower_model(self) -> ModelConfig:
        """The dual encoder whose image tower is the encoder of "vit"."""
        return ModelConfig(visual=replace(self.tower, image_size=self.image_size))

    def width(self, channels: int) -> int:
        """A channel count after scaling."""
        if self.width_factor == 1.0:
            return channels
        return max(8, 8 * round(channels * self.width_factor / 8))


class UNet(nnx.Module):
    """Base class of 2-D networks: an encoder and a decoder.

    Attributes:
      parameter_axes: logical axes of the parameters and statistics, relative to the network.
      has_image_tower: whether the encoder is the image tower of a dual encoder, for RGB images.
      has_channel_prompts: whether the network can split its first features into content and style.
      deepest_width: channels of the deepest features.
    """

    parameter_axes: ClassVar[ParameterAxes] = CONV_2D_AXES
    has_image_tower: ClassVar[bool] = False
    has_channel_prompts: ClassVar[bool] = False
    deepest_width: int

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        raise NotImplementedError

    @staticmethod
    def stride(config: UNetConfig) -> int:
        """Downsampling factor of the deepest features, in pixels."""
        del config
        return 32

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs a forward pass.

        Args:
          x: images, float32 (B, H, W, in_channels), normalized.
          train: normalize by the batch and enable stochastic depth.
          key: random key of stochastic depth; None disables it.

        Returns:
          Logits (B, H, W, outputs), the deepest features (B, h, w, deepest_width), and the first
          features (B, h', w', C) before they are split into content and style.
        """
        raise NotImplementedError


class SumDecoderBlock(nnx.Module):
    """The decoder block of CCSDG: BN(relu([up(x), conv1x1(skip)])), half of the channels each."""

    def __init__(self, inputs: int, skip: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.up = UpConv(inputs, outputs // 2, rngs)
        self.skip_conv = Conv(skip, outputs // 2, 1, rngs, bias=True)
        self.bn = BatchNorm(outputs, rngs)

    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        joined = jnp.concatenate([self.up(x), self.skip_conv(skip)], axis=-1)
        return self.bn(nnx.relu(joined), train)


class ConcatDecoderBlock(nnx.Module):
    """The decoder block of segmentation-models: upsample, concatenate, two 3 x 3 convolutions."""

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


class ResNetUNet(UNet):
    """ResNet encoder with channel prompts and a light decoder (CCSDG)."""

    parameter_axes = ((r"^channel_prompt$", (None, None)), *CONV_2D_AXES)
    has_channel_prompts = True

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        widths = tuple(config.width(w) for w in RESNET34_WIDTHS)
        self.encoder = ResNetEncoder(config.in_channels, config.blocks, widths, rngs)
        if config.channel_prompts:
            self.channel_prompt = nnx.Param(jax.random.normal(rngs.params(), (2, widths[0])))
        self.uses_prompts = config.channel_prompts
        self.deepest_width = self.encoder.widths[-1]
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
        content = stem * self.content_share() if self.uses_prompts else stem
        *skips, x = self.encoder.features(content, train)
        deepest = x
        for index, skip in enumerate(skips[::-1]):
            x = getattr(self, f"decoder{index}")(x, skip, train)
        return self.head(x), deepest, stem

    def content_share(self) -> jax.Array:
        """Share of content in each channel of the first features, (C,); the rest is style."""
        return jax.nn.softmax(self.channel_prompt[...] / _PROMPT_TEMPERATURE, axis=0)[0]


class EfficientUNet(UNet):
    """EfficientNet encoder with the decoder of segmentation-models (SLAug)."""

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        stages = tuple(
            MBConvStage(s.blocks, s.kernel, s.stride, s.expansion, config.width(s.width))
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
        inputs = self.deepest_width = self.encoder.widths[-1]
        skips = (*self.encoder.widths[-2::-1], 0)
        for index, (skip, width) in enumerate(zip(skips, (256, 128, 64, 32, 16), strict=True)):
            outputs = config.width(width)
            setattr(self, f"decoder{index}", ConcatDecoderBlock(inputs, skip, outputs, rngs))
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


class ViTUNet(UNet):
    """The image tower of a dual encoder with the light decoder.

    The skips are the outputs after a quarter, half and three quarters of the blocks, upsampled to
    the resolution of the decoder, as in UNETR (arXiv 2103.10504).
    """

    parameter_axes = (*axes_under("encoder", VisionTransformer.parameter_axes), *CONV_2D_AXES)
    has_image_tower = True

    @staticmethod
    def stride(config: UNetConfig) -> int:
        """The patch size of the tower, in pixels."""
        return config.tower.patch_size

    def __init__(self, config: UNetConfig, rngs: nnx.Rngs) -> None:
        self.encoder = VisionTransformer(config.tower_model(), rngs)
        del self.encoder.proj  # replaced by the projector to the text space
        layers, width, outputs = config.tower.layers, config.tower.width, config.width(256)
        self.taps = tuple(layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        inputs = self.deepest_width = width
        for index in range(_NUM_SKIPS):  # deepest first
            for step in range(index + 1):
                up = UpConv(outputs if step else width, outputs, rngs)
                setattr(self, f"skip{index}_up{step}", up)
            setattr(self, f"decoder{index}", SumDecoderBlock(inputs, outputs, outputs, rngs))
            inputs = outputs
        self.head = UpConv(
            inputs, config.num_outputs, rngs, (self.stride(config) // 2**_NUM_SKIPS,) * 2
        )

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
