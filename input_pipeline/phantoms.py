"""A generated corpus of phantoms: synthetic pictures that resemble six kinds of medical image.

No patient and no real image is behind any of them. They exist so that the quickstart, the tests
and the documentation run anywhere, and so that zero-shot accuracy on *unseen* phantoms says
whether training works. It says nothing about accuracy on medical images.

A phantom is a function of its ``PhantomRow`` alone: anatomy, finding, texture and captions are
drawn from a generator seeded by the row's id. Sides and sizes in a caption are those of the
picture. Left and right are the patient's, as radiologists write them: the patient's right is on
the left of the image. In fundus phantoms they name the eye.

Drawing happens on a plane where x and y run from -1 (left, top) to 1 (right, bottom), whatever
the number of pixels; grey values and colours run from 0 to 1.
"""

import hashlib
import io
import itertools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from input_pipeline.executors import Local
from input_pipeline.files import write_text_atomically
from input_pipeline.manifest import Manifest
from input_pipeline.records import Sample
from input_pipeline.rows import Planned
from input_pipeline.write_shards import write_corpus

FINDINGS: dict[str, tuple[str, ...]] = {
    "xray": ("normal", "pleural effusion", "nodule"),
    "ct": ("normal", "nodule", "consolidation"),
    "mri": ("normal", "tumor", "enlarged ventricles"),
    "ultrasound": ("normal", "cyst", "solid mass"),
    "pathology": ("benign", "malignant"),
    "fundus": ("healthy", "hemorrhages", "enlarged cup"),
}
CAPTIONS_PER_SAMPLE = 5
JPEG_QUALITY = 90

Slots = dict[str, str]  # what a caption may say about this picture: "side", "size", "eye"


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

    The split is part of what seeds a phantom, so no split repeats a picture of another.
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
    pixels, slots = _DRAW[row.modality](image_rng, row.image_size, row.finding)
    return Sample(
        id=row.id,
        image=_encode_jpeg(pixels),
        captions=_draw_captions(caption_rng, row.modality, row.finding, slots),
        num_original_captions=0,
        labels=(row.finding,),
        modality=row.modality,
        source=f"phantoms_{row.modality}",
        group=row.id,
    )


def write(
    out_dir: str | Path,
    *,
    num_train_per_class: int,
    num_val_per_class: int,
    image_size: int = 72,
    seed: int = 0,
    workers: int = 1,
) -> Manifest:
    """Writes the corpus with splits ``train`` and ``val``, and its vocabulary ``vocab.txt``.

    Args:
      num_train_per_class: phantoms of each modality and finding, of which there are 17.
      num_val_per_class: the same for ``val``.
      image_size: side of the square images, in pixels.
      seed: another seed gives other phantoms.
      workers: number of processes; the files do not depend on it.
    """
    out_dir = Path(out_dir)
    num_per_class = {"train": num_train_per_class, "val": num_val_per_class}
    manifest = write_corpus(
        out_dir,
        "phantoms",
        [
            Planned(row, split, row.id)
            for split, part in rows(num_per_class, image_size=image_size, seed=seed).items()
            for row in part
        ],
        make_sample,
        num_shards={"train": 4, "val": 1},
        seed=seed,
        executor=Local(workers),
    )
    write_text_atomically(out_dir / "vocab.txt", "".join(f"{entry}\n" for entry in vocabulary()))
    return manifest


# Captions: a frame, filled with a name of the examination and a phrase for the finding. No phrase
# denies a finding by its name ("no tumor"): a text tower trained for minutes reads words, not
# negations.

_FRAMES = (
    "{exam} showing {phrase}",
    "{exam} with {phrase}",
    "{phrase} in this {exam}",
    "this {exam} shows {phrase}",
    "{exam}: {phrase}",
    "picture of this {exam} with {phrase}",
)

_EXAMS: dict[str, tuple[str, ...]] = {
    "xray": ("chest x-ray phantom", "frontal chest radiograph phantom", "phantom x-ray"),
    "ct": ("chest ct phantom", "axial ct phantom", "phantom computed tomography ct slice"),
    "mri": (
        "brain mri phantom",
        "axial mri phantom",
        "magnetic resonance mri phantom of the brain",
    ),
    "ultrasound": ("breast ultrasound phantom", "phantom ultrasound", "phantom breast sonogram"),
    "pathology": ("pathology phantom", "phantom histopathology slide", "h&e histology phantom"),
    "fundus": ("fundus phantom", "phantom fundus photograph", "retinal fundus phantom"),
}

_PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("xray", "normal"): (
        "normal lungs",
        "clear normal lungs on both sides",
        "a normal chest",
        "no finding, normal lungs and heart",
    ),
    ("xray", "pleural effusion"): (
        "a pleural effusion",
        "a {side} pleural effusion",
        "a {size} pleural effusion on the {side}",
        "{side} pleural fluid, a {size} effusion",
    ),
    ("xray", "nodule"): (
        "a lung nodule",
        "a {size} nodule in the {side} lung",
        "a round nodule on the {side}",
        "a {size} pulmonary nodule",
    ),
    ("ct", "normal"): (
        "normal lungs",
        "clear normal lungs on both sides",
        "a normal chest",
        "no finding, normal lungs and heart",
    ),
    ("ct", "nodule"): (
        "a lung nodule",
        "a {size} nodule in the {side} lung",
        "a round nodule on the {side}",
        "a {size} pulmonary nodule",
    ),
    ("ct", "consolidation"): (
        "lung consolidation",
        "consolidation of the {side} lung",
        "a {size} consolidation on the {side}",
        "dependent consolidation in the {side} lung",
    ),
    ("mri", "normal"): (
        "a normal brain",
        "a normal brain with narrow ventricles",
        "no finding, a normal brain",
        "normal white and gray matter",
    ),
    ("mri", "tumor"): (
        "a brain tumor",
        "a {size} tumor in the {side} hemisphere",
        "a ring enhancing tumor on the {side}",
        "a {size} tumor with edema",
    ),
    ("mri", "enlarged ventricles"): (
        "enlarged ventricles",
        "enlarged lateral ventricles",
        "wide ventricles, enlarged on both sides",
        "hydrocephalus with enlarged ventricles",
    ),
    ("ultrasound", "normal"): (
        "normal breast tissue",
        "normal tissue layers",
        "even layers of normal tissue",
        "no finding, normal tissue",
    ),
    ("ultrasound", "cyst"): (
        "a cyst",
        "a {size} simple cyst",
        "a black cyst with posterior enhancement",
        "a {size} anechoic cyst",
    ),
    ("ultrasound", "solid mass"): (
        "a solid mass",
        "a {size} solid mass",
        "an irregular solid mass with posterior shadow",
        "a {size} hypoechoic solid mass",
    ),
    ("pathology", "benign"): (
        "benign tissue",
        "benign glands with small regular nuclei",
        "regular benign glands",
        "a benign pattern of round glands",
    ),
    ("pathology", "malignant"): (
        "malignant tissue",
        "crowded large nuclei, a malignant pattern",
        "a malignant pattern of dark irregular nuclei",
        "malignant tissue without glands",
    ),
    ("fundus", "healthy"): (
        "a healthy retina",
        "a healthy {eye} eye",
        "a healthy optic disc and clear retina",
        "no finding, a healthy {eye} eye",
    ),
    ("fundus", "hemorrhages"): (
        "retinal hemorrhages",
        "{size} retinal hemorrhages in the {eye} eye",
        "dark red hemorrhages",
        "hemorrhages in the {eye} eye",
    ),
    ("fundus", "enlarged cup"): (
        "an enlarged cup",
        "an enlarged optic cup in the {eye} eye",
        "an enlarged pale cup of the optic disc",
        "glaucoma with an enlarged cup",
    ),
}


def _draw_captions(
    rng: np.random.Generator, modality: str, finding: str, slots: Slots
) -> tuple[str, ...]:
    templates = list(itertools.product(_FRAMES, _EXAMS[modality], _PHRASES[modality, finding]))
    chosen = rng.choice(len(templates), CAPTIONS_PER_SAMPLE, replace=False)
    return tuple(
        frame.format(exam=exam, phrase=phrase.format(**slots))
        for frame, exam, phrase in (templates[i] for i in chosen)
    )


def _words(template: str) -> list[str]:
    """The words of a text or template as BERT's basic tokenizer splits them, slots left out."""
    return re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template.lower()))


