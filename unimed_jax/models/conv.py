"""Layers of convolutional networks.

Images are (B, H, W, C), kernels (h, w, in, out); volumes (B, D, H, W, C), kernels
(d, h, w, in, out).

Batch normalization is over the global batch: under jit, the compiler inserts the communication
between devices. Its running statistics are variables of the module; a call in training replaces
them.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

_init = jax.nn.initializers
_he_normal = _init.variance_scaling(2.0, "fan_out", "normal")  # as in torchvision

STATISTICS = r"/(mean|var)$"
"""Regular expression over paths that matches running means and variances."""

CONV_2D_AXES = (
    (r"kernel$", (None, None, None, "embed")),
    (r"(bias|scale|mean|var)$", (None,)),
)
CONV_3D_AXES = (
    (r"kernel$", (None, None, None, None, "embed")),
    (r"(bias|scale|mean|var)$", (None,)),
)
"""Logical axes of convolutions and norms; see ``layers.TRANSFORMER_BLOCK_AXES``."""

Padding = str | list[tuple[int, int]]


def symmetric(kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding that torch models use: (kernel - 1) / 2 on both sides of every axis."""
    return [((size - 1) // 2,) * 2 for size in kernel]


class Conv(nnx.Conv):
    """A convolution, initialized with He normal, or with LeCun normal if it has a bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        """Creates a convolution.

        Args:
          inputs: input channels.
          outputs: output channels.
          kernel: side of a square kernel, or the size along each axis.
          rngs: random keys.
          stride: stride of all axes or of each.
          padding: padding as in ``nnx.Conv``; None: symmetric, as in torch.
          groups: feature groups.
          bias: add a bias.
        """
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(
            inputs,
            outputs,
            kernel,
            strides=stride,
            padding=symmetric(kernel) if padding is None else padding,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=_init.lecun_normal() if bias else _he_normal,
            rngs=rngs,
        )
        self.by_slabs = len(kernel) == 3 and kernel[0] > 1 and stride == 1 and groups == 1

    # Sharding is inferred from the parameters, so there is no `out_sharding` to pass.
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """(B, *space, inputs) -> (B, *space, outputs)."""
        if not self.by_slabs:
            return super().__call__(x)
        return jax.lax.platform_dependent(x, cpu=self._slabs, default=super().__call__)

    def _slabs(self, x: jax.Array) -> jax.Array:
        """Convolves a volume as a sum of 2-D convolutions, three times as fast on CPU."""
        batch, depth, *plane, channels = x.shape
        kernel = self.kernel[...]
        (before, after), *plane_padding = cast(list[tuple[int, int]], self.padding)
        padded = jnp.pad(x, ((0, 0), (before, after), *((0, 0),) * 3))
        depth += before + after - kernel.shape[0] + 1
        total = jnp.asarray(0.0)
        for index, tap in enumerate(kernel):
            slices = padded[:, index : index + depth].reshape(-1, *plane, channels)
            total += jax.lax.conv_general_dilated(
                slices, tap, (1, 1), plane_padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        total = total.reshape(batch, depth, *total.shape[1:])
        return total if self.bias is None else total + self.bias[...]


class BatchNorm(nnx.BatchNorm):
    """Batch normalization (arXiv 1502.03167); ``momentum`` is the weight of the old statistics."""

    def __init__(
        self, width: int, rngs: nnx.Rngs, momentum: float = 0.9, epsilon: float = 1e-5
    ) -> None:
        super().__init__(
            width, momentum=momentum, epsilon=epsilon, use_fast_variance=False, rngs=rngs
        )

    # `train` is required, so that no call can forget it.
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # type: ignore[override]
        """Normalizes by the batch and updates the running statistics, or normalizes by these."""
        return super().__call__(x, use_running_average=not train)


class UpConv(nnx.Module):
    """Transposed convolution whose stride equals its kernel size ``factors``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        factors: tuple[int, ...] = (2, 2),
        bias: bool = True,
    ) -> None:
        shape = (*factors, inputs, outputs)
        self.kernel = nnx.Param(_init.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, *space, C) -> (B, *(space x factors), outputs)."""
        batch, *space, _ = x.shape
        factors = self.kernel.shape[:-2]
        dims = len(space)
        y = jnp.tensordot(x, self.kernel[...], axes=(-1, -2))  # (B, *space, *factors, outputs)
        pairs = [axis for dim in range(1, dims + 1) for axis in (dim, dim + dims)]
        y = y.transpose(0, *pairs, 2 * dims + 1)
        y = y.reshape(batch, *(n * f for n, f in zip(space, factors, strict=True)), -1)
        return y if self.bias is None else y + self.bias[...]


def instance_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) per image and channel, without scale or bias."""
    space = tuple(range(1, x.ndim - 1))
    mean = jnp.mean(x, space, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), space, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + epsilon)


def max_pool(x: jax.Array, kernel: int, stride: int, padding: int) -> jax.Array:
    """2-D max pooling, with the same kernel, stride and padding along both axes."""
    return nnx.max_pool(x, (kernel,) * 2, (stride,) * 2, [(padding, padding)] * 2)


def double_size(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C) by nearest-neighbor upsampling."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
