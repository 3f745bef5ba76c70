"""UniMed-CLIP: the three published recipes (arXiv 2412.10372).

    unimed-jax train --config=configs/unimed.py:vit_b16 --workdir=DIR --config.data.root=CORPORA

| variant            | image tower     | text tower       | published mean of 21 zero-shot sets |
|--------------------|-----------------|------------------|-------------------------------------|
| vit_b16            | ViT-B/16 at 224 | BiomedBERT-base  | 61.63                               |
| vit_l14            | ViT-L/14 at 336 | BiomedBERT-base  | 64.84                               |
| vit_l14_large_text | ViT-L/14 at 336 | BiomedBERT-large | 62.09                               |

CORPORA holds one converted corpus per part, in folders named as in
input_pipeline/conversion/unimed_parts.py. Converted with `--corpus=published`, they are the
published corpus (docs/guides/converting.md): with official test images and released captions, and
two samples of the two texts of HQ-60k. By default they are without. A part without a folder is left
out of the mixture: training names it at its start, and `unimed-jax corpus-status` tells where to
get it.

Image tower and logit scale start from MetaCLIP, the text tower from BiomedBERT; both come from the
Hugging Face hub. Which of MetaCLIP's L/14 files the authors used is not published; its position
embeddings are resized from 16 x 16 to 24 x 24, as published (corners aligned).

Hardware: published with 16 A100-40G; on 16 chips of TPU v5e, ViT-L/14 needs --config.mesh.fsdp=4
(docs/log/tpu_report.md). Not trained here yet.
"""

from ml_collections import ConfigDict

from input_pipeline.conversion.unimed_parts import PARTS
from unimed_jax.config import base_config, choose_variant, edit, source
from unimed_jax.models import presets

VARIANTS = ("vit_b16", "vit_l14", "vit_l14_large_text")


def get_config(variant: str = "vit_b16") -> ConfigDict:
    choose_variant(variant, VARIANTS)
    large_image = variant != "vit_b16"
    large_text = variant == "vit_l14_large_text"
    config = base_config("contrastive")

    # --- schedule
    config.batch_size = 2048
    config.num_epochs = 10.0  # of 5.28 M pairs
    config.checkpoint.every_steps = 1000

    # --- data: every part in proportion to its size
    with edit(config):
        for key, part in PARTS.items():
            config.data.sources[key] = source(path=key, caption_rule=part.caption_rule)
    config.data.optional = tuple(PARTS)
    config.augmentation.min_area = 0.9

    # --- model
    if large_image:
        config.model.embed_dim = 768
        config.model.visual.update(presets.visual("vit_l14", image_size=336))
    else:
        config.model.embed_dim = 512
        config.model.visual.update(presets.visual("vit_b16", image_size=224))
    config.model.visual.activation = "quick_gelu"
    config.model.text.update(presets.text("bert_large" if large_text else "bert_base"))
    config.model.text.context_length = 256
    config.model.text.buckets = (32, 64, 128, 256)  # the published step, with less padding
    config.model.text.dropout = 0.1
    config.model.text.projection = "mlp"
    config.model.compute_dtype = "bfloat16"  # published: float16 with loss scaling
    config.model.remat = "full"

    # --- loss
    config.loss.name = "softmax"
    config.loss.logit_scale_max = 100.0

    # --- optimizer
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-4 if large_image else 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 2000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.clip_norm = 0.0  # no gradient clipping

    # --- weights to start from
    size = "large" if large_text else "base"
    config.tokenizer = f"hf:microsoft/BiomedNLP-BiomedBERT-{size}-uncased-abstract"
    config.init.text = config.tokenizer
    metaclip = "hf:facebook/metaclip-l14-400m" if large_image else "hf:facebook/metaclip-b16-400m"
    config.init.visual = config.init.logits = metaclip
    config.init.position_rule = "corners"  # as published; only ViT-L/14 changes its grid
    return config
