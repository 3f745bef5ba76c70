"""Zero-shot accuracy of an exported model, with PyTorch and stock open_clip alone.

    python benchmarks/zero_shot_in_torch.py --model=exports/minimed --table=MINIMED/metadata.csv \\
        --prompts=unimed_jax/evals/prompts/minimed.json

Nothing of unimed_jax is imported, so this runs where only open_clip_torch and transformers are
installed. Prints the balanced accuracy of each task of the prompt file on the rows of the split
`val`, to compare with the results.json of the run that was exported. --logits keeps what
agreement.py compares.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="directory of the export")
    parser.add_argument("--table", type=Path, required=True, help="CSV that was converted")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON of the prompt set")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--logits", type=Path, help="file for the logits of each task, npz")
    args = parser.parse_args()

    name = f"local-dir:{args.model.absolute()}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    with args.table.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]

    @torch.inference_mode()
    def embed_images() -> np.ndarray:
        found = []
        for start in range(0, len(rows), args.batch_size):
            paths = [args.table.parent / r["image"] for r in rows[start : start + args.batch_size]]
            batch = torch.stack([preprocess(Image.open(path)) for path in paths])
            found.append(model.encode_image(batch, normalize=True).numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def embed_class(prompts: list[str]) -> np.ndarray:
        mean = model.encode_text(tokenizer(prompts), normalize=True).numpy().mean(0)
        return mean / np.linalg.norm(mean)

    images, logits = embed_images(), {}
    scale = model.logit_scale.exp().item()
    for task, settings in json.loads(args.prompts.read_text("utf-8"))["tasks"].items():
        classes = list(settings["classes"])
        centres = np.stack([embed_class(prompts) for prompts in settings["classes"].values()])
        truth = np.array([
            classes.index(row[settings["field"]])
            if settings.get("source", row["source"]) == row["source"]
            and row[settings["field"]] in classes
            else -1
            for row in rows
        ])  # fmt: skip
        logits[task] = scale * images @ centres.T
        found = logits[task].argmax(1)
        recalls = [(found[truth == c] == c).mean() for c in range(len(classes))]
        print(f"{task:26} {np.mean(recalls):.10f}")
    if args.logits:
        np.savez(args.logits, **logits)


if __name__ == "__main__":
    main()
