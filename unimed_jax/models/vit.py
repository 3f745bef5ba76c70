"""The image tower: CLIP's vision transformer (arXiv 2103.00020, after arXiv 2010.11929)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from unimed_jax.models.config import ModelConfig
from unimed_jax.models.layers import (
    TRANSFORMER_BLOCK_AXES,
    LayerKwargs,
    LayerNorm,
    Mlp,
    SelfAttention,
    apply_blocks,
    block_outputs,
    stack_blocks,
)

_init = jax.nn.initializers
# Uniform in ±1/√(inputs), the default of torch for linear layers and convolutions.
_torch_uniform = _init.variance_scaling(1 / 3, "fan_in", "uniform")


def _torch_uniform_bias(num_inputs: int) -> jax.nn.initializers.Initializer:
    bound = num_inputs**-0.5

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: DTypeLike | None = jnp.float32,
        out_sharding: object = None,
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class VisionBlock(nnx.Module):
    """Pre-LN transformer layer: z = x + MHA(LN₁(x)); z + MLP(LN₂(z))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        sizes = config.visual
        dtypes: LayerKwargs = {
            "dtype": config.compute_dtype,
            "param_dtype": config.param_dtype,
            "rngs": rngs,
        }
        norm = (sizes.width, sizes.layer_norm_eps, config.param_dtype, rngs)
        self.ln_1 = LayerNorm(*norm)
        self.attn = SelfAttention(
            sizes.width,
            sizes.heads,
            qkv_init=_init.xavier_uniform(),
            out_init=_torch_uniform,
            dropout=0.0,
            implementation=config.attention_impl,
            **dtypes,
        )
        self.ln_2 = LayerNorm(*norm)
        self.mlp = Mlp(
            sizes.width,
            sizes.mlp_width,
            activation=sizes.activation,
            kernel_init=_torch_uniform,
            bias_init=_torch_uniform_bias,
            **dtypes,
        )

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None,
        dropout_key: jax.Array | None,
        num_queries: int | None,
    ) -> jax.Array:
        """(B, T, D) -> (B, Q, D), where Q is ``num_queries`` or T."""
        attended = self.attn(
            self.ln_1(x), num_queries=num_queries, mask=mask, dropout_key=dropout_key
        )
        x = x[:, :num_queries] + attended
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nnx.Module):
    """Maps uint8 images to unnormalized embeddings."""

    parameter_axes = (
        *TRANSFORMER_BLOCK_AXES,
        (r"^patch_embedding/kernel$", ("patch", "embed")),
        (r"^patch_embedding/bias$", ("embed",)),
        (r"^class_embedding$", ("embed",)),
        (r"^positional_embedding$", ("positions", "embed")),
        (r"^proj$", ("embed", "joint")),
        (r"^ln_(pre|post)/(scale|bias)$", ("embed",)),
    )

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        sizes = config.visual
        scaled_normal = _init.normal(sizes.width**-0.5)
        param_dtype = jnp.dtype(config.param_dtype)
        # The rows of the kernel follow `_patches`: pixel row, pixel column, channel.
        self.patch_embedding = nnx.Linear(
            sizes.patch_size**2 * 3,
            sizes.width,
            use_bias=sizes.variant == "timm",
            kernel_init=_torch_uniform,
            dtype=config.compute_dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.class_embedding = nnx.Param(scaled_normal(rngs.params(), (sizes.width,), param_dtype))
        self.positional_embedding = nnx.Param(
            scaled_normal(rngs.params(), (sizes.num_tokens, sizes.width), param_dtype)
        )
        norm = (sizes.width, sizes.layer_norm_eps, param_dtype, rngs)
        self.ln_pre = LayerNorm(*norm) if sizes.variant == "clip" else None
        self.blocks = stack_blocks(lambda rngs: VisionBlock(config, rngs), sizes.layers, rngs)
        self.ln_post = LayerNorm(*norm)
        self.proj = nnx.Param(
            scaled_normal(rngs.params(), (sizes.width, config.embed_dim), param_dtype)
        )

    def __call__(self, images: jax.Array, dropout_rng: jax.Array | None = None) -> jax.Array:
        """RGB images, uint8 (B, S, S, 3) -> float32 (B, E).

        With ``dropout_rng``, a random key, only a share of the patches is looked at
        (``visual.patch_dropout``).

        Raises:
          ValueError: the shape or dtype of the images is wrong.
        """
        config = self.config
        size = config.visual.image_size
        if images.shape[1:] != (size, size, 3) or images.dtype != jnp.uint8:
            raise ValueError(
                f"images: expected uint8 (batch, {size}, {size}, 3), "
                f"got {images.dtype} {images.shape}"
            )
        pixels = (images.astype(jnp.float32) / 255 - jnp.array(config.image_mean)) / jnp.array(
            config.image_std
        )
        x = self._embed(pixels, dropout_rng)
        x = apply_blocks(self.blocks, x, remat=config.remat, scan_layers=config.scan_layers)
        return (self.ln_post(x) @ self.proj[...].astype(x.dtype)).astype(jnp.float32)

    def features(self, pixels: jax.Array, layers: Sequence[int]) -> list[jax.Array]:
        """Outputs of selected blocks as feature maps, for dense prediction.

        Args:
          pixels: float32 (B, S, S, 3), normalized.
          layers: block indices, from 0; the final norm is applied to the output of the last block.

        Returns:
          One (B, S/P, S/P, D) feature map per layer, without the class token.
        """
        outputs = block_outputs(
            self.blocks,
            self._embed(pixels),
            lambda block, x: block(x, mask=None, dropout_key=None, num_queries=None),
        )
        last = len(outputs) - 1
        grid = self.config.visual.image_size // self.config.visual.patch_size
        selected = (self.ln_post(outputs[i]) if i == last else outputs[i] for i in layers)
        return [x[:, 1:].reshape(len(x), grid, grid, -1) for x in selected]

    def _embed(self, pixels: jax.Array, dropout_rng: jax.Array | None = None) -> jax.Array:
        """Normalized pixels -> input of the first block, (B, T, D)."""
        config = self.config
        patches = _patches(pixels, config.visual.patch_size).astype(config.compute_dtype)
        positions = self.positional_embedding[...]
        if dropout_rng is not None:
            rows, count, _ = patches.shape
            kept = _kept_patches(dropout_rng, rows, count, config.visual.patch_dropout)
            patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
            # the class token is number 0
            positions = positions[jnp.pad(kept + 1, ((0, 0), (1, 0)))]
        x = self.patch_embedding(patches)
        class_token = jnp.broadcast_to(
            self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1])
        )
        x = jnp.concatenate([class_token, x], axis=1)
        x = x + positions.astype(x.dtype)
        return x if self.ln_pre is None else self.ln_pre(x)


def _kept_patches(key: jax.Array, rows: int, count: int, dropout: float) -> jax.Array:
    """Numbers of the patches that stay, ascending, at least one: int32 (rows, kept)."""
    order = jnp.argsort(jax.random.uniform(key, (rows, count)), axis=1)
    return jnp.sort(order[:, : max(1, round(count * (1 - dropout)))], axis=1)


def _patches(pixels: jax.Array, patch_size: int) -> jax.Array:
    """(B, S, S, 3) -> (B, (S/P)², P·P·3): patches in row-major order, each (row, column, channel).

    Multiplying by a (P·P·3, D) matrix then equals a convolution with stride P whose kernel
    (D, 3, P, P) has been transposed to (P, P, 3, D).
    """
    batch, size, _, channels = pixels.shape
    grid = size // patch_size
    x = pixels.reshape(batch, grid, patch_size, grid, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
