"""UNETR++: a hierarchical volumetric network with efficient paired attention (arXiv 2212.04497).

Shape letters: B batch, N tokens, C channels, h heads, d channels of a head, P projected tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.config import require
from unimed_jax.distributed.sharding import ParameterAxes
from unimed_jax.models.conv import CONV_3D_AXES, Conv, UpConv
from unimed_jax.models.dropout import Dropout
from unimed_jax.models.layers import LayerNorm
from unimed_jax.models.residual import BatchNormResidualBlock, ResidualBlock

SpatialLayout = Literal["released", "tokens"]

_DOUBLE = (2, 2, 2)
_POINT = (1, 1, 1)
_LINEAR_INIT = jax.nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class UNETRPPConfig:
    """Sizes of the network; the defaults are those published for Synapse.

    Attributes:
      stem: voxels along each axis that form one position of the first stage.
      widths: channels of the four stages.
      blocks: attention blocks of the four stages.
      projections: tokens that keys and values of the spatial branch are projected to, in each of
        the four stages and in its decoder.
      features: channels at full resolution.
      heads: heads of every attention.
      shared_projection: one projection for both keys and values, or one for each.
      residual_blocks: number of convolutional blocks after each attention.
      attention_dropout, channel_dropout: rates in training.
      spatial_layout: how the result of the spatial branch is reshaped to tokens. "released" follows
        the released code, which mixes tokens with channels and which released weights need; in
        "tokens" each token keeps its channels.
    """

    stem: tuple[int, int, int] = (2, 4, 4)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (3, 3, 3, 3)
    projections: tuple[int, ...] = (64, 64, 64, 32)
    features: int = 16
    heads: int = 4
    shared_projection: bool = True
    residual_blocks: int = 1
    attention_dropout: float = 0.15
    channel_dropout: float = 0.1
    spatial_layout: SpatialLayout = "released"

    def __post_init__(self) -> None:
        layouts = get_args(SpatialLayout)
        require(
            self.spatial_layout in layouts,
            "model.unetr_pp.spatial_layout",
            self.spatial_layout,
            ", ".join(map(repr, layouts)),
        )

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of the features of every stage."""
        return self.widths

    @property
    def crop_multiple(self) -> tuple[int, int, int]:
        """What the sides of a crop must be multiples of: voxels of one deepest position."""
        depth, height, width = self.stem
        return 8 * depth, 8 * height, 8 * width


