"""Phantoms: synthetic images that resemble six modalities of medical images.

No patient data and no real image is used. Phantoms exist so that the quickstart, the tests and the
documentation run anywhere, and so that zero-shot accuracy on *unseen* phantoms shows whether
training works. It says nothing about accuracy on medical images.

A phantom depends only on its ``PhantomRow``: anatomy, finding, texture and captions are drawn from
a generator seeded by the row's id. Sides and sizes in a caption are those of the image. Left and
right are the patient's, as radiologists write them: the patient's right is on the left of the
image. In fundus phantoms they name the eye.

Drawing happens on a plane where x and y run from -1 (left, top) to 1 (right, bottom), whatever
the number of pixels; grey values and colours run from 0 to 1.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from input_pipeline.phantoms.captions import draw_captions
from input_pipeline.phantoms.drawings import DRAW
from input_pipeline.records import Sample

FINDINGS: dict[str, tuple[str, ...]] = {
    "xray": ("normal", "pleural effusion", "nodule"),
    "ct": ("normal", "nodule", "consolidation"),
    "mri": ("normal", "tumor", "enlarged ventricles"),
    "ultrasound": ("normal", "cyst", "solid mass"),
    "pathology": ("benign", "malignant"),
    "fundus": ("healthy", "hemorrhages", "enlarged cup"),
}
JPEG_QUALITY = 90


@dataclass(frozen=True)
class PhantomRow:
    """Everything that determines one phantom; ``image_size`` is its side in pixels."""

    split: str
    modality: str
    finding: str
    index: int
    seed: int
    image_size: int

    @property
    def id(self) -> str:
        finding = self.finding.replace(" ", "_")
        return f"phantom-{self.seed}-{self.split}-{self.modality}-{finding}-{self.index:06d}"


def rows(
    num_per_class: Mapping[str, int], *, image_size: int = 72, seed: int = 0
) -> dict[str, list[PhantomRow]]:
    """Lists the rows of every split: ``num_per_class[split]`` of each modality and finding.

    The seed of a phantom includes the split, so no split repeats an image of another.
    """
    return {
        split: [
            PhantomRow(split, modality, finding, index, seed, image_size)
            for modality, findings in FINDINGS.items()
            for finding in findings
            for index in range(count)
        ]
        for split, count in num_per_class.items()
    }


def make_sample(row: PhantomRow) -> Sample:
    """Draws the phantom of a row and its captions, all of them generated.

    Returns:
      A Sample with a square RGB JPEG of ``row.image_size`` pixels a side, and
      ``CAPTIONS_PER_SAMPLE`` distinct captions.
    """
    entropy = int.from_bytes(hashlib.sha256(row.id.encode()).digest())
    image_seed, caption_seed = np.random.SeedSequence(entropy).spawn(2)
    image_rng = np.random.Generator(np.random.Philox(image_seed))
    caption_rng = np.random.Generator(np.random.Philox(caption_seed))
    pixels, slots = DRAW[row.modality](image_rng, row.image_size, row.finding)
    return Sample(
        id=row.id,
        image=_encode_jpeg(pixels),
        captions=draw_captions(caption_rng, row.modality, row.finding, slots),
        num_original_captions=0,
        labels=(row.finding,),
        modality=row.modality,
        source=f"phantoms_{row.modality}",
        group=row.id,
    )


def _encode_jpeg(pixels: np.ndarray) -> bytes:
    levels = np.clip(pixels * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    # Full chroma resolution: nuclei and hemorrhages are a few pixels wide.
    Image.fromarray(levels).convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
