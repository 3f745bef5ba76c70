"""Small CLIPs in the layouts of other projects, with embeddings, in a separate process.

    python tests/helpers/layouts_reference.py DIRECTORY BERT_DIRECTORY

DIRECTORY/inputs.npz holds images (uint8, of the models' size) and token ids. Written beside it are
one weights file or directory per layout, and NAME.npz with its normalised `visual` and `text`.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import open_clip
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
VISION = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 60, "width": 64, "heads": 2, "layers": 1}


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fresh parameters have biases of 0 and norms of 1, which would hide a mix-up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            mean = 1.0 if "norm" in name.lower() or ".ln_" in name else 0.0
            if tensor.ndim:
                scale = 0.08 if tensor.ndim > 1 else 0.15
                noise = torch.randn(tensor.shape, generator=generator) * scale
                tensor.copy_(noise + (mean if name.endswith("weight") and tensor.ndim == 1 else 0))
    return model.eval()


def save_embeddings(directory: Path, name: str, pixels, encode_image, ids=None, encode_text=None):
    with torch.inference_mode():
        found = {"visual": torch.nn.functional.normalize(encode_image(pixels), dim=-1).numpy()}
        if encode_text is not None:
            found["text"] = torch.nn.functional.normalize(encode_text(ids), dim=-1).numpy()
    np.savez(directory / f"{name}.npz", **found)


def main(directory: Path, bert: Path) -> None:
    inputs = np.load(directory / "inputs.npz")
    images = torch.from_numpy(inputs["images"]).permute(0, 3, 1, 2).float() / 255
    pixels, ids = (images - MEAN) / STD, torch.from_numpy(inputs["ids"])

    # OpenAI CLIP and MetaCLIP: CLIP's own text tower
    clip = randomise(open_clip.CLIP(24, VISION, TEXT, quick_gelu=True), 1)
    state = clip.state_dict()
    torch.save(state, directory / "clip.pt")
    torch.save(state, directory / "clip_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({k: v.half() for k, v in state.items()}, directory / "clip_half.pt")
    torch.save({k: v.bfloat16() for k, v in state.items()}, directory / "clip_bfloat16.pt")
    save_file({k: v.contiguous() for k, v in state.items()}, directory / "clip.safetensors")
    save_embeddings(directory, "clip", pixels, clip.encode_image)
    clip.register_buffer("input_resolution", torch.tensor(32))  # as in OpenAI's files
    example = (pixels[:2], torch.ones(2, 16, dtype=torch.long))
    traced = torch.jit.trace(clip, example, strict=False, check_trace=False)
    traced.save(directory / "clip_torchscript.pt")
    half = randomise(open_clip.CLIP(24, VISION, TEXT, quick_gelu=True), 1)
    half.load_state_dict({k: v.half().float() for k, v in state.items()})
    save_embeddings(directory, "clip_half", pixels, half.encode_image)
    torch.save(clip, directory / "whole_module.pt")

    # transformers' CLIPModel
    vision = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 60}
    hf = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=vision,
            text_config=text | {"num_attention_heads": 2},
            projection_dim=24,
        )
    )
    hf = randomise(hf, 2)
    hf.save_pretrained(directory / "hf_clip")

    def hf_image(x):
        pooled = hf.vision_model(pixel_values=x).pooler_output
        return hf.visual_projection(pooled)

    save_embeddings(directory, "hf_clip", pixels, hf_image)

    # UniMed-CLIP: open_clip's towers with other prefixes, in a training checkpoint
    text_cfg = {
        "hf_model_name": str(bert),
        "hf_tokenizer_name": str(bert),
        "hf_model_pretrained": False,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 16,
    }
    unimed = open_clip.CustomTextCLIP(24, VISION, text_cfg, quick_gelu=True)
    unimed = randomise(unimed, 3)
    renamed = {
        f"module.{k.replace('text.', 'text_encoder.', 1) if k.startswith('text.') else k}": v
        for k, v in unimed.state_dict().items()
    }
    buffer = "module.text_encoder.transformer.embeddings.position_ids"
    checkpoint = {
        "epoch": 10,
        "name": "run",
        "state_dict": renamed | {buffer: torch.arange(40)[None]},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(lr=1e-4, out=Path("logs")),
        "best": np.float64(0.5),
    }
    torch.save(checkpoint, directory / "unimed.pt")
    bare = {k.removeprefix("module."): v for k, v in renamed.items()}
    torch.save(bare, directory / "unimed_bare.pt")
    save_embeddings(directory, "unimed", pixels, unimed.encode_image, ids, unimed.encode_text)

    # BiomedCLIP: a timm image tower, 224 px here as the name says; the pixels are enlarged
    vision_cfg = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    timm = randomise(open_clip.CustomTextCLIP(24, vision_cfg, text_cfg), 4)
    torch.save(timm.state_dict(), directory / "biomedclip.bin")
    large = torch.from_numpy(inputs["large_images"]).permute(0, 3, 1, 2).float() / 255
    save_embeddings(
        directory, "biomedclip", (large - MEAN) / STD, timm.encode_image, ids, timm.encode_text
    )

    # the resize of position embeddings when an image of another size is asked for
    larger = open_clip.CLIP(24, VISION | {"image_size": 48}, TEXT, quick_gelu=True)
    resized = dict(state)
    open_clip.model.resize_pos_embed(resized, larger)
    table = state["visual.positional_embedding"]
    grid = table[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    corners = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=True)
    np.savez(
        directory / "positions.npz",
        open_clip=resized["visual.positional_embedding"].numpy(),
        corners=torch.cat([table[:1], corners[0].flatten(1).T]).numpy(),
    )

    # the preprocessing of open_clip, on a picture of another size and shape
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    picture = Image.fromarray(inputs["picture"])
    back = (transform(picture) * STD + MEAN) * 255
    np.savez(directory / "preprocessed.npz", back.round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
