"""A dual encoder of about ten thousand parameters, for tests."""

import copy
import math
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unimed_jax.exporting import open_clip_directory
from unimed_jax.models import dual_encoder
from unimed_jax.models.dual_encoder import DualEncoder
from unimed_jax.models.functional import Params
from unimed_jax.weights import loader

_SPELLING = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.ascii_lowercase,
    *(f"##{x}" for x in string.ascii_lowercase),
]

_SMALL = {
    "embed_dim": 24,
    "visual": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "heads": 2,
        "mlp_width": 64,
        "activation": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text": {
        "vocab_size": 99,
        "width": 48,
        "layers": 3,
        "heads": 4,
        "mlp_width": 80,
        "max_positions": 40,
        "num_token_types": 2,
        "activation": "gelu",
        "layer_norm_eps": 1e-12,
        "dropout": 0.1,
        "context_length": 16,
        "pad_id": 0,
        "projection": "mlp",
    },
    "logit_scale_init": math.log(1 / 0.07),
    "logit_bias_init": None,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "compute_dtype": "float32",
    "param_dtype": "float32",
    "remat": "none",
    "scan_layers": True,
}


def small_config(**changes: Any) -> dict[str, Any]:
    """The mapping with some values replaced; `visual` and `text` take dicts of changes."""
    config = copy.deepcopy(_SMALL)
    for key, value in changes.items():
        if key in ("visual", "text"):
            config[key].update(value)
        else:
            config[key] = value
    return config


def random_params(model: DualEncoder, seed: int = 0) -> Params:
    """numpy arrays, N(0, 0.15²) or, for norm scales, N(1, 0.15²).

    Fresh parameters have norms of 1 and biases of 0, which would hide a mix-up; and these cost no
    compilation.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.15, leaf.shape).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def write_export(root: Path, words: Sequence[str] = _SPELLING, **changes: Any) -> Path:
    """The directory of an export with random parameters.

    Its vocabulary is `words`, filled up; that of the default spells, so that different texts of
    letters differ. `changes` are those of `small_config`.
    """
    config = small_config(**changes)
    unused = [f"[unused{i}]" for i in range(config["text"]["vocab_size"] - len(words))]
    (root / "vocab.txt").write_text("\n".join([*words, *unused]) + "\n")
    model = dual_encoder.build(config)
    opened = loader.of_params(
        random_params(model), model.config, source="test", tokenizer=str(root)
    )
    directory = root / "export"
    directory.mkdir()
    open_clip_directory.write(directory, opened, model.config, root, str(directory))
    return directory
