"""Names and layouts of the parameters of each tower in the checkpoints of other projects.

A layout names the dims by letters, one group per dim: torch's fused projection (3·H·K, D) is
"shk d", ours (D, 3, H, K) is "d s h k". The letters u and v are dims of size 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Entry:
    """One parameter of ours and the torch tensors that hold it.

    Attributes:
        path: keys joined by "/"; under "blocks/" our array is stacked on a leading layer axis.
        layout: dims of our array, without the layer axis.
        names: names of torch tensors, with "{layer}" for the index of the block. Several names are
            pieces of one tensor, split along its first dim.
        torch_layout: dims of the torch tensor, after joining the pieces.
    """

    path: str
    layout: str
    names: tuple[str, ...]
    torch_layout: str


Layout = tuple[Entry, ...]


def _vector(path: str, name: str) -> Entry:
    return Entry(path, "d", (name,), "d")


def _kernel(path: str, name: str) -> Entry:
    return Entry(path, "i o", (name,), "o i")


def _linear(path: str, name: str) -> Layout:
    return (_kernel(f"{path}/kernel", f"{name}.weight"), _vector(f"{path}/bias", f"{name}.bias"))


def _norm(path: str, name: str) -> Layout:
    return (_vector(f"{path}/scale", f"{name}.weight"), _vector(f"{path}/bias", f"{name}.bias"))


def _attention(path: str, weights: tuple[str, ...], biases: tuple[str, ...], out: str) -> Layout:
    return (
        Entry(f"{path}/qkv/kernel", "d s h k", weights, "shk d"),
        Entry(f"{path}/qkv/bias", "s h k", biases, "shk"),
        Entry(f"{path}/out/kernel", "h k d", (f"{out}.weight",), "d hk"),
        _vector(f"{path}/out/bias", f"{out}.bias"),
    )


def _separate(prefix: str, parts: tuple[str, str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of separate query, key and value projections."""
    weights, biases = (
        tuple(f"{prefix}.{part}.{kind}" for part in parts) for kind in ("weight", "bias")
    )
    return weights, biases


def _embedding(path: str, name: str) -> Entry:
    return Entry(f"{path}/embedding", "n d", (f"{name}.weight",), "n d")


def under(path: str, name: str, layout: Iterable[Entry]) -> Layout:
    """The entries with a prefix before their paths and names."""
    return tuple(
        replace(
            entry,
            path=f"{path}{entry.path}",
            names=tuple(f"{name}{torch_name}" for torch_name in entry.names),
        )
        for entry in layout
    )


_PATCHES = Entry("patch_embedding/kernel", "pqc d", ("conv1.weight",), "d c p q")
_RESBLOCK = "transformer.resblocks.{layer}"

CLIP_VISUAL: Layout = (
    _PATCHES,
    _vector("class_embedding", "class_embedding"),
    Entry("positional_embedding", "n d", ("positional_embedding",), "n d"),
    *_norm("ln_pre", "ln_pre"),
    *_norm("blocks/ln_1", f"{_RESBLOCK}.ln_1"),
    *_attention(
        "blocks/attn",
        (f"{_RESBLOCK}.attn.in_proj_weight",),
        (f"{_RESBLOCK}.attn.in_proj_bias",),
        f"{_RESBLOCK}.attn.out_proj",
    ),
    *_norm("blocks/ln_2", f"{_RESBLOCK}.ln_2"),
    *_linear("blocks/mlp/c_fc", f"{_RESBLOCK}.mlp.c_fc"),
    *_linear("blocks/mlp/c_proj", f"{_RESBLOCK}.mlp.c_proj"),
    *_norm("ln_post", "ln_post"),
    Entry("proj", "d e", ("proj",), "d e"),
)
"""The image tower of OpenAI CLIP, MetaCLIP, open_clip and UniMed-CLIP, below "visual."."""

_HF_LAYER = "vision_model.encoder.layers.{layer}"

