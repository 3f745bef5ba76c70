"""What convolutional networks are made of. Images are (B, H, W, C), kernels (h, w, in, out).

Batch normalisation is over the global batch: under jit the compiler inserts what devices must
exchange. Its running statistics are variables of the module that a call in training replaces.
"""

import jax
import jax.numpy as jnp
from flax import nnx

_init = jax.nn.initializers
_he_normal = _init.variance_scaling(2.0, "fan_out", "normal")  # torchvision's

Padding = str | list[tuple[int, int]]


def symmetric(kernel: int) -> list[tuple[int, int]]:
    """The padding of torch: (kernel - 1) / 2 on both sides."""
    return [((kernel - 1) // 2,) * 2] * 2


class Conv(nnx.Conv):
    """A square convolution; He-normal kernels unless it has a bias, then LeCun's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            (kernel, kernel),
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
    """Transposed convolution of kernel 2 and stride 2: every pixel becomes 2 x 2."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(_init.lecun_normal()(rngs.params(), (2, 2, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, 2 H, 2 W, outputs)."""
        batch, height, width, _ = x.shape
        y = jnp.einsum("bhwc,ijco->bhiwjo", x, self.kernel[...])
        return y.reshape(batch, 2 * height, 2 * width, -1) + self.bias[...]


def max_pool(x: jax.Array, kernel: int, stride: int, padding: int) -> jax.Array:
    return nnx.max_pool(x, (kernel,) * 2, (stride,) * 2, [(padding, padding)] * 2)


def double_size(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C), the nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
