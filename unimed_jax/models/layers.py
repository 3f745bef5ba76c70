"""Layers shared by both towers: activations, attention, MLP, a stack of blocks.

Shape letters: B batch, T tokens, Q query tokens, D width, H heads, K head width, M MLP width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

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
"""Logical axes of the parameters of a stack of blocks: (path regex, an axis or None per dim).

A path joins the keys of the parameter dict with "/", for example ``blocks/attn/qkv/kernel``. The
layer axis, split heads and fused projections give an array here another rank than the
corresponding torch tensor has, so rules that depend on the rank (weight decay) must go by name.
Every module class declares ``parameter_axes`` relative to itself; the first match wins.
"""

Initializer = jax.nn.initializers.Initializer


class LayerKwargs(TypedDict):
    """Keyword arguments that all layers take."""

    dtype: DTypeLike
    param_dtype: DTypeLike
    rngs: nnx.Rngs


# The activation functions are recomputed in the backward pass: otherwise the forward pass would
# keep one or two more arrays of the MLP's width per block (a quarter of all memory).


@jax.checkpoint
def quick_gelu(x: jax.Array) -> jax.Array:
    """φ(x) = x · sigmoid(1.702 x), the activation of the original CLIP (arXiv 1606.08415, §2)."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """φ(x) = x · ½(1 + erf(x/√2)) (arXiv 1606.08415).

    ``jax.nn.gelu`` uses erfc, which costs about as much as two erfs on CPU.
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
    """Layer normalization, computed in float32 and cast back to the dtype of the input."""

    def __init__(self, width: int, epsilon: float, param_dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(
            width,
            epsilon=epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x²] - E[x]² cancels; torch computes E[(x - E[x])²]
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        return super().__call__(x, mask=mask).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused input projection (arXiv 1706.03762).

    Parameters: ``qkv`` (D, 3, H, K), where axis 1 is query, key, value; ``out`` (H, K, D). Both
    have a bias, except ``qkv`` where ``qkv_bias`` is False.
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
        dtype: DTypeLike,
        param_dtype: DTypeLike,
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
        """(B, T, D) -> (B, Q, D).

        Args:
          x: the tokens.
          num_queries: Q, the number of leading tokens that attend; None for all T.
          mask: bool (B, T), False at tokens that must not be attended to.
          dropout_key: key for attention dropout; None disables it.
        """
        dropout = Dropout(self.dropout, dropout_key)
        *_, heads, head_dim = self.qkv.kernel.shape
        if num_queries is None:
            if self.implementation == "auto" and can_fuse(x.shape[1], heads, head_dim):
                return self._fused(x, mask, dropout)
            # Heads are moved before tokens once, so that both products in `plain` are batched.
            # Separate copies for each took a fifth of a training step on CPU.
            q, k, v = self.qkv(x).transpose(2, 0, 3, 1, 4)
        else:
            kernel, bias = _kernel_and_bias(self.qkv, x.dtype)
            q = jnp.einsum("bqd,dhk->bqhk", x[:, :num_queries], kernel[:, 0]) + bias[0]
            kv = jnp.einsum("btd,dshk->btshk", x, kernel[:, 1:]) + bias[1:]
            q, (k, v) = q.transpose(0, 2, 1, 3), kv.transpose(2, 0, 3, 1, 4)
        return self.out(plain(q, k, v, mask, dropout))

    def _fused(self, x: jax.Array, mask: jax.Array | None, dropout: Dropout) -> jax.Array:
        """Keeps the heads side by side, as the kernel reads and writes them, to avoid copies."""
        qkv_kernel, qkv_bias = _kernel_and_bias(self.qkv, x.dtype)
        out_kernel, out_bias = _kernel_and_bias(self.out, x.dtype)
        # The barrier keeps the reordering out of the product: its gradient would otherwise be
        # computed in the order of the parameters, from a copy of a whole activation.
        qkv = x @ jax.lax.optimization_barrier(by_groups(qkv_kernel)) + by_groups(qkv_bias)
        out = fused(qkv, mask, dropout, heads=qkv_kernel.shape[2])
        return out @ out_kernel.reshape(-1, x.shape[-1]) + out_bias


def _kernel_and_bias(layer: nnx.LinearGeneral, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    assert layer.bias is not None
    return layer.kernel[...].astype(dtype), layer.bias[...].astype(dtype)


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
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """``bias_init`` takes the number of inputs, on which the default of torch depends."""
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
    """(B, T, D) -> (B·T, D) on CPU, where XLA would transpose the hidden features in memory to sum
    the gradient of a weight over two axes. Left alone on TPU, where merging the axes is a copy.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return x.reshape(-1, x.shape[-1]) if device and device.platform == "cpu" else x


class Block(Protocol):
    """One transformer layer, as ``apply_blocks`` calls it."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None,
        dropout_key: jax.Array | None,
        num_queries: int | None,
    ) -> jax.Array: ...


def stack_blocks(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Makes one module of ``layers`` independent blocks; parameters get a leading layer axis."""
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
    """Runs a stack of blocks and returns the first token of its output: (B, T, D) -> (B, D).

    Both towers pool the first token, so the last block computes keys and values for all tokens and
    everything else for the first token only. That saves 10/12 of the block's work and gives the
    same numbers.

    Args:
      blocks: a stack from ``stack_blocks``.
      x: input of the first block.
      mask: bool (B, T), False at padding tokens.
      dropout_key: dropout key; None disables dropout.
      remat: rematerialization in the backward pass: "none", "full" (recomputes each block) or
        "dots" (recomputes everything but products with weights).
      scan_layers: compile one block and loop over the layers instead of unrolling them; the
        numbers are the same.
    """
    graphdef, params = nnx.split(blocks)
    layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if dropout_key is None else jax.random.split(dropout_key, layers)

    def apply(x: jax.Array, layer: tuple, num_queries: int | None = None) -> jax.Array:
        layer_params, key = layer
        block: Block = nnx.merge(graphdef, layer_params)
        return block(x, mask=mask, dropout_key=key, num_queries=num_queries)

    if remat != "none":
        # inside a loop, XLA cannot merge the recomputation with the forward pass: no barrier
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
    """Outputs of every block of a stack: (B, T, D) -> (layers, B, T, D).

    Args:
      blocks: a stack from ``stack_blocks``.
      x: input of the first block.
      call: applies one block to its input.
    """
    graphdef, params = nnx.split(blocks)

    def layer(x: jax.Array, layer_params: nnx.State) -> tuple[jax.Array, jax.Array]:
        y = call(nnx.merge(graphdef, layer_params), x)
        return y, y

    return jax.lax.scan(layer, x, params)[1]


def _split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Splits every array along its first axis.

    The gradient of a split is a concatenation; that of slices would pad every part to full size
    and add them up.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = zip(*(jax.lax.split(leaf, sizes) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, part) for part in parts]
