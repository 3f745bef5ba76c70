"""Intensity windows: the values of a volume that are mapped to 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# default of each modality
BY_MODALITY = {"ct": "-175,250", "mri": "percentiles:0.5,99.5"}
MINMAX = "minmax"

_PERCENTILES = "percentiles:"
_MOST_VALUES = 2**20  # that percentiles are taken of


@dataclass(frozen=True)
class Window:
    """Two values, or a rule that finds them in a volume.

    Attributes:
      low, high: of the window; percentages if ``relative``.
      relative: they are percentiles of the volume.
    """

    low: float
    high: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Window:
        """`-175,250`, `percentiles:0.5,99.5`, or `minmax`. Raises ValueError for anything else."""
        if text == MINMAX:
            return cls(0.0, 100.0, relative=True)
        relative = text.startswith(_PERCENTILES)
        low, _, high = text.removeprefix(_PERCENTILES).partition(",")
        try:
            window = cls(float(low), float(high), relative)
        except ValueError:
            raise ValueError(
                f"the intensity window {text!r} is not LOW,HIGH, percentiles:LOW,HIGH or minmax"
            ) from None
        if not window.low < window.high:
            raise ValueError("the window's ends are not in order")
        if relative and not (window.low >= 0 and window.high <= 100):
            raise ValueError("percentiles are 0 to 100")
        return window

    def limits(self, values: np.ndarray) -> tuple[float, float]:
        """The values that become 0 and 1.

        Percentiles are those of about a million voxels on a regular grid, the ends those of all.
        """
        if not self.relative:
            return self.low, self.high
        if (self.low, self.high) == (0.0, 100.0):
            return float(values.min()), float(values.max())
        step = max(1, round((values.size / _MOST_VALUES) ** (1 / values.ndim)))
        low, high = np.percentile(values[(slice(None, None, step),) * values.ndim],
                                  (self.low, self.high))  # fmt: skip
        return float(low), float(high)


def rescaled(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """float32 in 0..1, clipped."""
    low, high = limits
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
