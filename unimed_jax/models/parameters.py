"""The logical axes of each parameter, by its path.

A path joins the keys of the parameter dict with "/", for example `visual/blocks/attn/qkv/kernel`.
Because of the layer axis, of split heads and of fused projections, the rank of an array here is not
that of the torch tensor it corresponds to; rules on the rank (weight decay) must go by name.
"""

Axes = tuple[str | None, ...]

PARAMETER_AXES: tuple[tuple[str, Axes], ...] = (
    (r"blocks/attn/qkv/kernel$", ("layers", "embed", None, "heads", "head_dim")),
    (r"blocks/attn/qkv/bias$", ("layers", None, "heads", "head_dim")),
    (r"blocks/attn/out/kernel$", ("layers", "heads", "head_dim", "embed")),
    (r"blocks/attn/out/bias$", ("layers", "embed")),
    (r"blocks/mlp/c_fc/kernel$", ("layers", "embed", "mlp")),
    (r"blocks/mlp/c_fc/bias$", ("layers", "mlp")),
    (r"blocks/mlp/c_proj/kernel$", ("layers", "mlp", "embed")),
    (r"blocks/mlp/c_proj/bias$", ("layers", "embed")),
    (r"blocks/ln_[12]/(scale|bias)$", ("layers", "embed")),
    (r"^visual/patch_embedding/kernel$", ("patch", "embed")),
    (r"^visual/patch_embedding/bias$", ("embed",)),
    (r"^visual/class_embedding$", ("embed",)),
    (r"^visual/positional_embedding$", ("positions", "embed")),
    (r"^visual/proj$", ("embed", "joint")),
    (r"^visual/ln_(pre|post)/(scale|bias)$", ("embed",)),
    (r"^text/word_embeddings/embedding$", ("vocab", "embed")),
    (r"^text/position_embeddings/embedding$", ("positions", "embed")),
    (r"^text/token_type_embeddings/embedding$", (None, "embed")),
    (r"^text/ln_embeddings/(scale|bias)$", ("embed",)),
    (r"^text/proj/c_fc/kernel$", ("embed", "mlp")),
    (r"^text/proj/c_proj/kernel$", ("mlp", "joint")),
    (r"^text/proj/kernel$", ("embed", "joint")),
    (r"^logit_(scale|bias)$", ()),
)
"""(regex over the path, one logical axis or None per dim); the first match wins."""
