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
