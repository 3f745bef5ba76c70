"""EfficientNet (arXiv 1905.11946) as an encoder; the stages are those of B2."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.conv import BatchNorm, Conv, Padding
from unimed_jax.models.dropout import Dropout

_KEEP, _EPSILON = 0.99, 1e-3
STEM_WIDTH = 32


@dataclass(frozen=True)
class MBConvStage:
    """Blocks of one shape; only the first has the stride."""

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
    """Inverted bottleneck with squeeze and excitation: expand 1 x 1, depthwise, excite, project."""

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
            self.expand_bn = BatchNorm(hidden, rngs, _KEEP, _EPSILON)
        self.depthwise_conv = Conv(
            hidden, hidden, stage.kernel, rngs, stride=stride, padding=padding, groups=hidden
        )
        self.depthwise_bn = BatchNorm(hidden, rngs, _KEEP, _EPSILON)
        self.squeeze = Conv(hidden, squeezed, 1, rngs, bias=True)
        self.excite = Conv(squeezed, hidden, 1, rngs, bias=True)
        self.project_conv = Conv(hidden, stage.width, 1, rngs)
        self.project_bn = BatchNorm(stage.width, rngs, _KEEP, _EPSILON)
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
        # whole branches are dropped (stochastic depth): one decision per image
        kept = Dropout(self.drop, key if train else None)(jnp.ones((len(y), 1, 1, 1), y.dtype))
        return x + y * kept


class EfficientNetEncoder(nnx.Module):
    """Features of 1/2, 1/4, 1/8, 1/16 and 1/32 of the side; the head convolution is left out."""

    def __init__(
        self,
        in_channels: int,
        stages: tuple[MBConvStage, ...],
        stem_width: int,
        drop: float,
        same: bool,
        rngs: nnx.Rngs,
    ) -> None:
        """`drop`: probability that the last block is dropped, growing linearly from 0 at the first.
        `same`: TensorFlow's padding, as the published weights have it, or torch's symmetric one.
        """
        self.stem_conv = Conv(
            in_channels, stem_width, 3, rngs, stride=2, padding="SAME" if same else None
        )
        self.stem_bn = BatchNorm(stem_width, rngs, _KEEP, _EPSILON)
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
            # the deepest features of each size
            if number + 1 == len(stages) or stages[number + 1].stride > 1:
                taps.append(index - 1)
                widths.append(stage.width)
        # the first group of stages keeps the stem's size: there the stem is the skip
        self.taps, self.widths = tuple(taps[1:]), (stem_width, *widths[2:])
        self.num_blocks = total

    def stem(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/2, W/2, stem width), before the norm."""
        return self.stem_conv(x)

    def features(self, stem: jax.Array, train: bool, key: jax.Array | None) -> list[jax.Array]:
        """Five feature maps, the largest first; their widths are ``widths``."""
        keys = [None] * self.num_blocks if key is None else jax.random.split(key, self.num_blocks)
        x = nnx.swish(self.stem_bn(stem, train))
        found = [x]
        for index in range(self.num_blocks):
            x = getattr(self, f"block{index}")(x, train, keys[index])
            if index in self.taps:
                found.append(x)
        return found
