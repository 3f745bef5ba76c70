"""Embeddings by stock open_clip, in a separate process (TensorFlow and torch cannot share one).

    python tests/helpers/open_clip_reference.py IN.npz OUT.npz DIRECTORY...

For the i-th directory, which `export_open_clip` wrote, OUT holds `image/i`, `text/i` (normalised),
`ids/i` (its tokenizer on `text`) and the state dict as `state/i/NAME`.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import open_clip
import torch
from PIL import Image


def main(source: str, target: str, directories: list[str]) -> None:
    inputs = np.load(source)
    outputs = {}
    for i, directory in enumerate(directories):
        name = f"local-dir:{directory}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        model.eval()
        images = torch.stack([preprocess(Image.fromarray(image)) for image in inputs["images"]])
        with torch.no_grad():
            outputs[f"image/{i}"] = model.encode_image(images, normalize=True).numpy()
            ids = torch.from_numpy(inputs["ids"])
            outputs[f"text/{i}"] = model.encode_text(ids, normalize=True).numpy()
        outputs[f"ids/{i}"] = open_clip.get_tokenizer(name)([str(inputs["text"])]).numpy()
        for key, tensor in model.state_dict().items():
            outputs[f"state/{i}/{key}"] = tensor.numpy()
    np.savez(target, **outputs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
