"""ResNet with basic blocks (arXiv 1512.03385) as an encoder, with the sizes of ResNet-34."""

import jax
from flax import nnx

from unimed_jax.models.conv import BatchNorm, Conv, max_pool

RESNET34_BLOCKS = (3, 4, 6, 3)
RESNET34_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nnx.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)) with 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(inputs, outputs, 3, rngs, stride=stride)
        self.bn1 = BatchNorm(outputs, rngs)
        self.conv2 = Conv(outputs, outputs, 3, rngs)
        self.bn2 = BatchNorm(outputs, rngs)
        self.has_downsample = stride > 1 or inputs != outputs
        if self.has_downsample:
            self.downsample_conv = Conv(inputs, outputs, 1, rngs, stride=stride)
            self.downsample_bn = BatchNorm(outputs, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        if self.has_downsample:
            x = self.downsample_bn(self.downsample_conv(x), train)
        return nnx.relu(x + y)


class ResNetEncoder(nnx.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input size.

    ``stem`` and ``features`` are separate because channel prompts apply between them.
    """

    def __init__(
        self, in_channels: int, blocks: tuple[int, ...], widths: tuple[int, ...], rngs: nnx.Rngs
    ) -> None:
        self.conv1 = Conv(in_channels, widths[0], 7, rngs, stride=2)
        self.bn1 = BatchNorm(widths[0], rngs)
        self.names: tuple[tuple[str, ...], ...] = tuple(
            tuple(f"layer{stage}_{block}" for block in range(count))
            for stage, count in enumerate(blocks, 1)
        )
        inputs = widths[0]
        for stage, (names, outputs) in enumerate(zip(self.names, widths, strict=True)):
            for block, name in enumerate(names):
                stride = 2 if stage and not block else 1
                setattr(self, name, BasicBlock(inputs, outputs, stride, rngs))
                inputs = outputs
        self.widths = (widths[0], *widths)

    def stem(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H/2, W/2, widths[0]), before the norm."""
        return self.conv1(x)

    def features(self, stem: jax.Array, train: bool) -> list[jax.Array]:
        """Five feature maps from high to low resolution, with ``widths`` channels."""
        x = nnx.relu(self.bn1(stem, train))
        maps = [x]
        x = max_pool(x, 3, 2, 1)
        for names in self.names:
            for name in names:
                x = getattr(self, name)(x, train)
            maps.append(x)
        return maps
