"""Residual blocks of the volumetric networks (the DynUNet block of MONAI)."""

import jax
from flax import nnx

from unimed_jax.models.conv import BatchNorm, Conv, instance_norm

_CUBE = (3, 3, 3)
_POINT = (1, 1, 1)


def leaky_relu(x: jax.Array) -> jax.Array:
    """Leaky ReLU with slope 0.01."""
    return nnx.leaky_relu(x, 0.01)


class ResidualBlock(nnx.Module):
    """lrelu(norm(conv(lrelu(norm(conv(x))))) + shortcut(x)), 3 x 3 x 3 convolutions without bias.

    The norm is an instance norm without parameters. The shortcut is a normalized 1 x 1 x 1
    convolution where the width changes, else the identity.
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(inputs, outputs, _CUBE, rngs)
        self.conv2 = Conv(outputs, outputs, _CUBE, rngs)
        self.conv3 = Conv(inputs, outputs, _POINT, rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, D, H, W, inputs) -> (B, D, H, W, outputs)."""
        y = instance_norm(self.conv2(leaky_relu(instance_norm(self.conv1(x)))))
        shortcut = x if self.conv3 is None else instance_norm(self.conv3(x))
        return leaky_relu(y + shortcut)


class BatchNormResidualBlock(nnx.Module):
    """The same block with batch normalization and a constant width."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(width, width, _CUBE, rngs)
        self.norm1 = BatchNorm(width, rngs)
        self.conv2 = Conv(width, width, _CUBE, rngs)
        self.norm2 = BatchNorm(width, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = leaky_relu(self.norm1(self.conv1(x), train))
        return leaky_relu(self.norm2(self.conv2(y), train) + x)
