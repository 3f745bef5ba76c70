"""UNETR: a vision transformer of volume patches with a convolutional decoder (arXiv 2103.10504).

Shape letters: B batch, C channels, T tokens, width the transformer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.conv import CONV_3D_AXES, Conv, UpConv
from unimed_jax.models.layers import (
    TRANSFORMER_BLOCK_AXES,
    LayerNorm,
    Mlp,
    SelfAttention,
    block_outputs,
    stack_blocks,
)
from unimed_jax.models.residual import ResidualBlock

PATCH = 16  # side of a patch; the decoder doubles four times
_DOUBLE = (2, 2, 2)
_TOKEN_INIT = jax.nn.initializers.truncated_normal(0.02)
_torch_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class UNETRConfig:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
      width, layers, heads, mlp_width: sizes of the transformer.
      features: channels of the decoder at full resolution; lower resolutions have 2, 4 and 8 times
        as many.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    features: int = 16

    @property
    def taps(self) -> tuple[int, ...]:
        """Indices of the layers whose output is used: of twelve, 3, 6, 9 and 11."""
        quarter = self.layers // 4
        return (quarter, 2 * quarter, 3 * quarter, self.layers - 1)

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of the features of every stage."""
        return (self.width,) * 4

    @property
    def crop_multiple(self) -> tuple[int, int, int]:
        """What the sides of a crop must be multiples of: voxels of one deepest position."""
        return (PATCH,) * 3


class TransformerBlock(nnx.Module):
    """Pre-LN layer: z = x + MHA(LN(x)), queries, keys and values without bias; z + MLP(LN(z))."""

    def __init__(self, config: UNETRConfig, rngs: nnx.Rngs) -> None:
        norm = (config.width, 1e-5, jnp.float32, rngs)
        dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": rngs}
        self.ln_1 = LayerNorm(*norm)
        self.attn = SelfAttention(
            config.width,
            config.heads,
            qkv_init=_torch_uniform,
            out_init=_torch_uniform,
            qkv_bias=False,
            dropout=0.0,
            implementation="plain",
            **dtypes,
        )
        self.ln_2 = LayerNorm(*norm)
        self.mlp = Mlp(
            config.width,
            config.mlp_width,
            activation="gelu",
            kernel_init=_torch_uniform,
            bias_init=lambda _: jax.nn.initializers.zeros,
            **dtypes,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class UpBlocks(nnx.Module):
    """Upsamples a skip to its resolution, twofold in every step (MONAI's ``UnetrPrUpBlock``).

    All steps but the first have a residual block.
    """

    def __init__(self, inputs: int, outputs: int, doublings: int, rngs: nnx.Rngs) -> None:
        self.doublings = doublings
        self.up0 = UpConv(inputs, outputs, rngs, _DOUBLE, bias=False)
        for step in range(1, doublings):
            setattr(self, f"up{step}", UpConv(outputs, outputs, rngs, _DOUBLE, bias=False))
            setattr(self, f"residual{step}", ResidualBlock(outputs, outputs, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.up0(x)
        for step in range(1, self.doublings):
            x = getattr(self, f"residual{step}")(getattr(self, f"up{step}")(x))
        return x


class UnetrDecoderBlock(nnx.Module):
    """Upsamples twofold, concatenates the skip, and applies a residual block."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.up = UpConv(inputs, outputs, rngs, _DOUBLE, bias=False)
        self.residual = ResidualBlock(2 * outputs, outputs, rngs)

    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        return self.residual(jnp.concatenate([self.up(x), skip], axis=-1))


class UNETR(nnx.Module):
    """Logits at full resolution, and the four features of the transformer that feed the skips.

    MONAI 0.7 also had a class token, and shortcut convolutions in residual blocks that keep their
    width; it used neither, and neither is here.
    """

    config_class: ClassVar[type[Any]] = UNETRConfig
    parameter_axes: ClassVar[ParameterAxes] = (
        *TRANSFORMER_BLOCK_AXES,
        (r"^patch_embedding/kernel$", ("patch", "embed")),
        (r"^positional_embedding$", ("positions", "embed")),
        *CONV_3D_AXES,
    )

    def __init__(
        self,
        config: UNETRConfig,
        crop: tuple[int, int, int],
        in_channels: int,
        num_outputs: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.grid = tuple(size // PATCH for size in crop)
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        width, f = config.width, config.features
        self.patch_embedding = nnx.Linear(
            PATCH**3 * in_channels, width, kernel_init=_TOKEN_INIT, rngs=rngs
        )
        self.positional_embedding = nnx.Param(_TOKEN_INIT(rngs.params(), (tokens, width)))
        self.blocks = stack_blocks(lambda r: TransformerBlock(config, r), config.layers, rngs)
        self.ln_post = LayerNorm(width, 1e-5, jnp.float32, rngs)
        self.encoder1 = ResidualBlock(in_channels, f, rngs)
        self.encoder2 = UpBlocks(width, 2 * f, 3, rngs)
        self.encoder3 = UpBlocks(width, 4 * f, 2, rngs)
        self.encoder4 = UpBlocks(width, 8 * f, 1, rngs)
        self.decoder5 = UnetrDecoderBlock(width, 8 * f, rngs)
        self.decoder4 = UnetrDecoderBlock(8 * f, 4 * f, rngs)
        self.decoder3 = UnetrDecoderBlock(4 * f, 2 * f, rngs)
        self.decoder2 = UnetrDecoderBlock(2 * f, f, rngs)
        self.out1 = Conv(f, num_outputs, (1, 1, 1), rngs, bias=True)

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """x (B, D, H, W, C) -> logits of every output, features (B, d, h, w, width) of every stage.

        Nothing differs in training, and nothing is random.
        """
        del train, key
        tokens = self.patch_embedding(patches(x)) + self.positional_embedding[...]
        outputs = block_outputs(self.blocks, tokens, lambda block, x: block(x))
        *taps, last = self.config.taps
        stages = [*(outputs[index] for index in taps), self.ln_post(outputs[last])]
        stages = [z.reshape(len(x), *self.grid, -1) for z in stages]
        y = self.decoder5(stages[3], self.encoder4(stages[2]))
        y = self.decoder4(y, self.encoder3(stages[1]))
        y = self.decoder3(y, self.encoder2(stages[0]))
        y = self.decoder2(y, self.encoder1(x))
        return [self.out1(y)], stages


def patches(x: jax.Array) -> jax.Array:
    """(B, D, H, W, C) -> (B, T, 16^3 C): tokens and their voxels row-major."""
    batch, depth, height, width, channels = x.shape
    grid = (depth // PATCH, height // PATCH, width // PATCH)
    x = x.reshape(batch, grid[0], PATCH, grid[1], PATCH, grid[2], PATCH, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, grid[0] * grid[1] * grid[2], -1)
