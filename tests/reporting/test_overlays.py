"""Label overlays: colours where labels are, slices where most of them are."""

import numpy as np
import pytest
from PIL import Image

from unimed_jax.reporting import overlays


def test_background_stays_grey_and_classes_have_their_colours():
    image = np.full((4, 4), 0.5)
    labels = np.zeros((4, 4), np.uint8)
    labels[0, 0], labels[1, 1], labels[2, 2] = 1, 2, 8  # the eighth has the first colour again
    found = overlays.coloured(image, labels)
    assert (found[3] == 128).all() and found.dtype == np.uint8
    for place, colour in (((0, 0), 0), ((1, 1), 1), ((2, 2), 0)):
        expected = 0.55 * 127.5 + 0.45 * np.array(overlays.CLASS_COLOURS[colour])
        np.testing.assert_allclose(found[place], expected, atol=0.51)


@pytest.mark.parametrize(
    ("areas", "count", "expected"),
    [
        ([0, 0, 5, 0, 0], 3, [2]),
        ([0, 4, 4, 4, 0], 3, [1, 2, 3]),
        ([0] * 8, 4, [0, 2, 4, 6]),
        ([1], 6, [0]),
    ],
)
def test_slices_are_taken_where_labels_are(areas, count, expected):
    assert overlays.chosen_slices(np.array(areas), count) == expected


def test_a_montage_has_the_proportions_of_the_patient(tmp_path):
    images = np.zeros((5, 10, 20))
    labels = np.zeros((5, 10, 20), np.uint8)
    labels[:, 2:5, 3:9] = 1
    overlays.save_montage(tmp_path / "a.png", images, labels, ["liver"], (2.0, 1.0))
    with Image.open(tmp_path / "a.png") as page:
        tile = page.width // 4
        assert page.size == (4 * tile, 2 * tile + 22)  # 20 mm x 20 mm each, two rows, a legend
        assert page.getpixel((tile // 2 - tile // 5, int(0.3 * tile))) != (0, 0, 0)
        assert page.getpixel((tile - 2, tile - 2)) == (0, 0, 0)
        legend = np.asarray(page.crop((0, 2 * tile, page.width, page.height)))
        assert (legend == overlays.CLASS_COLOURS[0]).all(axis=-1).any()
