"""The PyTorch part of an export, in a separate process: TensorFlow and torch cannot share one.

    python verify_in_torch.py JOB.json

The job names a directory for open_clip, pixels and texts to embed, the output file of the
embeddings, and optionally a state dict to write: {"directory", "inputs", "outputs",
"state_dict": null or {"path", "text_prefix"}}. Run as a file, so that no module of this package is
imported.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # what needs the hub now will need it at the user's

import numpy as np
import open_clip
import torch
from PIL import Image


def main(job: dict) -> None:
    name = f"local-dir:{job['directory']}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    inputs = np.load(job["inputs"])
    model.eval()
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.fromarray(image)) for image in inputs["images"]])
        ids = tokenizer([str(text) for text in inputs["texts"]])
        np.savez(
            job["outputs"],
            ids=ids.numpy(),
            visual=model.encode_image(images, normalize=True).numpy(),
            text=model.encode_text(ids, normalize=True).numpy(),
        )
    if job["state_dict"]:
        path, prefix = job["state_dict"]["path"], job["state_dict"]["text_prefix"]
        state = {
            prefix + key.removeprefix("text.") if key.startswith("text.") else key: tensor
            for key, tensor in model.state_dict().items()
        }
        torch.save(state, path)
        again = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state), f"{path} differs"


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        main(json.load(file))
