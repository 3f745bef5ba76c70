"""Random crops and bicubic resampling, bit-identical to Pillow, compiled, without the GIL.

Separable cubic convolution with a = -0.5, the kernel widened by the scale when shrinking
(antialiasing), weights renormalised at the border and held as integers of 22 fractional bits,
rounding to 8 bit between the horizontal and the vertical pass. Most of the time goes into
multiplying and adding neighbouring pixels, so both passes run over long rows, which the compiler
vectorizes; for the horizontal pass, pixels of several rows are gathered first.
"""

import math

import numpy as np
from numba import njit

_BITS = 22  # of a weight behind the point: a product with 8 bit, and sums of some, fit in 32 bit
_ROWS = 16  # that the horizontal pass takes together


@njit(cache=True, nogil=True)
def random_box(
    height: int, width: int, uniform: np.ndarray, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    """The crop box of torchvision's RandomResizedCrop.

    Aspect ratio is log-uniform in [3/4, 4/3]; the first proposal that fits is taken, otherwise
    the largest centred box with an aspect ratio in that range.

    Args:
      height, width: of the image.
      uniform: float64 (4, proposals) in [0, 1): area, log of the aspect ratio, top, left.
      area: smallest and largest fraction of the area.

    Returns:
      Top, left, height, width.
    """
    for share, ratio, top, left in uniform.T:
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        aspect = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
        box_width, box_height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (
                int(top * (height - box_height + 1)),
                int(left * (width - box_width + 1)),
                box_height,
                box_width,
            )
    box_width, box_height = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@njit(cache=True, nogil=True)
def _cubic(t: float) -> float:
    """Keys' kernel (1981) with a = -0.5."""
    a, t = -0.5, abs(t)
    if t < 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    if t < 2:
        return a * (((t - 5) * t + 8) * t - 4)
    return 0.0


@njit(cache=True, nogil=True)
def _weights(length: int, out_length: int, first: int, count: int) -> tuple:
    """Of the outputs ``first`` to ``first + count`` of an axis: where each begins, and its weights.

    ``length`` pixels become ``out_length``. Returns int32 (count,) and int32 (count, taps).
    """
    scale = length / out_length
    widened = max(scale, 1.0)
    support = 2.0 * widened
    taps = 2 * math.ceil(support) + 1
    begin = np.empty(count, np.int32)
    weights = np.zeros((count, taps), np.int32)
    exact = np.empty(taps)
    for index in range(count):
        centre = (first + index + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), length)
        total = 0.0
        for tap in range(high - low):
            exact[tap] = _cubic((tap + low - centre + 0.5) / widened)
            total += exact[tap]
        # unused taps have weight 0, and must not reach beyond the image
        begin[index] = min(low, max(length - taps, 0))
        shift = low - begin[index]
        for tap in range(high - low):
            value = exact[tap] / total * (1 << _BITS)
            weights[index, shift + tap] = int(value - 0.5 if value < 0 else value + 0.5)
    return begin, weights[:, : min(taps, length)]


@njit(cache=True, nogil=True)
def _weighted_sums(source, begin, weights, target) -> None:  # noqa: ANN001  (typed by numba)
    """target[i] = sum over k of weights[i, k] * source[begin[i] + k], rounded to 8 bit."""
    width = source.shape[1]
    sums = np.empty(width, np.int32)
    for index in range(len(begin)):
        for x in range(width):
            sums[x] = 1 << (_BITS - 1)
        for tap in range(weights.shape[1]):
            weight, row = weights[index, tap], source[begin[index] + tap]
            for x in range(width):
                sums[x] += weight * np.int32(row[x])
        for x in range(width):
            target[index, x] = min(max(sums[x] >> _BITS, 0), 255)


@njit(cache=True, nogil=True)
def bicubic(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    out: np.ndarray,
) -> None:
    """Writes a window of a box of an image that is resized.

    Args:
      image: uint8 (H, W, 3).
      box: top, left, height, width of what is resized, within the image.
      resized: height and width that the box becomes.
      window: top, left, height, width of what is written, within that.
      out: uint8 (window height, window width, 3), contiguous; is overwritten.
    """
    top, left, height, width = box
    rows, row_weights = _weights(height, resized[0], window[0], window[2])
    columns, column_weights = _weights(width, resized[1], window[1], window[3])
    # only rows that the vertical pass will read
    first = rows.min()
    last = rows.max() + row_weights.shape[1]
    across = np.empty((last - first, window[3] * 3), np.uint8)
    pixels = np.empty((width, _ROWS * 3), np.uint8)
    shrunk = np.empty((window[3], _ROWS * 3), np.uint8)
    for begin in range(first, last, _ROWS):
        count = min(_ROWS, last - begin)
        for row in range(count):
            for x in range(width):
                for channel in range(3):
                    pixels[x, row * 3 + channel] = image[top + begin + row, left + x, channel]
        _weighted_sums(pixels, columns, column_weights, shrunk)
        for row in range(count):
            for x in range(window[3]):
                for channel in range(3):
                    across[begin - first + row, x * 3 + channel] = shrunk[x, row * 3 + channel]
    _weighted_sums(across, rows - first, row_weights, out.reshape(window[2], window[3] * 3))
