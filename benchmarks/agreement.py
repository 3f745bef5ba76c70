"""Agreement of unimed_jax with stock open_clip on real images, from files to classes.

    python benchmarks/agreement.py --model=exports/minimed --table=MINIMED/metadata.csv \\
        --prompts=unimed_jax/evals/prompts/minimed.json

Both open the export, read the images of the split `val`, apply their usual preprocessing, and
classify all of them by every task of the prompt file; open_clip runs in a separate process,
zero_shot_in_torch.py. Ends with status 1 if a class differs, or a logit by more than --tolerance.
Needs the extra [torch].
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

import numpy as np

import unimed_jax
from unimed_jax.evals import classification, prompt_sets


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="directory of the export")
    parser.add_argument("--table", type=Path, required=True, help="CSV that was converted")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON of the prompt set")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of logits"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npz"
        given = [f"--{name}={getattr(args, name)}" for name in ("model", "table", "prompts")]
        command = [sys.executable, ROOT / "benchmarks" / "zero_shot_in_torch.py"]
        subprocess.run([*command, *given, f"--logits={file}"], check=True)
        theirs = dict(np.load(file))
    with args.table.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    model = unimed_jax.load(args.model)
    images = model.encode_image([args.table.parent / row["image"] for row in rows])
    agrees = True
    print("| task | images | classes that differ | largest difference of logits | logit range |")
    print("|---|---|---|---|---|")
    for task in prompt_sets.load_prompts(args.prompts).tasks:
        vectors = classification.class_embeddings(
            model.encode_text(task.sentences), task.class_index
        )
        ours = classification.zero_shot_logits(images, vectors, model.logit_scale)
        differ = int((ours.argmax(1) != theirs[task.name].argmax(1)).sum())
        largest = float(np.abs(ours - theirs[task.name]).max())
        agrees &= differ == 0 and largest <= args.tolerance
        span = f"{ours.min():.2f} to {ours.max():.2f}"
        print(f"| {task.name} | {len(ours)} | {differ} | {largest:.1e} | {span} |")
    print("they agree" if agrees else "they do NOT agree")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
