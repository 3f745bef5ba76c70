"""A configuration that trains in seconds, for tests and for trying a change."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from unimed_jax.config import base_config, edit, source


def tiny_config(corpus: str, changes: Mapping[str, Any] = {}) -> ConfigDict:
    """A two-layer dual encoder on a phantom corpus.

    Args:
      corpus: directory that ``write_phantoms`` wrote.
      changes: key -> value, dots in a key written as dots or as double underscores.
    """
    config = base_config("contrastive")
    config.batch_size = 16
    config.num_train_steps = 6
    config.log_every_steps = 1
    config.checkpoint.every_steps = 3
    config.data.root = corpus
    with edit(config):
        config.data.sources.phantoms = source()
        config.evals.zero_shot = ConfigDict(
            {
                "kind": "zero_shot",
                "path": ".",
                "split": "val",
                "prompts": "phantoms",
                "batch_size": 16,
            }
        )
    config.tokenizer = "root:vocab.txt"
    config.model.update(
        {
            "embed_dim": 16,
            "visual": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 4,
                       "mlp_width": 64},
            "text": {"vocab_size": 296, "width": 32, "layers": 2, "heads": 4, "mlp_width": 64,
                     "max_positions": 24, "context_length": 24},
        }
    )  # fmt: skip
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 2
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    if dotted.get("evals") == {}:  # an update would merge, not replace
        config.evals = ConfigDict(dotted.pop("evals"))
    config.update_from_flattened_dict(dotted)
    return config
