"""EfficientNet (arXiv 1905.11946) as an encoder, with the stages of B2."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.conv import BatchNorm, Conv, Padding
from unimed_jax.models.dropout import Dropout

_MOMENTUM, _EPSILON = 0.99, 1e-3
STEM_WIDTH = 32


@dataclass(frozen=True)
class MBConvStage:
    """A stage of equal blocks; only the first block has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


B2_STAGES = (
    MBConvStage(2, 3, 1, 1, 16),
    MBConvStage(3, 3, 2, 6, 24),
    MBConvStage(3, 5, 2, 6, 48),
    MBConvStage(4, 3, 2, 6, 88),
    MBConvStage(4, 5, 1, 6, 120),
    MBConvStage(5, 5, 2, 6, 208),
    MBConvStage(2, 3, 1, 6, 352),
)


class MBConv(nnx.Module):
    """Inverted bottleneck with squeeze-and-excitation (arXiv 1801.04381, arXiv 1709.01507)."""

    def __init__(
        self,
        inputs: int,
        stage: MBConvStage,
        stride: int,
        drop: float,
        same: bool,
        rngs: nnx.Rngs,
    ) -> None:
        hidden, squeezed = inputs * stage.expansion, max(1, inputs // 4)
        padding: Padding | None = "SAME" if same else None
        self.expands = stage.expansion > 1
        if self.expands:
            self.expand_conv = Conv(inputs, hidden, 1, rngs)
            self.expand_bn = BatchNorm(hidden, rngs, _MOMENTUM, _EPSILON)
        self.depthwise_conv = Conv(
            hidden, hidden, stage.kernel, rngs, stride=stride, padding=padding, groups=hidden
        )
        self.depthwise_bn = BatchNorm(hidden, rngs, _MOMENTUM, _EPSILON)
        self.squeeze = Conv(hidden, squeezed, 1, rngs, bias=True)
        self.excite = Conv(squeezed, hidden, 1, rngs, bias=True)
        self.project_conv = Conv(hidden, stage.width, 1, rngs)
        self.project_bn = BatchNorm(stage.width, rngs, _MOMENTUM, _EPSILON)
        self.adds, self.drop = stride == 1 and inputs == stage.width, drop

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        y = x
        if self.expands:
            y = nnx.swish(self.expand_bn(self.expand_conv(y), train))
        y = nnx.swish(self.depthwise_bn(self.depthwise_conv(y), train))
        mean = jnp.mean(y, axis=(1, 2), keepdims=True)
        y = y * jax.nn.sigmoid(self.excite(nnx.swish(self.squeeze(mean))))
        y = self.project_bn(self.project_conv(y), train)
        if not self.adds:
            return y
        # stochastic depth: the branch is dropped for whole images
        kept = Dropout(self.drop, key if train else None)(jnp.ones((len(y), 1, 1, 1), y.dtype))
        return x + y * kept


class EfficientNetEncoder(nnx.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input size, without the head."""

    def __init__(
        self,
        in_channels: int,
        stages: tuple[MBConvStage, ...],
        stem_width: int,
        drop: float,
        same: bool,
        rngs: nnx.Rngs,
    ) -> None:
        """Creates an encoder.

        Args:
          in_channels: channels of the images.
          stages: the stages of blocks.
          stem_width: output channels of the stem.
          drop: drop probability of the last block; it grows linearly from 0 at the first.
          same: pad as TensorFlow does, which the published weights expect; else symmetrically.
          rngs: random keys.
        """
        self.stem_conv = Conv(
            in_channels, stem_width, 3, rngs, stride=2, padding="SAME" if same else None
        )
        self.stem_bn = BatchNorm(stem_width, rngs, _MOMENTUM, _EPSILON)
        total = sum(stage.blocks for stage in stages)
        inputs, index = stem_width, 0
        taps, widths = [], [stem_width]
        for number, stage in enumerate(stages):
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                setattr(
                    self,
                    f"block{index}",
                    MBConv(inputs, stage, stride, drop * index / total, same, rngs),
                )
                inputs, index = stage.width, index + 1
            # the deepest features of each resolution
            if number + 1 == len(stages) or stages[number + 1].stride > 1:
                taps.append(index - 1)
                widths.append(stage.width)
        # the first stages keep the resolution of the stem, which is the skip at that resolution
        self.taps, self.widths = tuple(taps[1:]), (stem_width, *widths[2:])
        self.num_blocks = total

    def stem(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/2, W/2, stem width), before the norm."""
        return self.stem_conv(x)

    def features(self, stem: jax.Array, train: bool, key: jax.Array | None) -> list[jax.Array]:
        """Five feature maps from high to low resolution, with ``widths`` channels."""
        keys = [None] * self.num_blocks if key is None else jax.random.split(key, self.num_blocks)
        x = nnx.swish(self.stem_bn(stem, train))
        maps = [x]
        for index in range(self.num_blocks):
            x = getattr(self, f"block{index}")(x, train, keys[index])
            if index in self.taps:
                maps.append(x)
        return maps
