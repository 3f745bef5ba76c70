"""The text tower: BERT (arXiv 1810.04805) with a projection of its [CLS] state."""

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.config import ModelConfig
from unimed_jax.models.dropout import Dropout
from unimed_jax.models.layers import (
    TRANSFORMER_BLOCK_AXES,
    LayerKwargs,
    LayerNorm,
    Mlp,
    SelfAttention,
    apply_blocks,
    gelu,
    stack_blocks,
)

_init = jax.nn.initializers
_bert_normal = _init.normal(0.02)


class BertBlock(nnx.Module):
    """Post-LN transformer layer: z = LN₁(x + MHA(x)); LN₂(z + MLP(z))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        sizes = config.text
        self.dropout = sizes.dropout
        dtypes: LayerKwargs = {
            "dtype": config.compute_dtype,
            "param_dtype": config.param_dtype,
            "rngs": rngs,
        }
        norm = (sizes.width, sizes.layer_norm_eps, config.param_dtype, rngs)
        self.attn = SelfAttention(
            sizes.width,
            sizes.heads,
            qkv_init=_bert_normal,
            out_init=_bert_normal,
            dropout=sizes.dropout,
            implementation=config.attention_impl,
            **dtypes,
        )
        self.ln_1 = LayerNorm(*norm)
        self.mlp = Mlp(
            sizes.width,
            sizes.mlp_width,
            activation=sizes.activation,
            kernel_init=_bert_normal,
            bias_init=lambda num_inputs: _init.zeros,
            **dtypes,
        )
        self.ln_2 = LayerNorm(*norm)

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None,
        dropout_key: jax.Array | None,
        num_queries: int | None,
    ) -> jax.Array:
        """(B, T, D) -> (B, Q, D), where Q is ``num_queries`` or T."""
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attended = self.attn(x, num_queries=num_queries, mask=mask, dropout_key=keys[0])
        x = self.ln_1(x[:, :num_queries] + Dropout(self.dropout, keys[1])(attended))
        return self.ln_2(x + Dropout(self.dropout, keys[2])(self.mlp(x)))


class MlpProjection(nnx.Module):
    """W_b GELU(W_a x) with exact GELU, without biases; ⌊(D + E)/2⌋ hidden features."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        width, embed_dim = config.text.width, config.embed_dim
        hidden = (width + embed_dim) // 2
        self.c_fc = _projection(config, width, hidden, rngs)
        self.c_proj = _projection(config, hidden, embed_dim, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, D) -> (B, E)."""
        return self.c_proj(gelu(self.c_fc(x)))


def _projection(
    config: ModelConfig, num_inputs: int, num_outputs: int, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        num_inputs,
        num_outputs,
        use_bias=False,
        kernel_init=_init.variance_scaling(1 / 3, "fan_in", "uniform"),  # the default of torch
        dtype=config.compute_dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


class Bert(nnx.Module):
    """Maps token ids to unnormalized embeddings."""

    parameter_axes = (
        *TRANSFORMER_BLOCK_AXES,
        (r"^word_embeddings/embedding$", ("vocab", "embed")),
        (r"^position_embeddings/embedding$", ("positions", "embed")),
        (r"^token_type_embeddings/embedding$", (None, "embed")),
        (r"^ln_embeddings/(scale|bias)$", ("embed",)),
        (r"^proj/c_fc/kernel$", ("embed", "mlp")),
        (r"^proj/c_proj/kernel$", ("mlp", "joint")),
        (r"^proj/kernel$", ("embed", "joint")),
    )

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        sizes = config.text

        def embed(num_embeddings: int) -> nnx.Embed:
            return nnx.Embed(
                num_embeddings,
                sizes.width,
                embedding_init=_bert_normal,
                dtype=config.compute_dtype,
                param_dtype=config.param_dtype,
                rngs=rngs,
            )

        self.word_embeddings = embed(sizes.vocab_size)
        self.position_embeddings = embed(sizes.max_positions)
        self.token_type_embeddings = embed(sizes.num_token_types)
        self.ln_embeddings = LayerNorm(sizes.width, sizes.layer_norm_eps, config.param_dtype, rngs)
        self.blocks = stack_blocks(lambda rngs: BertBlock(config, rngs), sizes.layers, rngs)
        self.proj: MlpProjection | nnx.Linear | None
        match sizes.projection:
            case "mlp":
                self.proj = MlpProjection(config, rngs)
            case "linear":
                self.proj = _projection(config, sizes.width, config.embed_dim, rngs)
            case "none":
                self.proj = None

    def __call__(self, ids: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """int32 (B, T), T ≤ max_positions -> float32 (B, E).

        Args:
          ids: token ids; tokens equal to ``pad_id`` are masked.
          dropout_key: dropout key; None disables dropout.

        Raises:
          ValueError: the ids have the wrong rank or too many tokens.
        """
        config = self.config
        if ids.ndim != 2 or ids.shape[1] > config.text.max_positions:
            raise ValueError(
                f"ids: expected (batch, at most {config.text.max_positions} tokens), "
                f"got {ids.shape}"
            )
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x = (
            self.word_embeddings(ids)
            + self.position_embeddings.embedding[: ids.shape[1]].astype(config.compute_dtype)
            + self.token_type_embeddings.embedding[0].astype(config.compute_dtype)
        )
        x = Dropout(config.text.dropout, keys[0])(self.ln_embeddings(x))
        x = apply_blocks(
            self.blocks,
            x,
            mask=ids != config.text.pad_id,
            dropout_key=keys[1],
            remat=config.remat,
            scan_layers=config.scan_layers,
        )
        return (x if self.proj is None else self.proj(x)).astype(jnp.float32)
