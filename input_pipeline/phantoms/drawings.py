"""Phantoms of the six modalities: one function each.

A function returns the pixels, float32 (S, S) or (S, S, 3) in [0, 1], and attributes for its
caption: "side", "size" or "eye".
"""

import itertools
from collections.abc import Callable

import numpy as np
from PIL import Image

from input_pipeline.phantoms.strokes import (
    Pen,
    blob,
    clouds,
    ellipse,
    grain,
    paint,
    plane,
    polygons,
    ramp,
)

Slots = dict[str, str]

SIDES = ("left", "right")
SIZES = ("small", "large")
_IMAGE_SIDE = {"left": 1.0, "right": -1.0}  # the sign of x of a side of the patient


def _draw_side(rng: np.random.Generator) -> str:
    return SIDES[rng.integers(2)]


def _draw_size(
    rng: np.random.Generator, small: tuple[float, float], large: tuple[float, float]
) -> tuple[str, float]:
    """A size word and a radius of that size."""
    size = SIZES[rng.integers(2)]
    return size, rng.uniform(*(small if size == "small" else large))


def _draw_xray(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Frontal chest: attenuation is bright."""
    x, y = plane(rng, size)
    image = np.full((size, size), 0.05, np.float32)
    width, top = rng.uniform(0.9, 1.05), rng.uniform(-0.74, -0.66)
    tissue = rng.uniform(0.46, 0.58)
    paint(image, ellipse(x, y, (0.0, 0.45), (0.93 * width, 1.22), softness=0.1), tissue)
    paint(image, ellipse(x, y, (0.0, -0.28), (0.88 * width, 0.52), softness=0.1), tissue)
    paint(image, ellipse(x, y, (0.0, -1.0), (0.24, 0.5), softness=0.1), tissue)

    lung = {}
    for side, sign in _IMAGE_SIDE.items():
        centre, radii = (sign * 0.42 * width, -0.06), (0.31 * width, -0.06 - top)
        dome = 0.48 + 0.5 * (np.abs(x) - 0.40 * width) ** 2 + (0.05 if side == "left" else 0.0)
        lung[side] = ellipse(x, y, centre, radii, sign * -0.08) * ramp(dome - y, 0.06)
    lungs = np.maximum(lung["left"], lung["right"])
    paint(image, lungs, rng.uniform(0.14, 0.24))
    image += 0.03 * lungs * clouds(rng, size, 14)

    heart = (rng.uniform(0.26, 0.34), rng.uniform(0.26, 0.34))
    paint(image, ellipse(x, y, (0.12, 0.28), heart, -0.5, 0.08), tissue + 0.16)
    paint(image, ellipse(x, y, (0.0, -0.1), (0.13, 1.1), softness=0.12), tissue + 0.18)

    side = _draw_side(rng)
    slots = {"side": side}
    if finding == "pleural effusion":
        slots["size"] = rng.choice(SIZES).item()
        level = rng.uniform(*((0.16, 0.26) if slots["size"] == "small" else (-0.25, -0.02)))
        # The fluid climbs the outer wall: a meniscus.
        outward = np.clip((np.abs(x) - 0.25) / 0.4, 0.0, 1.2)
        fluid = ramp(y - (level - 0.28 * outward * outward), 0.08)
        beside = ellipse(x, y, (_IMAGE_SIDE[side] * 0.42 * width, 0.0), (0.31 * width, 0.62))
        paint(image, fluid * np.maximum(lung[side], beside * (y > 0.0)), tissue + 0.2)
    ribs = np.cos((y - 0.45 * (np.abs(x) - 0.2)) * np.float32(rng.uniform(21.0, 25.0)))
    chest = ellipse(x, y, (0.0, -0.05), (0.8 * width, 0.72), softness=0.1)
    image += 0.12 * chest * ramp(ribs - 0.45, 0.5) * (0.85 - image)
    for sign in (-1.0, 1.0):
        clavicle = ellipse(x, y, (sign * 0.33, top + 0.1), (0.27, 0.035), sign * -0.2)
        paint(image, 0.6 * clavicle, tissue + 0.2)
    if finding == "nodule":
        slots["size"], radius = _draw_size(rng, (0.12, 0.15), (0.19, 0.24))
        lowest = 0.2 if side == "right" else -0.05  # the heart lies on the left
        centre = (_IMAGE_SIDE[side] * rng.uniform(0.42, 0.5) * width, rng.uniform(-0.42, lowest))
        nodule = blob(rng, x, y, centre, radius, 0.03, softness=0.08)
        paint(image, nodule, tissue + rng.uniform(0.18, 0.3))
    # Quantum noise: its variance follows the number of photons.
    photons = 1.05 - np.clip(image, 0.0, 1.0)
    image += np.float32(rng.uniform(0.02, 0.04)) * np.sqrt(photons) * grain(rng, size)
    return image, slots


def _draw_ct(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Axial chest, seen from the feet, front at the top."""
    x, y = plane(rng, size)
    image = np.full((size, size), 0.02, np.float32)
    width, depth = rng.uniform(0.88, 0.96), rng.uniform(0.64, 0.72)
    muscle = rng.uniform(0.5, 0.6)
    paint(image, ellipse(x, y, (0.0, 0.0), (width, depth)), 0.34)
    paint(image, ellipse(x, y, (0.0, 0.0), (width - 0.07, depth - 0.07)), muscle)

    lung = {}
    for side, sign in _IMAGE_SIDE.items():
        radii = (0.37 * width, 0.68 * depth)
        lung[side] = ellipse(x, y, (sign * 0.44 * width, 0.0), radii, sign * 0.15)
    lungs = np.maximum(lung["left"], lung["right"])
    paint(image, lungs, rng.uniform(0.07, 0.13))
    vessels = ramp(clouds(rng, size, 18) - 1.1, 0.6)
    image += 0.22 * lungs * vessels

    side = _draw_side(rng)
    slots = {"side": side}
    sign = _IMAGE_SIDE[side]
    if finding == "nodule":
        slots["size"], radius = _draw_size(rng, (0.11, 0.14), (0.18, 0.22))
        centre = (sign * rng.uniform(0.46, 0.58) * width, rng.uniform(-0.22, 0.22))
        paint(image, blob(rng, x, y, centre, radius, 0.07), rng.uniform(0.6, 0.72))
    if finding == "consolidation":
        slots["size"] = rng.choice(SIZES).item()
        level = rng.uniform(*((0.12, 0.2) if slots["size"] == "small" else (-0.2, -0.05)))
        border = level + 0.06 * clouds(rng, size, 7)
        airways = 1.0 - 0.6 * ramp(clouds(rng, size, 16) - 0.9, 0.5)
        paint(image, lung[side] * ramp(y - border, 0.1) * airways, rng.uniform(0.42, 0.5))

    heart = (rng.uniform(0.25, 0.31), rng.uniform(0.2, 0.26))
    paint(image, ellipse(x, y, (0.08, -0.16), heart, 0.5), muscle + 0.14)
    paint(image, ellipse(x, y, (0.12, 0.2), (0.09, 0.09)), muscle + 0.2)
    bone = rng.uniform(0.9, 1.0)
    spine = 0.68 * depth
    paint(image, ellipse(x, y, (0.0, spine - 0.1), (0.14, 0.11)), bone)
    paint(image, ellipse(x, y, (0.0, spine + 0.09), (0.15, 0.06)), bone)
    paint(image, ellipse(x, y, (0.0, spine + 0.04), (0.06, 0.05)), muscle)
    paint(image, ellipse(x, y, (0.0, 0.13 - depth), (0.1, 0.04)), bone)
    for angle in rng.uniform(-0.08, 0.08) + np.array([0.55, 1.2, 1.9, 2.5]):
        for mirror in (-1.0, 1.0):
            place = (mirror * 0.87 * width * np.sin(angle), -0.84 * depth * np.cos(angle))
            paint(image, ellipse(x, y, place, (0.1, 0.035), mirror * (angle + 0.1)), bone)
    # The detector's rings are centred on the scanner, not on the body.
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    distance = np.sqrt(axis[None] ** 2 + axis[:, None] ** 2)
    rings = np.cos(distance * np.float32(rng.uniform(45.0, 75.0)))
    image += np.float32(rng.uniform(0.008, 0.02)) * rings
    image += np.float32(rng.uniform(0.015, 0.03)) * grain(rng, size)
    return image, slots


def _draw_mri(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Axial brain, T1-like: fluid is dark, white matter bright."""
    x, y = plane(rng, size)
    image = np.full((size, size), 0.02, np.float32)
    width, height = rng.uniform(0.66, 0.76), rng.uniform(0.82, 0.92)
    gray, white = rng.uniform(0.36, 0.44), rng.uniform(0.56, 0.66)
    paint(image, ellipse(x, y, (0.0, 0.0), (width, height)), rng.uniform(0.7, 0.85))
    paint(image, ellipse(x, y, (0.0, 0.0), (width - 0.06, height - 0.06)), 0.05)
    brain = ellipse(x, y, (0.0, 0.0), (width - 0.11, height - 0.11))
    folds = clouds(rng, size, 15)
    edge = ellipse(x, y, (0.0, 0.0), (width - 0.26, height - 0.26), softness=0.3)
    paint(image, brain, gray)
    paint(image, brain * ramp(edge - 0.5 + 0.35 * folds, 0.35), white)
    sulci = brain * (1.0 - edge) * ramp(clouds(rng, size, 17) - 0.7, 0.5)
    paint(image, 0.7 * sulci, 0.12)
    fissure = ramp(0.02 - np.abs(x), 0.04) * brain * ramp(np.abs(y) - 0.42, 0.1)
    paint(image, fissure, 0.1)

    if finding == "enlarged ventricles":
        across, along = rng.uniform(0.13, 0.18), rng.uniform(0.36, 0.44)
    else:
        across, along = rng.uniform(0.05, 0.075), rng.uniform(0.2, 0.28)
    for sign in (-1.0, 1.0):
        for end, lean in ((-0.5, -0.35), (0.5, 0.35)):
            centre = (sign * (0.05 + 0.75 * across), end * along)
            horn = ellipse(x, y, centre, (across, 0.62 * along), -sign * lean, 0.05)
            paint(image, horn, 0.1)

    slots = {}
    if finding == "tumor":
        slots["side"] = _draw_side(rng)
        slots["size"], radius = _draw_size(rng, (0.17, 0.2), (0.25, 0.3))
        centre = (_IMAGE_SIDE[slots["side"]] * rng.uniform(0.28, 0.36), rng.uniform(-0.38, 0.38))
        edema = blob(rng, x, y, centre, 1.5 * radius, 0.08, softness=0.1)
        paint(image, brain * edema, 0.2)
        paint(image, brain * blob(rng, x, y, centre, radius, 0.04), rng.uniform(0.85, 1.0))
        core = radius * rng.uniform(0.35, 0.65)
        paint(image, blob(rng, x, y, centre, core, 0.08), rng.uniform(0.2, 0.45))
    image *= 1.0 + 0.1 * clouds(rng, size, 2)  # the coil's uneven sensitivity
    # Magnitude of a complex signal with noise in both channels: Rician.
    noise = np.float32(rng.uniform(0.02, 0.04))
    image = np.hypot(image + noise * grain(rng, size), noise * grain(rng, size))
    return image, slots


def _draw_ultrasound(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Breast, linear probe at the top: echoes are bright, depth goes down."""
    x, y = plane(rng, size)
    depth = y + 0.05 * clouds(rng, size, 3)
    fat, gland, muscle = rng.uniform(-0.5, -0.38), rng.uniform(0.42, 0.6), rng.uniform(0.75, 0.9)
    echo = np.full((size, size), 0.7, np.float32)
    paint(echo, ramp(depth + 0.84), rng.uniform(0.26, 0.34))
    paint(echo, ramp(depth - fat, 0.06), rng.uniform(0.46, 0.56))
    paint(echo, ramp(depth - gland, 0.06), rng.uniform(0.3, 0.38))
    paint(echo, ramp(depth - muscle, 0.06), 0.24)
    septa = np.cos(depth * np.float32(rng.uniform(16.0, 22.0)) + 2.0 * clouds(rng, size, 4))
    echo += 0.14 * ramp(septa - 0.8, 0.2)
    paint(echo, ramp(0.025 - np.abs(depth - gland), 0.04), 0.8)

    slots = {}
    if finding != "normal":
        slots["size"], radius = _draw_size(rng, (0.17, 0.22), (0.3, 0.38))
        centre = (rng.uniform(-0.4, 0.4), rng.uniform(-0.25, 0.15))
        behind = ramp(radius * 0.8 - np.abs(x - centre[0]), 0.12) * ramp(y - centre[1], 0.1)
        if finding == "cyst":
            echo *= 1.0 + 0.75 * behind
            paint(echo, ellipse(x, y, centre, (1.1 * radius, 0.85 * radius)), 0.01)
        else:
            echo *= 1.0 - 0.8 * behind
            halo = blob(rng, x, y, centre, 1.2 * radius, 0.1, (3, 5, 8), 0.1)
            paint(echo, 0.6 * halo * ramp(centre[1] - y, 0.2), 0.75)
            lesion = blob(rng, x, y, centre, radius, 0.14, (3, 5, 8))
            paint(echo, lesion, rng.uniform(0.17, 0.22))
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
    fibres = clouds(rng, size, 9)[..., None]
    image += fibres * np.array([0.015, 0.045, 0.03], np.float32)
    cytoplasm, lumen, nuclei = Pen(size), Pen(size), Pen(size)

    def add_nuclei(centres: np.ndarray, radius: tuple[float, float], roughness: float) -> None:
        long = rng.uniform(*radius, len(centres))
        radii = np.stack([long, long * rng.uniform(0.65, 1.0, len(centres))], axis=-1)
        nuclei.fill(polygons(rng, centres, radii, roughness))

    if finding == "benign":
        pitch = rng.uniform(0.8, 1.0)  # between the glands, which lie on a jittered grid
        squeeze = np.array([1.0, rng.uniform(0.8, 1.0)])
        grid = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)))
        centres = pitch * (grid + rng.uniform(-0.08, 0.08, grid.shape)) + rng.uniform(-0.3, 0.3, 2)
        radius = pitch * rng.uniform(0.34, 0.42, len(grid))
        radii = radius[:, None] * squeeze
        cytoplasm.fill(polygons(rng, centres, 1.25 * radii, 0.03))
        lumen.fill(polygons(rng, centres, 0.62 * radii, 0.08))
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
    paint(image, 0.45 * cytoplasm.mask(), (0.72, 0.5, 0.72))
    paint(image, lumen.mask(), (0.97, 0.95, 0.97))
    chromatin = 1.0 - 0.12 * np.abs(clouds(rng, size, size // 3))
    paint(image, 0.95 * nuclei.mask() * chromatin, hematoxylin)
    image += 0.02 * grain(rng, size)[..., None]
    return image, {}


def _draw_fundus(rng: np.random.Generator, size: int, finding: str) -> tuple[np.ndarray, Slots]:
    """Colour photograph of the retina; the optic disc lies towards the nose."""
    x, y = plane(rng, size)
    eye = _draw_side(rng)
    slots = {"eye": eye}
    nasal = -_IMAGE_SIDE[eye]  # a photograph is seen as the photographer sees it
    retina = np.array([0.83, 0.4, 0.16]) * rng.uniform(0.85, 1.1)
    image = np.empty((size, size, 3), np.float32)
    image[:] = retina
    image += 0.03 * clouds(rng, size, 6)[..., None] * np.array([1.0, 0.7, 0.3], np.float32)
    macula = (-nasal * 0.3, rng.uniform(0.0, 0.1))
    paint(image, 0.45 * ellipse(x, y, macula, (0.24, 0.24), softness=0.3), (0.42, 0.13, 0.05))

    disc_x, disc_y = nasal * rng.uniform(0.4, 0.5), rng.uniform(-0.08, 0.08)
    radius = rng.uniform(0.27, 0.33)  # larger than life, so that the cup fills whole pixels
    shape = (0.92 * radius, radius)
    paint(image, ellipse(x, y, (disc_x, disc_y), shape), (0.97, 0.68, 0.28))
    ratio = rng.uniform(0.74, 0.86) if finding == "enlarged cup" else rng.uniform(0.22, 0.34)
    cup = (ratio * shape[0], ratio * shape[1])
    paint(image, ellipse(x, y, (disc_x, disc_y), cup), (1.0, 0.97, 0.86))

    vessels = Pen(size)
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
    paint(image, 0.75 * vessels.mask(), (0.5, 0.1, 0.06))

    if finding == "hemorrhages":
        slots["size"], typical = _draw_size(rng, (0.06, 0.075), (0.11, 0.14))
        blots = Pen(size)
        count = rng.integers(16, 24) if slots["size"] == "small" else rng.integers(8, 13)
        distance, angle = np.sqrt(rng.uniform(0.0, 0.6, count)), rng.uniform(0, 2 * np.pi, count)
        centres = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=-1)
        radii = typical * rng.uniform(0.8, 1.2, centres.shape)
        blots.fill(polygons(rng, centres, radii, 0.25))
        paint(image, 0.92 * blots.mask(), (0.33, 0.02, 0.03))
    image *= 1.0 - 0.25 * (x * x + y * y)[..., None]  # illumination falls off
    image += 0.015 * grain(rng, size)[..., None]
    paint(image, 1.0 - ellipse(x, y, (0.0, 0.0), (0.95, 0.95)), (0.01, 0.01, 0.01))
    return image, slots


DRAW: dict[str, Callable[[np.random.Generator, int, str], tuple[np.ndarray, Slots]]] = {
    "xray": _draw_xray,
    "ct": _draw_ct,
    "mri": _draw_mri,
    "ultrasound": _draw_ultrasound,
    "pathology": _draw_pathology,
    "fundus": _draw_fundus,
}
