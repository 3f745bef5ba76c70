"""Sizes of well-known towers, by name, for recipes.

config.model.visual.update(presets.visual("vit_b16"))
config.model.text.update(presets.text("bert_base", context_length=77))
"""

from collections.abc import Mapping
from typing import Any

from input_pipeline.io.errors import ConfigError


def _tower(width: int, layers: int, heads: int, **other: int) -> dict[str, int]:
    return {"width": width, "layers": layers, "heads": heads, "mlp_width": 4 * width, **other}


# arXiv 2010.11929; Ti from arXiv 2012.12877. CLIP's (arXiv 2103.00020) have the same sizes.
VISUAL: Mapping[str, Mapping[str, int]] = {
    "vit_ti16": _tower(192, 12, 3, patch_size=16),
    "vit_s16": _tower(384, 12, 6, patch_size=16),
    "vit_b32": _tower(768, 12, 12, patch_size=32),
    "vit_b16": _tower(768, 12, 12, patch_size=16),
    "vit_l14": _tower(1024, 24, 16, patch_size=14),
}

# BERT: arXiv 1810.04805; MiniLM: arXiv 2002.10957
TEXT: Mapping[str, Mapping[str, int]] = {
    "minilm_l6": _tower(384, 6, 12),
    "bert_base": _tower(768, 12, 12),
    "bert_large": _tower(1024, 24, 16),
}


def visual(name: str, **changes: Any) -> dict[str, Any]:
    """Keys of ``config.model.visual``.

    Args:
      name: an entry of ``VISUAL``.
      changes: keys of ``config.model.visual`` that differ from the preset or are not in it.

    Raises:
      ConfigError: there is no such preset.
    """
    return {**_get(VISUAL, "image tower", name), **changes}


def text(name: str, **changes: Any) -> dict[str, Any]:
    """Keys of ``config.model.text``; arguments and errors as for ``visual``."""
    return {**_get(TEXT, "text tower", name), **changes}


def _get(presets: Mapping[str, Mapping[str, int]], what: str, name: str) -> Mapping[str, int]:
    if name not in presets:
        raise ConfigError(f"no preset for the {what} {name!r}; valid: {', '.join(presets)}")
    return presets[name]
