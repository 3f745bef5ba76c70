"""A tiny CLIP on generated phantoms of six modalities: minutes on a laptop, no data, no downloads.

    python -m unimed_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

2 CPU cores, under 5 minutes. Phantoms are drawn by input_pipeline/phantoms/; nothing here says
anything about patients. ``:smoke`` is the same in a few seconds, to see that an installation works.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, source


def get_config(variant: str = "") -> ConfigDict:
    config = base_config("contrastive")
    smoke = choose_variant(variant, ("", "smoke")) == "smoke"

    config.batch_size = 64
    config.num_train_steps = 20 if smoke else 400
    config.log_every_steps = 10 if smoke else 25
    config.checkpoint.every_steps = 10 if smoke else 200
    config.eval_every_steps = 0 if smoke else 200

    config.data.root = "phantoms"
    config.data.num_streams = 4
    config.data.phantoms.num_train_per_class = 16 if smoke else 150
    config.data.phantoms.num_val_per_class = 4 if smoke else 30
    with edit(config):
        config.data.sources.phantoms = source()
        config.evals.zero_shot = ConfigDict(
            {
                "kind": "zero_shot",
                "path": ".",
                "split": "val",
                "prompts": "phantoms",
                "batch_size": 64,
            }
        )
    config.tokenizer = "root:vocab.txt"

    config.model.embed_dim = 64
    config.model.visual.image_size = 64
    config.model.visual.patch_size = 16
    config.model.visual.width = 128
    config.model.visual.layers = 6
    config.model.visual.heads = 4
    config.model.visual.mlp_width = 512
    config.model.text.vocab_size = 296
    config.model.text.width = 128
    config.model.text.layers = 2
    config.model.text.heads = 4
    config.model.text.mlp_width = 512
    config.model.text.max_positions = 24
    config.model.text.context_length = 24

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    return config
