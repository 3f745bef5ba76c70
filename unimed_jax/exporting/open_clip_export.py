"""Exports a checkpoint as a directory for PyTorch, verified before it appears."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.io.errors import UserError
from input_pipeline.io.files import atomic_directory, local_copy
from unimed_jax.exporting import model_card, open_clip_directory
from unimed_jax.inference.dual_encoder import Model, from_pretrained
from unimed_jax.weights.loader import open_weights
from unimed_jax.weights.uri import resolve

STATE_DICT_FILE = "model.pt"
TORCH_SIDE = Path(open_clip_directory.__file__).with_name("verify_in_torch.py")
TOLERANCE = 2e-5  # largest difference of normalised embeddings, float32

FORMATS = {
    "open_clip": None,
    "open_clip_pt": "text.",
    "unimed_pt": "text_encoder.",
}
"""--format -> prefix of the text tower in the state dict."""

_TEXTS = (
    "a chest X-ray",
    "axial CT of the abdomen with a hypodense lesion in the liver",
    "T2-weighted MRI, 3 mm slices.",
    "Fundus photograph: moderate non-proliferative diabetic retinopathy",
    "H&E stain, 40x &amp; invasive ductal carcinoma",
    "",
)


def export(
    checkpoint: str | Path,
    out: Path,
    *,
    step: int | None = None,
    weights: str | None = None,
    format: str = "open_clip",
) -> str:
    """Writes and verifies a directory, atomically.

    Args:
        checkpoint: anything that `unimed_jax.load` takes.
        out: absolute path; must not exist, or be an empty directory.
        step: the step of a work directory; None: the newest.
        weights: as in `unimed_jax.load`.
        format: a key of FORMATS.

    Returns:
        A sentence on how the export was verified, or why not.

    Raises:
        UserError: no such checkpoint, `out` in use or not writable, torch missing where the format
            needs it, or embeddings that differ.
    """
    prefix = FORMATS[format]
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "open_clip"))
    if prefix and not has_torch:
        raise UserError(f"--format={format} needs torch: pip install 'unimed_jax[torch]'")
    pretrained = open_weights(checkpoint, step, weights)
    config = pretrained.model_config()
    if not pretrained.tokenizer:
        raise UserError(f"{pretrained.source} names no tokenizer, without which open_clip errs")
    tokenizer_dir = local_copy(resolve(pretrained.tokenizer, weights=False))
    with atomic_directory(out) as staged:
        # under its temporary name, for the verification
        open_clip_directory.write(staged, pretrained, config, tokenizer_dir, str(staged))
        card = model_card.text(pretrained, config, out)
        verified = "Not verified: torch and open_clip were not installed"
        if has_torch:
            ours = _embed(from_pretrained(pretrained, config))
            del pretrained  # so that only one framework at a time has the weights in memory
            verified = _verify(ours, staged, prefix)
        open_clip_directory.write_config(staged, config, str(out))
        (staged / "README.md").write_text(f"{card}\n## Verification\n\n{verified}.\n", "utf-8")
    return verified


def _embed(model: Model) -> dict[str, np.ndarray]:
    """Images and _TEXTS with token ids, and the embeddings of both."""
    size = model.config.visual.image_size
    rng = np.random.default_rng(0)
    # smooth images of the model's input size, so that neither framework resizes
    images = [
        np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
        for noise in rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    ]
    return {
        "images": np.stack(images),
        "ids": model.tokenizer(_TEXTS),
        "visual": model.encode_image(images),
        "text": model.encode_text(_TEXTS),
    }


def _verify(ours: dict[str, np.ndarray], directory: Path, prefix: str | None) -> str:
    """Compares embeddings with those that open_clip computes from a directory."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        np.savez(inputs, images=ours["images"], texts=np.array(_TEXTS))
        state = {"path": str(directory / STATE_DICT_FILE), "text_prefix": prefix}
        job = {
            "directory": str(directory),
            "inputs": str(inputs),
            "outputs": str(outputs),
            "state_dict": state if prefix else None,
        }
        (Path(scratch) / "job.json").write_text(json.dumps(job))
        command = [sys.executable, str(TORCH_SIDE), f"{scratch}/job.json"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise UserError(f"open_clip cannot open the export: {run.stderr.strip()[-2000:]}")
        with np.load(outputs) as theirs:
            if not np.array_equal(ours["ids"], theirs["ids"]):
                raise UserError("the export is wrong: open_clip's tokenizer gives other ids")
            errors = {t: float(np.abs(ours[t] - theirs[t]).max()) for t in ("visual", "text")}
    worst = ", ".join(f"{tower} {error:.1e}" for tower, error in errors.items())
    if not max(errors.values()) <= TOLERANCE:
        raise UserError(
            f"the export is wrong: normalised embeddings differ by {worst}, more than {TOLERANCE}"
        )
    return f"Verified: embeddings by open_clip differ by at most {worst}, token ids are equal"
