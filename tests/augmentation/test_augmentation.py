"""Augmentations beside NumPy and SciPy, written as the formulas are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from unimed_jax.augmentation import fourier, fusion, geometry, location_scale, row_keys


@pytest.mark.parametrize("inverse", [False, True])
def test_the_curve_is_the_bezier_formula(inverse):
    inner = np.array([[0.7, 0.2], [0.3, 0.6]])
    points = [(0.1, 0.1), *inner, (0.9, 0.9)]
    binomial = (1, 3, 3, 1)
    curve = np.array(
        [
            sum(binomial[i] * t ** (3 - i) * (1 - t) ** i * np.array(points[i]) for i in range(4))
            for t in np.linspace(0, 1, location_scale.NUM_SAMPLES)
        ]
    )
    x, y = location_scale.bezier_table(
        jnp.asarray(inner), jnp.float32(0.1), jnp.float32(0.9), jnp.asarray(inverse)
    )
    np.testing.assert_allclose(x, np.sort(curve[:, 0]), atol=1e-6)
    expected = curve[:, 1] if inverse else np.sort(curve[:, 1])
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert float(y[0]) == pytest.approx(0.9 if inverse else 0.1)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_quantiles_of_a_part_are_numpys(share):
    rng = np.random.default_rng(0)
    values = rng.random((9, 8)).astype(np.float32)
    where = rng.random((9, 8)) < share
    where[0, 0] = True
    got = location_scale.quantiles(jnp.asarray(values), jnp.asarray(where), (0.2, 0.8))
    np.testing.assert_allclose(got, np.percentile(values[where], [20, 80]), atol=1e-6)


def test_a_map_is_the_formula_of_its_draws():
    rng = np.random.default_rng(1)
    values = rng.random((12, 10, 3)).astype(np.float32)
    where = np.broadcast_to((rng.random((12, 10)) < 0.4)[..., None], values.shape)
    for seed in range(3):
        key = jax.random.key(seed)
        keys = jax.random.split(key, 4)
        members = values[where].astype(np.float64)
        low, high = members.min(), members.max()
        inner = low + (high - low) * np.asarray(jax.random.uniform(keys[0], (2, 2)))
        inverse = bool(jax.random.bernoulli(keys[1], 0.5))
        x, y = location_scale.bezier_table(inner, np.float32(low), np.float32(high), inverse)
        curved = np.interp(members, x, y)
        alpha = np.clip(1 + 0.1 * float(jax.random.normal(keys[2])), 0.9, 1.1)
        beta = np.clip(
            0.5 * float(jax.random.normal(keys[3])),
            0 - np.percentile(curved, 20),
            1 - np.percentile(curved, 80),
        )
        got = location_scale.draw_map(key, jnp.asarray(values), jnp.asarray(where), 0.5)
        np.testing.assert_allclose(got[where], np.clip(alpha * curved + beta, 0, 1), atol=2e-5)
        np.testing.assert_array_equal(got[~where], values[~where])


def test_local_maps_each_class_by_itself_and_leaves_what_is_dark():
    rng = np.random.default_rng(2)
    image = rng.random((10, 10, 1)).astype(np.float32)
    image[:2] = 0.005
    labels = rng.integers(0, 3, (10, 10))  # label 3 does not occur
    key = jax.random.key(0)
    got = np.asarray(location_scale.draw_local(key, jnp.asarray(image), jnp.asarray(labels), 3))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[:2], image[:2])
    for label in range(3):
        where = (labels == label)[..., None]
        alone = location_scale.draw_map(
            jax.random.fold_in(key, label),
            jnp.asarray(image),
            jnp.asarray(where),
            0.5 if label else 1.0,
        )
        chosen = where & (image > 0.01)
        # compilers of other versions may round otherwise
        np.testing.assert_allclose(got[chosen], np.asarray(alone)[chosen], rtol=1e-6, atol=1e-7)


def saliency_in_scipy(gradient, grid):
    """The stages as published: pool, B-spline kernel, transposed convolution, resize, min-max."""
    g = np.sqrt((gradient.astype(np.float64) ** 2).mean(-1))
    size = g.shape[0]
    cells = [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]
    pooled = np.array([[g[a, b].mean() for b in cells] for a in cells])
    s = size // grid
    box = np.ones((s, s))
    kernel = box
    for i in (1, 2):
        kernel = signal.correlate2d(np.pad(kernel, i * s), box, mode="valid") / s**2
    assert kernel.shape == (5 * s + 2, 5 * s + 2)
    full = np.zeros([(grid - 1) * s + 5 * s + 2] * 2)
    for a in range(grid):
        for b in range(grid):
            full[a * s : a * s + 5 * s + 2, b * s : b * s + 5 * s + 2] += pooled[a, b] * kernel
    p = (5 * s + 1) // 2
    out = full[p : len(full) - p, p : len(full) - p]
    at = np.linspace(0, len(out) - 1, size)
    resized = ndimage.map_coordinates(out, np.meshgrid(at, at, indexing="ij"), order=1)
    return (resized - resized.min() + 1e-20) / (resized.max() - resized.min() + 1e-20)


@pytest.mark.parametrize(("size", "grid"), [(24, 3), (40, 6), (27, 4)])
def test_the_saliency_map_is_the_published_stages(size, grid):
    gradient = 1e-6 * np.random.default_rng(3).normal(size=(2, size, size, 3))
    got = fusion.saliency_map(jnp.asarray(gradient, jnp.float32), grid)
    for b in range(2):
        np.testing.assert_allclose(got[b], saliency_in_scipy(gradient[b], grid), atol=2e-5)


def test_the_published_kernel_and_sizes():
    for side, grid, length, peak in ((64, 3, 130, 160), (10, 18, 172, 25)):
        kernel = fusion.spline(side)
        assert len(kernel) == 5 * side + 2
        assert np.count_nonzero(kernel) == 3 * side - 2
        assert kernel.max() ** 2 == pytest.approx(0.5625, abs=0.01)
        assert kernel[peak] == pytest.approx(kernel.max())
        assert kernel.sum() ** 2 == pytest.approx(side**2)
        assert (grid - 1) * side - 2 * ((5 * side + 1) // 2) + len(kernel) == length
    image, other, s = np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)), np.full((1, 2, 2), 0.25)
    np.testing.assert_array_equal(fusion.fuse(image, other, s), np.full((1, 2, 2, 1), 0.25))


@pytest.mark.parametrize("shape", [(16, 16, 3), (12, 20, 1), (9, 7, 2)])
def test_amplitudes_are_exchanged_in_the_centred_square(shape):
    rng = np.random.default_rng(4)
    image, partner = rng.random(shape), rng.random(shape)
    share = 0.13
    expected = np.empty(shape)
    for c in range(shape[2]):
        spectrum, other = (np.fft.fftshift(np.fft.fft2(x[..., c])) for x in (image, partner))
        amplitude = np.abs(spectrum)
        centre = [n // 2 for n in shape[:2]]
        for y in range(shape[0]):
            for x in range(shape[1]):
                if abs(y - centre[0]) <= int(shape[0] * share) and abs(x - centre[1]) <= int(
                    shape[1] * share
                ):
                    amplitude[y, x] = np.abs(other[y, x])
        mixed = amplitude * np.exp(1j * np.angle(spectrum))
        expected[..., c] = np.fft.ifft2(np.fft.ifftshift(mixed)).real
    got = fourier.mix_amplitude(jnp.asarray(image), jnp.asarray(partner), jnp.float32(share))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    shares = jax.vmap(fourier.draw_share)(jax.random.split(jax.random.key(0), 200))
    assert float(shares.min()) == pytest.approx(0.05)
    assert float(shares.max()) == pytest.approx(0.15)


def test_a_warp_moves_image_and_labels_as_scipy_does():
    rng = np.random.default_rng(5)
    image, labels = rng.random((14, 18, 2)), rng.integers(0, 3, (14, 18))
    matrix, offset = geometry.affine(
        jnp.float32(0.3), jnp.float32(0.2), jnp.float32(1.2), jnp.array([1.5, -2.0])
    )
    # forward: shear, turn, zoom, shift
    cos, sin = np.cos(0.3), np.sin(0.3)
    forward = 1.2 * np.array([[cos, -sin], [sin, cos]]) @ [[1, 0], [np.tan(0.2), 1]]
    point = np.array([3.0, 4.0])
    np.testing.assert_allclose(matrix @ (forward @ point + [1.5, -2.0]) + offset, point, atol=1e-5)
    centre = np.array([6.5, 8.5])
    grid = np.stack(np.meshgrid(np.arange(14.0), np.arange(18.0), indexing="ij"))
    at = np.einsum("ij,jhw->ihw", matrix, grid - centre[:, None, None])
    at += (np.asarray(offset) + centre)[:, None, None]
    moved, moved_labels = geometry.warp(
        jnp.asarray(image, jnp.float32), jnp.asarray(labels), jnp.asarray(at)
    )
    inside = ((at >= 0) & (at <= np.array([13, 17])[:, None, None])).all(0)
    for c in range(2):
        want = ndimage.map_coordinates(image[..., c], at, order=1)
        np.testing.assert_allclose(moved[..., c][inside], want[inside], atol=1e-5)
    want = ndimage.map_coordinates(labels, at, order=0)
    np.testing.assert_array_equal(np.asarray(moved_labels)[inside], want[inside])


def test_elastic_noise_is_blurred_as_scipy_does():
    noise = np.random.default_rng(6).uniform(-1, 1, (2, 40, 30))
    offset = np.arange(21) - 10
    kernel = np.exp(-(offset**2) / 50)
    kernel /= kernel.sum()
    want = noise
    for axis in (1, 2):
        want = ndimage.convolve1d(want, kernel, axis=axis, mode="constant")
    got = geometry.displacement(jnp.asarray(noise, jnp.float32), 20.0)
    np.testing.assert_allclose(got, 20 * want, atol=1e-4)


def test_no_range_means_no_change_and_a_key_decides_everything():
    rng = np.random.default_rng(7)
    image = jnp.asarray(rng.random((12, 12, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, (12, 12)))
    names = ("rotation", "shear", "shift", "zoom", "elastic", "flip")
    still, same = geometry.draw_warp(jax.random.key(0), image, labels, dict.fromkeys(names, 0.0))
    np.testing.assert_allclose(still, image, atol=1e-5)
    np.testing.assert_array_equal(same, labels)
    levels = dict.fromkeys(("contrast", "brightness", "gamma", "noise"), 0.0)
    unchanged = geometry.draw_intensity(jax.random.key(0), image, levels)
    np.testing.assert_allclose(unchanged, image, atol=5e-5)
    keys = row_keys(jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 4]], jnp.uint32))
    strong = dict.fromkeys(names, 0.4)
    a, b, c = (geometry.draw_warp(key, image, labels, strong)[0] for key in keys)
    np.testing.assert_array_equal(a, b)
    assert np.abs(np.asarray(a - c)).max() > 0.1
