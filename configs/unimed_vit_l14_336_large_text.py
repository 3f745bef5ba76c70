"""UniMed-CLIP, ViT-L/14 at 336 px with BiomedBERT-large: the published recipe (arXiv 2412.10372).

    python -m unimed_jax.train --config=configs/unimed_vit_l14_336_large_text.py --workdir=DIR \\
        --config.data.root=DIR2

DIR2 holds one converted corpus per part, in folders named as in input_pipeline/unimed_parts.py.
Published: mean of 21 zero-shot sets 62.09. Not run here yet. Which of MetaCLIP's L/14 files it
started from was not published; its position embeddings are resized from 16 x 16 to 24 x 24. On
16 chips of TPU v5e add --config.mesh.fsdp=4 (docs/tpu_report.md).
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
    config.tokenizer = "hf:microsoft/BiomedNLP-BiomedBERT-large-uncased-abstract"
    config.init.text = config.tokenizer
    config.init.visual = config.init.logits = "hf:facebook/metaclip-l14-400m"

    config.model.embed_dim = 768
    config.model.visual.image_size = 336
    config.model.visual.patch_size = 14
    config.model.visual.width = 1024
    config.model.visual.layers = 24
    config.model.visual.heads = 16
    config.model.visual.mlp_width = 4096
    config.model.text.width = 1024
    config.model.text.layers = 24
    config.model.text.heads = 16
    config.model.text.mlp_width = 4096
    config.model.compute_dtype = "bfloat16"  # published: float16 with loss scaling
    config.model.remat = "full"

    config.optimizer.learning_rate = 4e-4
    return config
