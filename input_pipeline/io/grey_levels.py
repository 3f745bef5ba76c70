"""Numbers of any range -> 8-bit grey, where nothing says which of them are black and white."""

import numpy as np

_PERCENTILES = (0.5, 99.5)


def grey_to_8_bit(pixels: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """The 0.5th and 99.5th percentile become 0 and 255, what lies between is scaled linearly.

    NaN becomes 0; the infinities are clipped.

    Args:
      pixels: (H, W), of any dtype.
      ignored: bool (H, W), pixels that do not count for the percentiles.

    Raises:
      ValueError: no pixel is a finite number.
    """
    pixels = pixels.astype(np.float64)
    counted = np.isfinite(pixels)
    if not counted.any():
        raise ValueError("no pixel is a finite number")
    if ignored is not None and (counted & ~ignored).any():
        counted &= ~ignored
    values = pixels[counted]
    low, high = np.percentile(values, _PERCENTILES)
    if high <= low:  # nearly all one value
        low, high = values.min(), max(values.max(), values.min() + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.nan_to_num((pixels - low) / (high - low) * 255, nan=0.0)
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
