"""What convolutional networks are made of. Images are (B, H, W, C), kernels (h, w, in, out);
volumes (B, D, H, W, C), kernels (d, h, w, in, out).

Batch normalisation is over the global batch: under jit the compiler inserts what devices must
exchange. Its running statistics are variables of the module that a call in training replaces.
"""

import jax
import jax.numpy as jnp
from flax import nnx

_init = jax.nn.initializers
_he_normal = _init.variance_scaling(2.0, "fan_out", "normal")  # torchvision's

STATISTICS = r"/(mean|var)$"
"""Regular expression over the paths of what is no parameter: running means and variances."""

CONV_2D_AXES = (
    (r"kernel$", (None, None, None, "embed")),
    (r"(bias|scale|mean|var)$", (None,)),
)
CONV_3D_AXES = (
    (r"kernel$", (None, None, None, None, "embed")),
    (r"(bias|scale|mean|var)$", (None,)),
)
"""Logical axes of convolutions and norms; see `layers.TRANSFORMER_BLOCK_AXES`."""

Padding = str | list[tuple[int, int]]


def symmetric(kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding of torch: (kernel - 1) / 2 on both sides of every axis."""
    return [((size - 1) // 2,) * 2 for size in kernel]


class Conv(nnx.Conv):
    """A convolution; He-normal kernels unless it has a bias, then LeCun's.

    ``kernel`` is the side of a square, or the size along each axis.
    """

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

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, *space, inputs) -> (B, *space, outputs)."""
        if not self.by_slabs:
            return super().__call__(x)
        return jax.lax.platform_dependent(x, cpu=self._slabs, default=super().__call__)

    def _slabs(self, x: jax.Array) -> jax.Array:
        """A volume's convolution as a sum of those of its slices, which XLA computes three times
        as fast on CPUs."""
        batch, depth, *plane, channels = x.shape
        kernel = self.kernel[...]
        (before, after), *around = self.padding
        padded = jnp.pad(x, ((0, 0), (before, after), *((0, 0),) * 3))
        depth += before + after - kernel.shape[0] + 1
        total = 0.0
        for index, tap in enumerate(kernel):
            slices = padded[:, index : index + depth].reshape(-1, *plane, channels)
            total += jax.lax.conv_general_dilated(
                slices, tap, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        total = total.reshape(batch, depth, *total.shape[1:])
        return total if self.bias is None else total + self.bias[...]


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (arXiv 1502.03167); ``keep`` of the running statistics stay in a step."""

    def __init__(
        self, width: int, rngs: nnx.Rngs, keep: float = 0.9, epsilon: float = 1e-5
    ) -> None:
        super().__init__(width, momentum=keep, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises by the batch, and updates the statistics; or by the statistics."""
        return super().__call__(x, use_running_average=not train)


class UpConv(nnx.Module):
    """Transposed convolution whose kernel is its stride: every pixel becomes ``factors``."""

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
    """(x - mean) / sqrt(var + epsilon) per image and channel, without scale and bias."""
    space = tuple(range(1, x.ndim - 1))
    mean = jnp.mean(x, space, keepdims=True)
    var = jnp.mean(jnp.square(x - mean), space, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + epsilon)


def max_pool(x: jax.Array, kernel: int, stride: int, padding: int) -> jax.Array:
    return nnx.max_pool(x, (kernel,) * 2, (stride,) * 2, [(padding, padding)] * 2)


def double_size(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C), the nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