HF_CLIP_VISUAL: Layout = (
    replace(_PATCHES, names=("vision_model.embeddings.patch_embedding.weight",)),
    _vector("class_embedding", "vision_model.embeddings.class_embedding"),
    Entry(
        "positional_embedding",
        "n d",
        ("vision_model.embeddings.position_embedding.weight",),
        "n d",
    ),
    *_norm("ln_pre", "vision_model.pre_layrnorm"),  # the misspelling is transformers'
    *_norm("blocks/ln_1", f"{_HF_LAYER}.layer_norm1"),
    *_attention(
        "blocks/attn",
        *_separate(f"{_HF_LAYER}.self_attn", ("q_proj", "k_proj", "v_proj")),
        f"{_HF_LAYER}.self_attn.out_proj",
    ),
    *_norm("blocks/ln_2", f"{_HF_LAYER}.layer_norm2"),
    *_linear("blocks/mlp/c_fc", f"{_HF_LAYER}.mlp.fc1"),
    *_linear("blocks/mlp/c_proj", f"{_HF_LAYER}.mlp.fc2"),
    *_norm("ln_post", "vision_model.post_layernorm"),
    Entry("proj", "d e", ("visual_projection.weight",), "e d"),
)
"""The image tower of transformers' CLIPModel."""

_TIMM_BLOCK = "trunk.blocks.{layer}"

TIMM_VISUAL: Layout = (
    replace(_PATCHES, names=("trunk.patch_embed.proj.weight",)),
    _vector("patch_embedding/bias", "trunk.patch_embed.proj.bias"),
    Entry("class_embedding", "uvd", ("trunk.cls_token",), "u v d"),
    Entry("positional_embedding", "un d", ("trunk.pos_embed",), "u n d"),
    *_norm("blocks/ln_1", f"{_TIMM_BLOCK}.norm1"),
    *_attention(
        "blocks/attn",
        (f"{_TIMM_BLOCK}.attn.qkv.weight",),
        (f"{_TIMM_BLOCK}.attn.qkv.bias",),
        f"{_TIMM_BLOCK}.attn.proj",
    ),
    *_norm("blocks/ln_2", f"{_TIMM_BLOCK}.norm2"),
    *_linear("blocks/mlp/c_fc", f"{_TIMM_BLOCK}.mlp.fc1"),
    *_linear("blocks/mlp/c_proj", f"{_TIMM_BLOCK}.mlp.fc2"),
    *_norm("ln_post", "trunk.norm"),
    Entry("proj", "d e", ("head.proj.weight",), "e d"),
)
"""A timm vision transformer inside open_clip, as in BiomedCLIP, below "visual."."""

_BERT_LAYER = "encoder.layer.{layer}"

BERT: Layout = (
    _embedding("word_embeddings", "embeddings.word_embeddings"),
    _embedding("position_embeddings", "embeddings.position_embeddings"),
    _embedding("token_type_embeddings", "embeddings.token_type_embeddings"),
    *_norm("ln_embeddings", "embeddings.LayerNorm"),
    *_attention(
        "blocks/attn",
        *_separate(f"{_BERT_LAYER}.attention.self", ("query", "key", "value")),
        f"{_BERT_LAYER}.attention.output.dense",
    ),
    *_norm("blocks/ln_1", f"{_BERT_LAYER}.attention.output.LayerNorm"),
    *_linear("blocks/mlp/c_fc", f"{_BERT_LAYER}.intermediate.dense"),
    *_linear("blocks/mlp/c_proj", f"{_BERT_LAYER}.output.dense"),
    *_norm("blocks/ln_2", f"{_BERT_LAYER}.output.LayerNorm"),
)
"""BERT without pooler under Hugging Face's names."""

HF_TEXT: Layout = (
    *under("", "transformer.", BERT),
    _kernel("proj/c_fc/kernel", "proj.0.weight"),
    _kernel("proj/c_proj/kernel", "proj.2.weight"),
    _kernel("proj/kernel", "proj.weight"),
)
"""BERT with the projections that open_clip has, below "text." or UniMed-CLIP's "text_encoder."."""

LOGITS: Layout = (
    Entry("logit_scale", "", ("logit_scale",), ""),
    Entry("logit_bias", "", ("logit_bias",), ""),
)


VISUAL: dict[str, Layout] = {"clip": CLIP_VISUAL, "timm": TIMM_VISUAL}
"""The image tower in open_clip, by `model.visual.variant`."""


def open_clip(form: str) -> Layout:
    """A whole model under the names of open_clip's CustomTextCLIP.

    Args:
        form: `model.visual.variant`.
    """
    return (*under("visual/", "visual.", VISUAL[form]), *under("text/", "text.", HF_TEXT), *LOGITS)
