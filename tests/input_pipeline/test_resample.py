"""Resampling against Pillow, for any shape, box and window; boxes against their definition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import resample

side = st.integers(1, 70)


@settings(deadline=None, max_examples=150)
@given(st.data(), side, side, side, side, st.integers(0, 2**32 - 1))
def test_any_window_of_any_box_has_pillows_bits(data, height, width, out_height, out_width, seed):
    # noise and flat areas: overshoot at edges is clipped between the passes
    image = np.random.default_rng(seed).choice(
        np.array([0, 3, 127, 255], np.uint8), (height, width, 3)
    )
    top, left = (data.draw(st.integers(0, n - 1)) for n in (height, width))
    box_height, box_width = (
        data.draw(st.integers(1, n - start)) for n, start in ((height, top), (width, left))
    )
    whole = (out_height, out_width)
    first_row, first_column = (data.draw(st.integers(0, n - 1)) for n in whole)
    window = (
        first_row,
        first_column,
        data.draw(st.integers(1, out_height - first_row)),
        data.draw(st.integers(1, out_width - first_column)),
    )
    ours = np.empty((window[2], window[3], 3), np.uint8)
    resample.bicubic(image, (top, left, box_height, box_width), whole, window, ours)
    pillow = Image.fromarray(image).crop((left, top, left + box_width, top + box_height))
    pillow = np.asarray(pillow.resize((out_width, out_height), Image.Resampling.BICUBIC))
    rows = slice(window[0], window[0] + window[2])
    columns = slice(window[1], window[1] + window[3])
    np.testing.assert_array_equal(ours, pillow[rows, columns])


@given(side, side, st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_a_box_lies_in_the_image_and_has_the_area(height, width, low, seed):
    uniform = np.random.default_rng(seed).random((4, 10))
    top, left, box_height, box_width = resample.random_box(height, width, uniform, (low, 1.0))
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width
    assert box_height > 0 and box_width > 0
    rounding = (box_height + box_width) / 2 + 1  # each side by up to half a pixel
    fits = any(
        round((height * width * (low + u * (1 - low)) * r) ** 0.5) <= width
        and round((height * width * (low + u * (1 - low)) / r) ** 0.5) <= height
        for u, r in zip(uniform[0], np.exp((2 * uniform[1] - 1) * np.log(4 / 3)), strict=True)
    )
    if fits:
        assert box_height * box_width >= low * height * width - rounding
    assert 3 / 4 * (box_height - 0.5) - 0.5 <= box_width <= 4 / 3 * (box_height + 0.5) + 0.5
