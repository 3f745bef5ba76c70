"""Augmentation of volumes beside NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from unimed_jax.augmentation import volumes

OFF = {
    "flip": 0.0,
    "rot90": 0.0,
    "warp": {"probability": 0.0, "rotation": 30.0, "zoom": 0.3},
    "blur": {"probability": 0.0, "sigma": 1.0},
    "intensity": {
        "probability": 0.0, "contrast": 0.1, "brightness": 0.1, "gamma": 0.0, "noise": 0.1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    image = rng.random((5, 6, 6, 1)).astype(np.float32)
    return image, (image[..., 0] > 0.5).astype(np.int32)


def same_voxels(image, labels):
    """Whether the labels went with the image."""
    np.testing.assert_array_equal(np.asarray(image)[..., 0] > 0.5, np.asarray(labels) == 1)


def test_flips_and_turns_move_whole_voxels_of_image_and_labels(pair):
    image, labels = pair
    flipped = jax.jit(lambda key: volumes.draw_flips(key, image, labels, 0.5))
    turned = jax.jit(lambda key: volumes.draw_rot90(key, image, labels, 0.5))
    states = set()
    for seed in range(120):
        found = flipped(jax.random.key(seed))
        same_voxels(*found)
        axes = [a for a in range(8) if np.array_equal(
            np.flip(labels, [x for x in range(3) if a >> x & 1]), found[1])]  # fmt: skip
        states.update(axes)
        found = turned(jax.random.key(seed))
        same_voxels(*found)
        counts = [n for n in range(4) if np.array_equal(np.rot90(labels, n, (1, 2)), found[1])]
        assert len(counts) == 1
        states.add(f"turn {counts[0]}")
    assert states == {*range(8), *(f"turn {n}" for n in range(4))}


def test_a_turn_about_an_axis_is_that_of_numpy(pair):
    _, labels = pair
    matrix = volumes.rotation(jnp.array([jnp.pi / 2, 0.0, 0.0]))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in labels.shape), indexing="ij"))
    centre = (np.array(labels.shape)[:, None, None, None] - 1) / 2
    moved = np.einsum("ij,jdhw->idhw", matrix, grid - centre) + centre
    found = ndimage.map_coordinates(labels, moved.round(4), order=0)
    assert any(np.array_equal(found, np.rot90(labels, n, (1, 2))) for n in (1, 3))
    random = np.asarray(volumes.rotation(jnp.array([0.3, -1.1, 2.0])))
    np.testing.assert_allclose(random @ random.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(random) == pytest.approx(1, abs=1e-5)


def test_a_warp_is_an_affine_map_about_the_centre(pair):
    image, labels = pair
    ranges = {"probability": 1.0, "rotation": 25.0, "zoom": 0.2}
    key = jax.random.key(3)
    found, found_labels = volumes.draw_warp(key, image, labels, ranges)
    keys = jax.random.split(key)
    limit = np.deg2rad(25.0)
    angles = jax.random.uniform(keys[0], (3,), minval=-limit, maxval=limit)
    zoom = 1 + 0.2 * jax.random.uniform(keys[1], minval=-1.0, maxval=1.0)
    matrix = np.asarray(volumes.rotation(angles), np.float64) / float(zoom)
    centre = (np.array(labels.shape) - 1) / 2
    offset = centre - matrix @ centre
    want = ndimage.affine_transform(
        image[..., 0].astype(np.float64), matrix, offset, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(found[..., 0], want, atol=1e-4)
    assert found_labels.dtype == labels.dtype and set(np.unique(found_labels)) <= {0, 1}
    still, _ = volumes.draw_warp(key, image, labels, {**ranges, "probability": 0.0})
    np.testing.assert_allclose(still, image, atol=1e-5)


def test_blur_is_a_gaussian_whose_weights_add_up_to_one_at_the_border(pair):
    image, _ = pair
    found = volumes.blurred(image, jnp.float32(0.8))
    ones = ndimage.gaussian_filter(np.ones(image.shape[:3]), 0.8, mode="constant", truncate=9)
    want = ndimage.gaussian_filter(
        image[..., 0].astype(np.float64), 0.8, mode="constant", truncate=9
    )
    np.testing.assert_allclose(found[..., 0], want / ones, atol=1e-4)


def test_probability_zero_changes_nothing_and_intensities_keep_the_labels(pair):
    image, labels = pair
    same, same_labels = volumes.augment(jax.random.key(0), image, labels, OFF)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_labels, labels)
    for name in ("blur", "intensity"):
        settings = {**OFF, name: {**OFF[name], "probability": 1.0}}
        found, kept = volumes.augment(jax.random.key(0), image, labels, settings)
        np.testing.assert_array_equal(kept, labels)
        assert np.abs(np.asarray(found) - image).max() > 0.01
        again, _ = volumes.augment(jax.random.key(0), image, labels, settings)
        np.testing.assert_array_equal(found, again)
