"""The parts that both towers are made of: activations, attention, MLP, a stack of blocks.

Shape letters: B batch, T tokens, Q query tokens, D width, H heads, K head width, M MLP width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from unimed_jax.models.attention import by_groups, can_fuse, fused, plain
from unimed_jax.models.config import AttentionImpl, Remat
from unimed_jax.models.dropout import Dropout
from unimed_jax.models.random_streams import random_streams

TRANSFORMER_BLOCK_AXES = (
    (r"blocks/attn/qkv/kernel$", ("layers", "embed", None, "heads", "head_dim")),
    (r"blocks/attn/qkv/bias$", ("layers", None, "heads", "head_dim")),
    (r"blocks/attn/out/kernel$", ("layers", "heads", "head_dim", "embed")),
    (r"blocks/attn/out/bias$", ("layers", "embed")),
    (r"blocks/mlp/c_fc/kernel$", ("layers", "embed", "mlp")),
    (r"blocks/mlp/c_fc/bias$", ("layers", "mlp")),
    (r"blocks/mlp/c_proj/kernel$", ("layers", "mlp", "embed")),
    (r"blocks/mlp/c_proj/bias$", ("layers", "embed")),
    (r"blocks/ln_[12]/(scale|bias)$", ("layers", "embed")),
)
"""Logical axes of the parameters of `stack_blocks`: (regex over the path, an axis or None per dim).

A path joins the keys of the parameter dict with "/", such as `blocks/attn/qkv/kernel`. Because of
the layer axis, of split heads and of fused projections, the rank of an array here is not that of
the torch tensor it corresponds to: rules on the rank (weight decay) must go by name. Every module
class declares `parameter_axes` relative to itself; the first match wins.
"""

Initializer = jax.nn.initializers.Initializer


# The activations are marked for recomputation: otherwise the forward pass keeps, besides the input,
# one or two more arrays of the MLP's width per block for the derivative (a quarter of all memory).


@jax.checkpoint
def quick_gelu(x: jax.Array) -> jax.Array:
    """φ(x) = x · sigmoid(1.702 x), the activation of the original CLIP (arXiv 1606.08415, §2)."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """φ(x) = x · ½(1 + erf(x/√2)) (arXiv 1606.08415).

    `jax.nn.gelu` goes through erfc, which the CPU computes about as slowly as two erfs.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