class PairedAttention(nnx.Module):
    """Attention among channels and among tokens, with the same queries and keys.

    The kernel of the input projection is (C, 4, h, d): query, key, the value of the channel branch,
    that of the spatial one.
    """

    def __init__(
        self, config: UNETRPPConfig, tokens: int, width: int, projection: int, rngs: nnx.Rngs
    ) -> None:
        self.rate, self.layout = config.attention_dropout, config.spatial_layout
        heads = config.heads
        self.qkvv = nnx.LinearGeneral(
            width, (4, heads, width // heads), use_bias=False, kernel_init=_LINEAR_INIT, rngs=rngs
        )

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, kernel_init=_LINEAR_INIT, rngs=rngs)

        self.project_keys = linear(tokens, projection)
        self.project_values = None if config.shared_projection else linear(tokens, projection)
        self.temperature_channel = nnx.Param(jnp.ones((heads,)))
        self.temperature_spatial = nnx.Param(jnp.ones((heads,)))
        self.out_spatial = linear(width, width // 2)
        self.out_channel = linear(width, width // 2)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """(B, N, C) -> (B, N, C); ``key`` drops attention weights."""
        keys = (None, None) if key is None else jax.random.split(key)
        batch, tokens, width = x.shape
        q, k, v_channel, v_spatial = self.qkvv(x).transpose(2, 0, 3, 4, 1)  # each (B, h, d, N)
        k_projected = self.project_keys(k)
        v_projected = (self.project_values or self.project_keys)(v_spatial)  # (B, h, d, P)
        q, k = _unit(q), _unit(k)

        scale = self.temperature_channel[...][:, None, None]
        weights = jax.nn.softmax(scale * jnp.einsum("bhin,bhjn->bhij", q, k), axis=-1)
        weights = Dropout(self.rate, keys[0])(weights)
        channel = jnp.einsum("bhij,bhjn->bnhi", weights, v_channel).reshape(x.shape)

        scale = self.temperature_spatial[...][:, None, None]
        weights = jax.nn.softmax(scale * jnp.einsum("bhin,bhip->bhnp", q, k_projected), axis=-1)
        weights = Dropout(self.rate, keys[1])(weights)
        order = "bihn" if self.layout == "released" else "bnhi"
        spatial = jnp.einsum(f"bhnp,bhip->{order}", weights, v_projected)
        spatial = spatial.reshape(batch, tokens, width)
        return jnp.concatenate([self.out_spatial(spatial), self.out_channel(channel)], axis=-1)


def _unit(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) along the last axis; a gradient of 0 where x is 0."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


class PairedAttentionBlock(nnx.Module):
    """Y = X + pos + gamma EPA(LN(X + pos)); then Y + conv(drop(residual blocks(Y)))."""

    def __init__(
        self,
        config: UNETRPPConfig,
        grid: tuple[int, ...],
        width: int,
        projection: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        tokens = math.prod(grid)
        self.positional_embedding = nnx.Param(jnp.zeros((tokens, width)))
        self.gamma = nnx.Param(jnp.full((width,), 1e-6))
        self.norm = LayerNorm(width, 1e-5, jnp.float32, rngs)
        self.attention = PairedAttention(config, tokens, width, projection, rngs)
        for index in range(config.residual_blocks):
            setattr(self, f"residual{index}", BatchNormResidualBlock(width, rngs))
        self.conv = Conv(width, width, _POINT, rngs, bias=True)

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        """(B, d, h, w, C) -> the same shape."""
        keys = (None, None) if key is None else jax.random.split(key)
        tokens = x.reshape(len(x), -1, x.shape[-1]) + self.positional_embedding[...]
        tokens = tokens + self.gamma[...] * self.attention(self.norm(tokens), keys[0])
        volume = tokens.reshape(x.shape)
        y = volume
        for index in range(self.config.residual_blocks):
            y = getattr(self, f"residual{index}")(y, train)
        kept = Dropout(self.config.channel_dropout, keys[1])(jnp.ones((len(x), y.shape[-1])))
        return volume + self.conv(y * kept[:, None, None, None])


class PairedAttentionStage(nnx.Module):
    """Blocks of one resolution."""

    def __init__(
        self,
        config: UNETRPPConfig,
        grid: tuple[int, ...],
        index: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.blocks = config.blocks[index]
        for number in range(self.blocks):
            block = PairedAttentionBlock(
                config, grid, config.widths[index], config.projections[index], rngs
            )
            setattr(self, f"block{number}", block)

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        for number in range(self.blocks):
            block_key = None if key is None else jax.random.fold_in(key, number)
            x = getattr(self, f"block{number}")(x, train, block_key)
        return x


class UNETRPP(nnx.Module):
    """Logits at full resolution, the stem's and half of that, and features of the four stages."""

    config_class: ClassVar[type[Any]] = UNETRPPConfig
    parameter_axes: ClassVar[ParameterAxes] = (
        (r"positional_embedding$", ("positions", "embed")),
        (r"qkvv/kernel$", ("embed", None, "heads", "head_dim")),
        (r"project_(keys|values)/kernel$", ("positions", None)),
        (r"out_(spatial|channel)/kernel$", (None, "embed")),
        (r"temperature_(channel|spatial)$", ("heads",)),
        (r"gamma$", (None,)),
        *CONV_3D_AXES,
    )

    def __init__(
        self,
        config: UNETRPPConfig,
        crop: tuple[int, int, int],
        in_channels: int,
        num_outputs: int,
        rngs: nnx.Rngs,
    ) -> None:
        widths, features = config.widths, config.features
        inputs, stride = in_channels, config.stem
        grid = crop
        grids = []
        for index, width in enumerate(widths):
            depth, height, width_ = (n // s for n, s in zip(grid, stride, strict=True))
            grid = (depth, height, width_)
            grids.append(grid)
            down = Conv(inputs, width, stride, rngs, stride=stride, padding=[(0, 0)] * 3)
            setattr(self, f"down{index}", down)
            groups = 1 if index == 0 else inputs
            norm = nnx.GroupNorm(
                width, num_groups=groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs
            )
            setattr(self, f"down_norm{index}", norm)
            setattr(self, f"stage{index}", PairedAttentionStage(config, grid, index, rngs))
            inputs, stride = width, _DOUBLE
        for index in (2, 1, 0):
            up = UpConv(widths[index + 1], widths[index], rngs, _DOUBLE, bias=False)
            setattr(self, f"up{index}", up)
            setattr(
                self, f"decoder{index}", PairedAttentionStage(config, grids[index], index, rngs)
            )
        self.encoder1 = ResidualBlock(in_channels, features, rngs)
        self.up_full = UpConv(widths[0], features, rngs, config.stem, bias=False)
        self.decoder_full = ResidualBlock(features, features, rngs)
        for number, width in enumerate((features, widths[0], widths[1]), 1):
            setattr(self, f"out{number}", Conv(width, num_outputs, _POINT, rngs, bias=True))

    def __call__(
        self, x: jax.Array, train: bool, key: jax.Array | None
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """x (B, D, H, W, C) -> logits of the three outputs, features of the four stages.

        ``key`` drops attention weights and channels; ``train`` normalizes by the batch.
        """

        def key_of(number: int) -> jax.Array | None:
            return None if key is None else jax.random.fold_in(key, number)

        stages, y = [], x
        for index in range(4):
            y = getattr(self, f"down_norm{index}")(getattr(self, f"down{index}")(y))
            y = getattr(self, f"stage{index}")(y, train, key_of(index))
            stages.append(y)
        decoded = []
        for index in (2, 1, 0):
            y = getattr(self, f"up{index}")(y) + stages[index]
            y = getattr(self, f"decoder{index}")(y, train, key_of(4 + index))
            decoded.append(y)
        full = self.decoder_full(self.up_full(y) + self.encoder1(x))
        inputs = (full, decoded[2], decoded[1])
        return [getattr(self, f"out{number}")(y) for number, y in enumerate(inputs, 1)], stages
