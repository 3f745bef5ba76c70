"""UniMed-CLIP, ViT-B/16 at 224 px with BiomedBERT-base: the published recipe (arXiv 2412.10372).

    python -m unimed_jax.train --config=configs/unimed_vit_b16.py --workdir=DIR \\
        --config.data.root=DIR2

DIR2 holds one converted corpus per part, in folders named as in input_pipeline/unimed_parts.py.
Published: 16 A100-40G, global batch 2,048, 10 epochs of 5.28 M pairs; mean of 21 zero-shot sets
61.63. Not run here yet. Image tower and logit scale start from MetaCLIP, the text tower from
BiomedBERT; both come from the Hugging Face hub.
"""

from ml_collections import ConfigDict

from input_pipeline.conversion.unimed_parts import PARTS
from unimed_jax.config import base_config, choose_variant, edit, source


def get_config(variant: str = "") -> ConfigDict:
    choose_variant(variant, ("",))
    config = base_config("contrastive")
    config.num_epochs = 10.0
    config.checkpoint.every_steps = 1000
    with edit(config):
        for key, part in PARTS.items():  # drawn in proportion to their size
            config.data.sources[key] = source(path=key, caption_rule=part.caption_rule)
    config.tokenizer = "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    config.init.text = config.tokenizer
    config.init.visual = config.init.logits = "hf:facebook/metaclip-b16-400m"

    # model and optimiser: the defaults of base_config are this recipe; only the hardware differs
    config.model.compute_dtype = "bfloat16"  # published: float16 with loss scaling
    config.model.remat = "full"
    return config