@jax.checkpoint
def gelu_tanh(x: jax.Array) -> jax.Array:
    """φ(x) = x · ½(1 + tanh(√(2/π) (x + 0.044715 x³))) (arXiv 1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32 whatever the input's dtype, which the output gets back."""

    def __init__(self, width: int, epsilon: float, param_dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        super().__init__(
            width,
            epsilon=epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x²] - E[x]² cancels; torch computes E[(x - E[x])²]
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused input projection (arXiv 1706.03762).

    Parameters: `qkv` (D, 3, H, K), index 1 being query, key, value; `out` (H, K, D); both biased,
    unless `qkv_bias` is False.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_init: Initializer,
        out_init: Initializer,
        dropout: float,
        implementation: AttentionImpl,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
        qkv_bias: bool = True,
    ) -> None:
        self.dropout, self.implementation = dropout, implementation
        head_dim = width // heads
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.qkv = linear(width, (3, heads, head_dim), kernel_init=qkv_init, use_bias=qkv_bias)
        self.out = linear((heads, head_dim), width, axis=(-2, -1), kernel_init=out_init)

    def __call__(
        self,
        x: jax.Array,
        *,
        num_queries: int | None = None,
        mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """x (B, T, D) -> (B, Q, D).

        Args:
            num_queries: Q, attend only from the first Q tokens; None for all T.
            mask: bool (B, T), False at tokens nobody may attend to.
            dropout_key: drops attention weights; None for none.
        """
        dropout = Dropout(self.dropout, dropout_key)
        *_, heads, head_dim = self.qkv.kernel.shape
        if num_queries is None:
            if self.implementation == "auto" and can_fuse(x.shape[1], heads, head_dim):
                return self._fused(x, mask, dropout)
            # Heads move before tokens once, so that both products in `plain` are batched ones:
            # copies took a fifth of a training step on a CPU when each had to do it by itself.
            q, k, v = self.qkv(x).transpose(2, 0, 3, 1, 4)
        else:
            kernel, bias = self.qkv.kernel[...].astype(x.dtype), self.qkv.bias[...].astype(x.dtype)
            q = jnp.einsum("bqd,dhk->bqhk", x[:, :num_queries], kernel[:, 0]) + bias[0]
            kv = jnp.einsum("btd,dshk->btshk", x, kernel[:, 1:]) + bias[1:]
            q, (k, v) = q.transpose(0, 2, 1, 3), kv.transpose(2, 0, 3, 1, 4)
        return self.out(plain(q, k, v, mask, dropout))

    def _fused(self, x: jax.Array, mask: jax.Array | None, dropout: Dropout) -> jax.Array:
        """Heads stay side by side, which is how the kernel reads and writes them: no copies."""
        into, into_bias, out_of, out_of_bias = (
            param[...].astype(x.dtype)
            for layer in (self.qkv, self.out)
            for param in (layer.kernel, layer.bias)
        )
        # Behind a barrier the order stays apart from the product, whose gradient would otherwise be
        # computed in the order of the parameters, from a copy of a whole activation.
        qkv = x @ jax.lax.optimization_barrier(by_groups(into)) + by_groups(into_bias)
        out = fused(qkv, mask, dropout, heads=into.shape[2])
        return out @ out_of.reshape(-1, x.shape[-1]) + out_of_bias


class Mlp(nnx.Module):
    """W₂ φ(W₁ x + b₁) + b₂."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str,
        kernel_init: Initializer,
        bias_init: Callable[[int], Initializer],
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        """`bias_init` gets the number of inputs of the layer, on which torch's default depends."""
        self.activation = ACTIVATIONS[activation]
        linear = functools.partial(
            nnx.Linear, kernel_init=kernel_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.c_fc = linear(width, hidden, bias_init=bias_init(width))
        self.c_proj = linear(hidden, width, bias_init=bias_init(hidden))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, D) -> (B, T, D)."""
        return self.c_proj(self.activation(self.c_fc(_rows(x)))).reshape(x.shape)


def _rows(x: jax.Array) -> jax.Array:
    """On CPUs (B, T, D) -> (B·T, D): the gradient of a weight sums over rows, and XLA transposes
    the hidden features in memory if that means two axes. On TPUs to merge them is itself a copy.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return x.reshape(-1, x.shape[-1]) if device and device.platform == "cpu" else x


class Block(Protocol):
    """One transformer layer, as `apply_blocks` calls it."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None,
        dropout_key: jax.Array | None,
        num_queries: int | None,
    ) -> jax.Array: ...


def stack_blocks(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` independent blocks as one module whose parameters have a leading layer axis."""
    keys = jax.random.split(rngs.params(), layers)
    return nnx.vmap(lambda key: make(random_streams(key)))(keys)


_CHECKPOINT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def apply_blocks(
    blocks: nnx.Module,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    remat: Remat,
    scan_layers: bool,
) -> jax.Array:
    """Runs a stack of blocks and returns the first token of the last one: (B, T, D) -> (B, D).

    Both towers pool the first token, so the last block computes keys and values for all tokens and
    everything else for that one only: the same numbers with 10/12 of that block's work left out.

    Args:
        blocks: what `stack_blocks` made.
        mask: bool (B, T), False at tokens that are padding.
        dropout_key: None for no dropout.
        remat: what the backward pass computes again: "none", "full" (all of a block) or "dots" (all
            but products with weights).
        scan_layers: one compiled block in a loop instead of a copy per layer; the same numbers.
    """
    graphdef, params = nnx.split(blocks)
    layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if dropout_key is None else jax.random.split(dropout_key, layers)

    def apply(x: jax.Array, layer: tuple, num_queries: int | None = None) -> jax.Array:
        layer_params, key = layer
        block: Block = nnx.merge(graphdef, layer_params)
        return block(x, mask=mask, dropout_key=key, num_queries=num_queries)

    if remat != "none":
        # Inside a loop nothing can be merged with the forward pass, so no barrier is needed.
        apply = jax.checkpoint(
            apply,
            policy=_CHECKPOINT_POLICIES[remat],
            prevent_cse=not scan_layers,
            static_argnums=2,
        )
    *body, last = _split((params, keys), [layers - 1, 1] if scan_layers else [1] * layers)
    if scan_layers:
        x, _ = jax.lax.scan(lambda x, layer: (apply(x, layer, None), None), x, body[0])
    else:
        for layer in body:
            x = apply(x, jax.tree.map(lambda leaf: leaf[0], layer), None)
    last = jax.tree.map(lambda leaf: leaf[0], last)
    return apply(x, last, 1)[:, 0]


def block_outputs(
    blocks: nnx.Module, x: jax.Array, call: Callable[[nnx.Module, jax.Array], jax.Array]
) -> jax.Array:
    """What leaves every block of a stack: (B, T, D) -> (layers, B, T, D).

    Args:
        blocks: from `stack_blocks`.
        x: what enters the first.
        call: a block on its input.
    """
    graphdef, params = nnx.split(blocks)

    def layer(x: jax.Array, layer_params: nnx.State) -> tuple[jax.Array, jax.Array]:
        y = call(nnx.merge(graphdef, layer_params), x)
        return y, y

    return jax.lax.scan(layer, x, params)[1]


def _split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Parts of every array along its first axis.

    The gradient joins those of the parts; that of slices would pad each to the whole and add.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]
