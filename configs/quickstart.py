"""A tiny CLIP on generated phantoms of six modalities: minutes on a laptop, no data, no downloads.

    unimed-jax train --config=configs/quickstart.py --workdir=runs/quickstart

Phantoms are drawn by input_pipeline/phantoms/; they say nothing about patients. The variant
``:smoke`` takes seconds and shows that an installation works.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, evaluator, source


def get_config(variant: str = "") -> ConfigDict:
    smoke = choose_variant(variant, ("", "smoke")) == "smoke"
    config = base_config("contrastive")

    # --- schedule
    config.batch_size = 64
    config.num_train_steps = 20 if smoke else 400
    config.log_every_steps = 10 if smoke else 25
    config.checkpoint.every_steps = 10 if smoke else 200
    config.eval_every_steps = 0 if smoke else 200

    # --- data: drawn before the first step
    config.data.root = "phantoms"
    config.data.phantoms.num_train_per_class = 16 if smoke else 150
    config.data.phantoms.num_val_per_class = 4 if smoke else 30
    with edit(config):
        config.data.sources.phantoms = source()
        config.evals.zero_shot = evaluator("zero_shot", prompts="phantoms")

    # --- model
    config.model.embed_dim = 64
    config.model.visual.update(
        {"image_size": 64, "patch_size": 16, "width": 128, "layers": 6, "heads": 4,
         "mlp_width": 512}
    )  # fmt: skip
    config.model.text.update(
        {"vocab_size": 296, "width": 128, "layers": 2, "heads": 4, "mlp_width": 512,
         "max_positions": 24, "context_length": 24}
    )  # fmt: skip
    config.tokenizer = "root:vocab.txt"

    # --- optimizer
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    return config
