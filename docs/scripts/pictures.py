"""Draws the pictures of the documentation from phantoms: python docs/scripts/pictures.py

Every image is generated (input_pipeline.phantoms); none is of a patient. Run from anywhere with the
project installed, or with PYTHONPATH at the root of the checkout.
"""

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from input_pipeline import phantoms
from input_pipeline.phantoms import masks, volumes

DOCS = Path(__file__).resolve().parents[1]
IMAGES = DOCS / "images"
TITLES = {
    "xray": "X-ray",
    "ct": "CT",
    "mri": "MRI",
    "ultrasound": "Ultrasound",
    "pathology": "Histopathology",
    "fundus": "Retinal fundus",
}
INK, MUTED, PAPER = "#1f2933", "#5f6c7b", "#fcfdfe"
CONTOURS = ("#ffd60a", "#ff3366")
plt.rcParams.update({"font.family": "DejaVu Sans", "text.color": INK, "figure.facecolor": PAPER})


def save(figure: plt.Figure, name: str) -> None:
    """Writes a PNG with a small palette (drawings) or a JPEG (pictures), as the name says."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor=PAPER)
    plt.close(figure)
    image = Image.open(buffer).convert("RGB")
    path = IMAGES / name
    if path.suffix == ".png":
        image.quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        image.save(path, quality=86, subsampling=0, optimize=True)
    print(f"written: {path.name}, {path.stat().st_size / 1000:.0f} kB")


def bare(axis: plt.Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def mosaic() -> None:
    """Six modalities, two findings of each, with a caption from the corpus."""
    figure, axes = plt.subplots(2, 6, figsize=(11.2, 4.5))
    figure.subplots_adjust(left=0.012, right=0.988, top=0.92, bottom=0.05, wspace=0.05, hspace=0.2)
    for column, (modality, findings) in enumerate(phantoms.FINDINGS.items()):
        for line, finding in enumerate((findings[0], findings[1])):
            row = phantoms.PhantomRow("train", modality, finding, 3, 0, 192)
            sample = phantoms.make_sample(row)
            axis = axes[line, column]
            axis.imshow(Image.open(io.BytesIO(sample.image)))
            axis.set_xlabel(finding, fontsize=11, color=MUTED, labelpad=5)
            bare(axis)
            if line == 0:
                axis.set_title(TITLES[modality], fontsize=13.5, fontweight="bold", color=INK, pad=8)
    save(figure, "phantoms.jpg")


def segmentation() -> None:
    """Masks on phantoms: one anatomy drawn by two cameras, and three slices of a volume."""
    figure, axes = plt.subplots(2, 5, figsize=(11.2, 5.1))
    figure.subplots_adjust(left=0.012, right=0.988, top=0.9, bottom=0.055, wspace=0.05, hspace=0.28)
    for line, style in enumerate(("warm", "cold")):
        rng = np.random.Generator(np.random.Philox(11))
        pixels, mask = masks.draw(rng, masks.STYLES[style], 224)
        for column, drawn in enumerate((False, True)):
            axis = axes[line, column]
            axis.imshow(pixels)
            if drawn:
                _contours(axis, mask)
            bare(axis)
            axis.set_title(("image", "mask: vessel, lesion")[column], fontsize=11.5, color=MUTED)
        axes[line, 0].set_xlabel(f'domain "{style}"', fontsize=11.5, color=INK)
    image, mask = volumes.draw(np.random.Generator(np.random.Philox(5)), (64, 192, 192))
    for column, depth in enumerate((12, 16, 32)):
        for line, drawn in enumerate((False, True)):
            axis = axes[line, column + 2]
            axis.imshow(image[depth], cmap="gray", vmin=0, vmax=0.75)
            if drawn:
                _contours(axis, mask[depth])
            bare(axis)
            title = "mask: lung, lesion" if drawn else f"volume, slice {depth} of 64"
            axis.set_title(title, fontsize=11.5, color=MUTED)
    save(figure, "segmentation.jpg")


def _contours(axis: plt.Axes, mask: np.ndarray) -> None:
    for value, colour in enumerate(CONTOURS, start=1):
        if (mask == value).any():
            axis.contour(mask == value, levels=[0.5], colors=[colour], linewidths=1.7)


def quickstart_scores() -> None:
    """The quickstart's zero-shot table as bars with chance levels."""
    data = json.loads((DOCS / "data" / "quickstart.json").read_text(encoding="utf-8"))
    rows = data["rows"][::-1]
    places = np.arange(len(rows))
    scores = [row["balanced_accuracy"] for row in rows]
    figure, axis = plt.subplots(figsize=(9.6, 3.7))
    figure.subplots_adjust(left=0.235, right=0.965, top=0.9, bottom=0.15)
    axis.set_facecolor(PAPER)
    axis.barh(places, scores, height=0.6, color="#3366cc")
    axis.barh(places, [row["chance"] for row in rows], height=0.6, color="#9db7e8")
    for place, score in zip(places, scores, strict=True):
        axis.text(score + 0.008, place, f"{score:.3f}", va="center", fontsize=11.5)
    axis.set_yticks(places, [row["task"] for row in rows], fontsize=11.5)
    axis.set_xlim(0, 1.09)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel("balanced accuracy (pale: chance)", fontsize=11.5, color=MUTED)
    axis.set_title(
        "Quickstart: zero-shot scores on unseen phantoms", fontsize=13.5, fontweight="bold",
        color=INK, loc="left",
    )  # fmt: skip
    axis.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    save(figure, "quickstart_scores.png")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    mosaic()
    segmentation()
    quickstart_scores()