def vocabulary() -> tuple[str, ...]:
    """The BERT WordPiece vocabulary of the captions, in id order.

    Ids 0 to 4 are the special tokens; then every printable ASCII character, alone and as a
    continuation, so that no ASCII text needs [UNK]; then every word that a caption can hold.
    """
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    characters = sorted(string.ascii_letters + string.digits + string.punctuation)
    texts = [
        *_FRAMES,
        *itertools.chain(*_EXAMS.values(), *_PHRASES.values()),
        *_SIDES,
        *_SIZES,
    ]
    words = {word for text in texts for word in _words(text) if len(word) > 1}
    return (*specials, *characters, *(f"##{c}" for c in characters), *sorted(words))


# Drawing: helpers. Arrays are float32; a mask is (S, S) in [0, 1] with soft edges.

_SIDES = ("left", "right")
_SIZES = ("small", "large")
_IMAGE_SIDE = {"left": 1.0, "right": -1.0}  # the sign of x of a side of the patient


def _plane(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre, (S, S) each, under a random small turn, zoom and shift."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    turn = rng.uniform(-0.12, 0.12)
    zoom = rng.uniform(0.94, 1.08)
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
    cos, sin = np.float32(np.cos(turn) / zoom), np.float32(np.sin(turn) / zoom)
    return cos * x - sin * y + np.float32(shift_x), sin * x + cos * y + np.float32(shift_y)


def _step(values: np.ndarray, softness: float = 0.04) -> np.ndarray:
    """0 below zero, 1 above, a ramp of width ``softness`` between."""
    return np.clip(values / np.float32(softness) + np.float32(0.5), 0.0, 1.0)


def _ellipse(
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    radii: tuple[float, float],
    turn: float = 0.0,
    softness: float = 0.04,
) -> np.ndarray:
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (cos * dx + sin * dy) / np.float32(radii[0])
    v = (cos * dy - sin * dx) / np.float32(radii[1])
    return _step((1.0 - np.sqrt(u * u + v * v)) * np.float32(min(radii)), softness)


def _blob(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    radius: float,
    roughness: float,
    lobes: Sequence[int] = (2, 3, 4),
    softness: float = 0.04,
) -> np.ndarray:
    """A disc whose radius varies with the angle by about ``roughness`` of it."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(x)
    for lobe in lobes:
        amplitude, phase = rng.uniform(0.4, 1.0) * roughness, rng.uniform(0.0, 2.0 * np.pi)
        outline += np.float32(amplitude) * np.cos(np.float32(lobe) * angle + np.float32(phase))
    return _step(np.float32(radius) * outline - np.sqrt(dx * dx + dy * dy), softness)


def _paint(image: np.ndarray, mask: np.ndarray, value: float | Sequence[float]) -> None:
    """Covers (S, S) with a grey value, or (S, S, 3) with a colour, where the mask is set."""
    if image.ndim == 3:
        mask = mask[..., None]
    image += mask * (np.asarray(value, np.float32) - image)


def _clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (S, S) of about unit variance with ``cells`` bumps along a side."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit white noise (S, S)."""
    return rng.standard_normal((size, size), dtype=np.float32)


def _polygons(
    rng: np.random.Generator, centres: np.ndarray, radii: np.ndarray, roughness: float
) -> np.ndarray:
    """Corners (N, 12, 2) of randomly turned, uneven ellipses; centres and radii are (N, 2)."""
    corner = np.linspace(0.0, 2.0 * np.pi, 12, endpoint=False)
    turn = rng.uniform(0.0, np.pi, (len(centres), 1))
    outline = 1.0 + roughness * rng.uniform(-1.0, 1.0, (len(centres), 12))
    u = radii[:, :1] * outline * np.cos(corner)
    v = radii[:, 1:] * outline * np.sin(corner)
    cos, sin = np.cos(turn), np.sin(turn)
    return centres[:, None] + np.stack([cos * u - sin * v, sin * u + cos * v], axis=-1)


class _Pen:
    """Draws polygons and lines as one mask, at three times the resolution for soft edges."""

    _SCALE = 3

    def __init__(self, size: int) -> None:
        self._image = Image.new("L", (size * self._SCALE,) * 2)
        self._draw = ImageDraw.Draw(self._image)

    def _pixels(self, points: np.ndarray) -> list[float]:
        return ((points + 1.0) * (0.5 * self._image.width)).ravel().tolist()

    def fill(self, polygons: np.ndarray) -> None:
        """Fills polygons (N, K, 2); paler rims keep overlapping ones apart."""
        for corners in polygons:
            self._draw.polygon(self._pixels(corners), fill=255, outline=130)

    def line(self, points: np.ndarray, width: float) -> None:
        pixels = max(1, round(0.5 * width * self._image.width))
        self._draw.line(self._pixels(points), fill=255, width=pixels, joint="curve")

    def mask(self) -> np.ndarray:
        return np.asarray(self._image.reduce(self._SCALE), np.float32) / np.float32(255.0)


def _encode_jpeg(pixels: np.ndarray) -> bytes:
    levels = np.clip(pixels * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    # Full chroma resolution: nuclei and hemorrhages are a few pixels wide.
    Image.fromarray(levels).convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _draw_side(rng: np.random.Generator) -> str:
    return _SIDES[rng.integers(2)]


def _draw_size(
    rng: np.random.Generator, small: tuple[float, float], large: tuple[float, float]
) -> tuple[str, float]:
    """A size word and a radius of that size."""
    size = _SIZES[rng.integers(2)]
    return size, rng.uniform(*(small if size == "small" else large))


# Drawing: one function per modality. Each returns the pixels, (S, S) or (S, S, 3), and the slots.


def _draw_xray(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Frontal chest: attenuation is bright."""
    x, y = _plane(rng, size)
    image = np.full((size, size), 0.05, np.float32)
    width, top = rng.uniform(0.9, 1.05), rng.uniform(-0.74, -0.66)
    tissue = rng.uniform(0.46, 0.58)
    _paint(image, _ellipse(x, y, (0.0, 0.45), (0.93 * width, 1.22), softness=0.1), tissue)
    _paint(image, _ellipse(x, y, (0.0, -0.28), (0.88 * width, 0.52), softness=0.1), tissue)
    _paint(image, _ellipse(x, y, (0.0, -1.0), (0.24, 0.5), softness=0.1), tissue)

    lung = {}
    for side, sign in _IMAGE_SIDE.items():
        centre, radii = (sign * 0.42 * width, -0.06), (0.31 * width, -0.06 - top)
        dome = 0.48 + 0.5 * (np.abs(x) - 0.40 * width) ** 2 + (0.05 if side == "left" else 0.0)
        lung[side] = _ellipse(x, y, centre, radii, sign * -0.08) * _step(dome - y, 0.06)
    lungs = np.maximum(lung["left"], lung["right"])
    _paint(image, lungs, rng.uniform(0.14, 0.24))
    image += 0.03 * lungs * _clouds(rng, size, 14)

    heart = (rng.uniform(0.26, 0.34), rng.uniform(0.26, 0.34))
    _paint(image, _ellipse(x, y, (0.12, 0.28), heart, -0.5, 0.08), tissue + 0.16)
    _paint(image, _ellipse(x, y, (0.0, -0.1), (0.13, 1.1), softness=0.12), tissue + 0.18)

    side = _draw_side(rng)
    slots = {"side": side}
    if finding == "pleural effusion":
        slots["size"] = rng.choice(_SIZES).item()
        level = rng.uniform(*((0.16, 0.26) if slots["size"] == "small" else (-0.25, -0.02)))
        # The fluid climbs the outer wall: a meniscus.
        outward = np.clip((np.abs(x) - 0.25) / 0.4, 0.0, 1.2)
        fluid = _step(y - (level - 0.28 * outward * outward), 0.08)
        beside = _ellipse(x, y, (_IMAGE_SIDE[side] * 0.42 * width, 0.0), (0.31 * width, 0.62))
        _paint(image, fluid * np.maximum(lung[side], beside * (y > 0.0)), tissue + 0.2)
    ribs = np.cos((y - 0.45 * (np.abs(x) - 0.2)) * np.float32(rng.uniform(21.0, 25.0)))
    chest = _ellipse(x, y, (0.0, -0.05), (0.8 * width, 0.72), softness=0.1)
    image += 0.12 * chest * _step(ribs - 0.45, 0.5) * (0.85 - image)
    for sign in (-1.0, 1.0):
        clavicle = _ellipse(x, y, (sign * 0.33, top + 0.1), (0.27, 0.035), sign * -0.2)
        _paint(image, 0.6 * clavicle, tissue + 0.2)
    if finding == "nodule":
        slots["size"], radius = _draw_size(rng, (0.12, 0.15), (0.19, 0.24))
        lowest = 0.2 if side == "right" else -0.05  # the heart lies on the left
        centre = (_IMAGE_SIDE[side] * rng.uniform(0.42, 0.5) * width, rng.uniform(-0.42, lowest))
        nodule = _blob(rng, x, y, centre, radius, 0.03, softness=0.08)
        _paint(image, nodule, tissue + rng.uniform(0.18, 0.3))
    # Quantum noise: its variance follows the number of photons.
    photons = 1.05 - np.clip(image, 0.0, 1.0)
    image += np.float32(rng.uniform(0.02, 0.04)) * np.sqrt(photons) * _grain(rng, size)
    return image, slots


def _draw_ct(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Axial chest, seen from the feet, front at the top."""
    x, y = _plane(rng, size)
    image = np.full((size, size), 0.02, np.float32)
    width, depth = rng.uniform(0.88, 0.96), rng.uniform(0.64, 0.72)
    muscle = rng.uniform(0.5, 0.6)
    _paint(image, _ellipse(x, y, (0.0, 0.0), (width, depth)), 0.34)
    _paint(image, _ellipse(x, y, (0.0, 0.0), (width - 0.07, depth - 0.07)), muscle)

    lung = {}
    for side, sign in _IMAGE_SIDE.items():
        radii = (0.37 * width, 0.68 * depth)
        lung[side] = _ellipse(x, y, (sign * 0.44 * width, 0.0), radii, sign * 0.15)
    lungs = np.maximum(lung["left"], lung["right"])
    _paint(image, lungs, rng.uniform(0.07, 0.13))
    vessels = _step(_clouds(rng, size, 18) - 1.1, 0.6)
    image += 0.22 * lungs * vessels

    side = _draw_side(rng)
    slots = {"side": side}
    sign = _IMAGE_SIDE[side]
    if finding == "nodule":
        slots["size"], radius = _draw_size(rng, (0.11, 0.14), (0.18, 0.22))
        centre = (sign * rng.uniform(0.46, 0.58) * width, rng.uniform(-0.22, 0.22))
        _paint(image, _blob(rng, x, y, centre, radius, 0.07), rng.uniform(0.6, 0.72))
    if finding == "consolidation":
        slots["size"] = rng.choice(_SIZES).item()
        level = rng.uniform(*((0.12, 0.2) if slots["size"] == "small" else (-0.2, -0.05)))
        border = level + 0.06 * _clouds(rng, size, 7)
        airways = 1.0 - 0.6 * _step(_clouds(rng, size, 16) - 0.9, 0.5)
        _paint(image, lung[side] * _step(y - border, 0.1) * airways, rng.uniform(0.42, 0.5))

    heart = (rng.uniform(0.25, 0.31), rng.uniform(0.2, 0.26))
    _paint(image, _ellipse(x, y, (0.08, -0.16), heart, 0.5), muscle + 0.14)
    _paint(image, _ellipse(x, y, (0.12, 0.2), (0.09, 0.09)), muscle + 0.2)
    bone = rng.uniform(0.9, 1.0)
    spine = 0.68 * depth
    _paint(image, _ellipse(x, y, (0.0, spine - 0.1), (0.14, 0.11)), bone)
    _paint(image, _ellipse(x, y, (0.0, spine + 0.09), (0.15, 0.06)), bone)
    _paint(image, _ellipse(x, y, (0.0, spine + 0.04), (0.06, 0.05)), muscle)
    _paint(image, _ellipse(x, y, (0.0, 0.13 - depth), (0.1, 0.04)), bone)
    for angle in rng.uniform(-0.08, 0.08) + np.array([0.55, 1.2, 1.9, 2.5]):
        for mirror in (-1.0, 1.0):
            place = (mirror * 0.87 * width * np.sin(angle), -0.84 * depth * np.cos(angle))
            _paint(image, _ellipse(x, y, place, (0.1, 0.035), mirror * (angle + 0.1)), bone)
    # The detector's rings are centred on the scanner, not on the body.
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    distance = np.sqrt(axis[None] ** 2 + axis[:, None] ** 2)
    rings = np.cos(distance * np.float32(rng.uniform(45.0, 75.0)))
    image += np.float32(rng.uniform(0.008, 0.02)) * rings
    image += np.float32(rng.uniform(0.015, 0.03)) * _grain(rng, size)
    return image, slots


def _draw_mri(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Axial brain, T1-like: fluid is dark, white matter bright."""
    x, y = _plane(rng, size)
    image = np.full((size, size), 0.02, np.float32)
    width, height = rng.uniform(0.66, 0.76), rng.uniform(0.82, 0.92)
    gray, white = rng.uniform(0.36, 0.44), rng.uniform(0.56, 0.66)
    _paint(image, _ellipse(x, y, (0.0, 0.0), (width, height)), rng.uniform(0.7, 0.85))
    _paint(image, _ellipse(x, y, (0.0, 0.0), (width - 0.06, height - 0.06)), 0.05)
    brain = _ellipse(x, y, (0.0, 0.0), (width - 0.11, height - 0.11))
    folds = _clouds(rng, size, 15)
    edge = _ellipse(x, y, (0.0, 0.0), (width - 0.26, height - 0.26), softness=0.3)
    _paint(image, brain, gray)
    _paint(image, brain * _step(edge - 0.5 + 0.35 * folds, 0.35), white)
    sulci = brain * (1.0 - edge) * _step(_clouds(rng, size, 17) - 0.7, 0.5)
    _paint(image, 0.7 * sulci, 0.12)
    fissure = _step(0.02 - np.abs(x), 0.04) * brain * _step(np.abs(y) - 0.42, 0.1)
    _paint(image, fissure, 0.1)

    if finding == "enlarged ventricles":
        across, along = rng.uniform(0.13, 0.18), rng.uniform(0.36, 0.44)
    else:
        across, along = rng.uniform(0.05, 0.075), rng.uniform(0.2, 0.28)
    for sign in (-1.0, 1.0):
        for end, lean in ((-0.5, -0.35), (0.5, 0.35)):
            centre = (sign * (0.05 + 0.75 * across), end * along)
            horn = _ellipse(x, y, centre, (across, 0.62 * along), -sign * lean, 0.05)
            _paint(image, horn, 0.1)

    slots = {}
    if finding == "tumor":
        slots["side"] = _draw_side(rng)
        slots["size"], radius = _draw_size(rng, (0.17, 0.2), (0.25, 0.3))
        centre = (_IMAGE_SIDE[slots["side"]] * rng.uniform(0.28, 0.36), rng.uniform(-0.38, 0.38))
        edema = _blob(rng, x, y, centre, 1.5 * radius, 0.08, softness=0.1)
        _paint(image, brain * edema, 0.2)
        _paint(image, brain * _blob(rng, x, y, centre, radius, 0.04), rng.uniform(0.85, 1.0))
        core = radius * rng.uniform(0.35, 0.65)
        _paint(image, _blob(rng, x, y, centre, core, 0.08), rng.uniform(0.2, 0.45))
    image *= 1.0 + 0.1 * _clouds(rng, size, 2)  # the coil's uneven sensitivity
    # Magnitude of a complex signal with noise in both channels: Rician.
    noise = np.float32(rng.uniform(0.02, 0.04))
    image = np.hypot(image + noise * _grain(rng, size), noise * _grain(rng, size))
    return image, slots


def _draw_ultrasound(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Breast, linear probe at the top: echoes are bright, depth goes down."""
    x, y = _plane(rng, size)
    depth = y + 0.05 * _clouds(rng, size, 3)
    fat, gland, muscle = rng.uniform(-0.5, -0.38), rng.uniform(0.42, 0.6), rng.uniform(0.75, 0.9)
    echo = np.full((size, size), 0.7, np.float32)
    _paint(echo, _step(depth + 0.84), rng.uniform(0.26, 0.34))
    _paint(echo, _step(depth - fat, 0.06), rng.uniform(0.46, 0.56))
    _paint(echo, _step(depth - gland, 0.06), rng.uniform(0.3, 0.38))
    _paint(echo, _step(depth - muscle, 0.06), 0.24)
    septa = np.cos(depth * np.float32(rng.uniform(16.0, 22.0)) + 2.0 * _clouds(rng, size, 4))
    echo += 0.14 * _step(septa - 0.8, 0.2)
    _paint(echo, _step(0.025 - np.abs(depth - gland), 0.04), 0.8)

    slots = {}
    if finding != "normal":
        slots["size"], radius = _draw_size(rng, (0.17, 0.22), (0.3, 0.38))
        centre = (rng.uniform(-0.4, 0.4), rng.uniform(-0.25, 0.15))
        behind = _step(radius * 0.8 - np.abs(x - centre[0]), 0.12) * _step(y - centre[1], 0.1)
        if finding == "cyst":
            echo *= 1.0 + 0.75 * behind
            _paint(echo, _ellipse(x, y, centre, (1.1 * radius, 0.85 * radius)), 0.01)
        else:
            echo *= 1.0 - 0.8 * behind
            halo = _blob(rng, x, y, centre, 1.2 * radius, 0.1, (3, 5, 8), 0.1)
            _paint(echo, 0.6 * halo * _step(centre[1] - y, 0.2), 0.75)
            lesion = _blob(rng, x, y, centre, radius, 0.14, (3, 5, 8))
            _paint(echo, lesion, rng.uniform(0.17, 0.22))
    echo *= 1.0 - 0.15 * (y + 1.0)  # attenuation with depth
    # Speckle: Rayleigh amplitudes, wider than deep because the beam is.
    speckle = np.hypot(
        rng.standard_normal((size, size // 2), dtype=np.float32),
        rng.standard_normal((size, size // 2), dtype=np.float32),
    )
    speckle = np.asarray(Image.fromarray(speckle).resize((size, size), Image.Resampling.BILINEAR))
    return echo * (0.35 + 0.52 * speckle), slots


def _draw_pathology(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Tissue stained with hematoxylin (purple nuclei) and eosin (pink rest)."""
    eosin = np.array([0.9, 0.66, 0.79]) + rng.uniform(-0.05, 0.05, 3)
    hematoxylin = np.array([0.36, 0.2, 0.54]) + rng.uniform(-0.06, 0.06, 3)
    image = np.empty((size, size, 3), np.float32)
    image[:] = eosin
    fibres = _clouds(rng, size, 9)[..., None]
    image += fibres * np.array([0.015, 0.045, 0.03], np.float32)
    cytoplasm, lumen, nuclei = _Pen(size), _Pen(size), _Pen(size)

    def add_nuclei(centres: np.ndarray, radius: tuple[float, float], roughness: float) -> None:
        long = rng.uniform(*radius, len(centres))
        radii = np.stack([long, long * rng.uniform(0.65, 1.0, len(centres))], axis=-1)
        nuclei.fill(_polygons(rng, centres, radii, roughness))

    if finding == "benign":
        pitch = rng.uniform(0.8, 1.0)  # between the glands, which lie on a jittered grid
        squeeze = np.array([1.0, rng.uniform(0.8, 1.0)])
        grid = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)))
        centres = pitch * (grid + rng.uniform(-0.08, 0.08, grid.shape)) + rng.uniform(-0.3, 0.3, 2)
        radius = pitch * rng.uniform(0.34, 0.42, len(grid))
        radii = radius[:, None] * squeeze
        cytoplasm.fill(_polygons(rng, centres, 1.25 * radii, 0.03))
        lumen.fill(_polygons(rng, centres, 0.62 * radii, 0.08))
        angle = np.linspace(0.0, 2.0 * np.pi, 11, endpoint=False)
        angle = angle + rng.uniform(-0.1, 0.1, (len(grid), 11))
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * radii[:, None]
        add_nuclei((centres[:, None] + ring).reshape(-1, 2), (0.045, 0.06), 0.08)
        # Cells of the stroma lie where four glands meet.
        corners = np.repeat(centres + 0.5 * pitch, 3, axis=0)
        add_nuclei(corners + rng.uniform(-0.07, 0.07, corners.shape), (0.03, 0.05), 0.1)
    else:
        # A jittered grid: crowded and overlapping, but nowhere bare.
        along = np.linspace(-1.0, 1.0, rng.integers(8, 10))
        centres = rng.permutation(np.array(list(itertools.product(along, along))))
        add_nuclei(centres + rng.uniform(-0.13, 0.13, centres.shape), (0.07, 0.17), 0.2)
    _paint(image, 0.45 * cytoplasm.mask(), (0.72, 0.5, 0.72))
    _paint(image, lumen.mask(), (0.97, 0.95, 0.97))
    chromatin = 1.0 - 0.12 * np.abs(_clouds(rng, size, size // 3))
    _paint(image, 0.95 * nuclei.mask() * chromatin, hematoxylin)
    image += 0.02 * _grain(rng, size)[..., None]
    return image, {}


def _draw_fundus(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Colour photograph of the retina; the optic disc lies towards the nose."""
    x, y = _plane(rng, size)
    eye = _draw_side(rng)
    slots = {"eye": eye}
    nasal = -_IMAGE_SIDE[eye]  # a photograph is seen as the photographer sees it
    retina = np.array([0.83, 0.4, 0.16]) * rng.uniform(0.85, 1.1)
    image = np.empty((size, size, 3), np.float32)
    image[:] = retina
    image += 0.03 * _clouds(rng, size, 6)[..., None] * np.array([1.0, 0.7, 0.3], np.float32)
    macula = (-nasal * 0.3, rng.uniform(0.0, 0.1))
    _paint(image, 0.45 * _ellipse(x, y, macula, (0.24, 0.24), softness=0.3), (0.42, 0.13, 0.05))

    disc_x, disc_y = nasal * rng.uniform(0.4, 0.5), rng.uniform(-0.08, 0.08)
    radius = rng.uniform(0.27, 0.33)  # larger than life, so that the cup fills whole pixels
    shape = (0.92 * radius, radius)
    _paint(image, _ellipse(x, y, (disc_x, disc_y), shape), (0.97, 0.68, 0.28))
    ratio = rng.uniform(0.74, 0.86) if finding == "enlarged cup" else rng.uniform(0.22, 0.34)
    cup = (ratio * shape[0], ratio * shape[1])
    _paint(image, _ellipse(x, y, (disc_x, disc_y), cup), (1.0, 0.97, 0.86))

    vessels = _Pen(size)
    step = np.linspace(0.0, 1.0, 12)
    for vertical, reach, lean in itertools.product((-1.0, 1.0), (1.45, 0.55), (1.0, -0.55)):
        # Arcades leave the disc vertically and bend: towards the macula, or away from it.
        bend = rng.uniform(0.9, 1.1) * reach
        wave = 0.02 * np.sin(9.0 * step + rng.uniform(0.0, 6.0))
        points = np.stack(
            [
                disc_x - nasal * lean * bend * step**1.7 + wave,
                disc_y + vertical * (0.72 if reach > 1 else 0.95) * np.sin(1.9 * step) + wave,
            ],
            axis=-1,
        )
        vessels.line(points, 0.045 if reach > 1 else 0.03)
    _paint(image, 0.75 * vessels.mask(), (0.5, 0.1, 0.06))

    if finding == "hemorrhages":
        slots["size"], typical = _draw_size(rng, (0.06, 0.075), (0.11, 0.14))
        blots = _Pen(size)
        count = rng.integers(16, 24) if slots["size"] == "small" else rng.integers(8, 13)
        distance, angle = np.sqrt(rng.uniform(0.0, 0.6, count)), rng.uniform(0, 2 * np.pi, count)
        centres = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=-1)
        radii = typical * rng.uniform(0.8, 1.2, centres.shape)
        blots.fill(_polygons(rng, centres, radii, 0.25))
        _paint(image, 0.92 * blots.mask(), (0.33, 0.02, 0.03))
    image *= 1.0 - 0.25 * (x * x + y * y)[..., None]  # illumination falls off
    image += 0.015 * _grain(rng, size)[..., None]
    _paint(image, 1.0 - _ellipse(x, y, (0.0, 0.0), (0.95, 0.95)), (0.01, 0.01, 0.01))
    return image, slots


_DRAW: dict[str, Callable[[np.random.Generator, int, str], tuple[np.ndarray, Slots]]] = {
    "xray": _draw_xray,
    "ct": _draw_ct,
    "mri": _draw_mri,
    "ultrasound": _draw_ultrasound,
    "pathology": _draw_pathology,
    "fundus": _draw_fundus,
}
