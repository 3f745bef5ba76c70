"""Drawing tools for phantoms: soft-edged shapes, noise and a pen.

Arrays are float32; a mask is (S, S) in [0, 1] with soft edges. Coordinates are those of the plane
(see the package's docstring).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def plane(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre, (S, S) each, under a random small turn, zoom and shift."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(axis, axis)
    turn = rng.uniform(-0.12, 0.12)
    zoom = rng.uniform(0.94, 1.08)
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
    cos, sin = np.float32(np.cos(turn) / zoom), np.float32(np.sin(turn) / zoom)
    return cos * x - sin * y + np.float32(shift_x), sin * x + cos * y + np.float32(shift_y)


def ramp(values: np.ndarray, softness: float = 0.04) -> np.ndarray:
    """0 below zero, 1 above, a ramp of width ``softness`` between."""
    return np.clip(values / np.float32(softness) + np.float32(0.5), 0.0, 1.0)


def ellipse(
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
    return ramp((1.0 - np.sqrt(u * u + v * v)) * np.float32(min(radii)), softness)


def blob(
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
    return ramp(np.float32(radius) * outline - np.sqrt(dx * dx + dy * dy), softness)


def paint(image: np.ndarray, mask: np.ndarray, value: float | Sequence[float] | np.ndarray) -> None:
    """Covers (S, S) with a grey value, or (S, S, 3) with a colour, where the mask is set."""
    if image.ndim == 3:
        mask = mask[..., None]
    image += mask * (np.asarray(value, np.float32) - image)


def clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (S, S) of about unit variance with ``cells`` bumps along a side."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit white noise (S, S)."""
    return rng.standard_normal((size, size), dtype=np.float32)


def polygons(
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


class Pen:
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
