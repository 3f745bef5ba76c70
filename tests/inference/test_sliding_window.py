"""Whole volumes window by window: equal to MONAI's, in bands, in the volume's own grid."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.unetr_names import to_monai

from input_pipeline.io.errors import ConfigError
from unimed_jax.distributed import sharding
from unimed_jax.evals.segmentation.volume_evaluator import ArrayVolume
from unimed_jax.inference import sliding_window
from unimed_jax.inference.volume_segmenter import Resampled, Segmenter, in_original_grid
from unimed_jax.models.unetr import UNETRConfig
from unimed_jax.models.volumetric import VolumetricConfig, VolumetricModel


def by_loops(values, window, function, overlap):
    """The same average with everything in memory, for volumes no smaller than a window."""
    importance = sliding_window.weights(window)[..., None].astype(np.float64)
    total, weight = 0.0, 0.0
    places = [sliding_window.starts(n, w, overlap) for n, w in zip(values.shape, window)]  # noqa: B905
    for z in places[0]:
        for y in places[1]:
            for x in places[2]:
                part = tuple(slice(p, p + w) for p, w in zip((z, y, x), window, strict=True))
                answer = np.zeros((*values.shape, 2))
                seen = np.zeros((*values.shape, 1))
                answer[part] = importance * function(values[part][None, ..., None])[0]
                seen[part] = importance
                total, weight = total + answer, weight + seen
    return total / weight


def squares(batch):
    """Depends on where in a window a voxel is, as a network's answer does."""
    ramp = np.linspace(0, 1, batch.shape[1], dtype=np.float32)[:, None, None, None]
    return np.concatenate([batch**2 + ramp, batch * ramp], axis=-1)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(13, 9, 7), (4, 6, 5), (24, 6, 5)])
def test_bands_are_the_average_over_all_windows(shape, overlap):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return values[start:stop]

    window = (4, 6, 5)
    bands = list(
        sliding_window.probabilities(read, shape, window, squares, overlap=overlap, batch_size=3)
    )
    want = by_loops(values, window, squares, overlap)
    np.testing.assert_allclose(np.concatenate(bands), want, atol=1e-5)
    # a window's depth of the volume at a time, from the top to the bottom
    assert all(0 <= stop - start <= window[0] for start, stop in asked)
    assert asked == sorted(asked)
    assert all(len(band) <= window[0] for band in bands)


def test_a_volume_that_is_smaller_than_a_window_is_seen_in_its_middle():
    values = np.random.default_rng(0).random((3, 4, 9)).astype(np.float32)
    seen = []

    def predict(batch):
        seen.append(batch)
        return squares(batch)

    (band,) = sliding_window.probabilities(
        lambda a, b: values[a:b], values.shape, (8, 6, 9), predict, overlap=0.5, batch_size=1
    )
    np.testing.assert_array_equal(seen[0][0, 2:5, 1:5, :, 0], values)
    assert np.count_nonzero(seen[0]) == values.size
    np.testing.assert_allclose(band, squares(seen[0])[0, 2:5, 1:5], atol=1e-6)


@pytest.mark.parametrize(("depth", "shape"), [(10, (23, 6, 9)), (23, (9, 11, 4)), (6, (6, 5, 5))])
def test_slabs_in_the_original_grid_equal_resampling_at_once(depth, shape):
    whole = np.random.default_rng(0).random((depth, 7, 5, 2)).astype(np.float32)
    bands = [whole[:3], whole[3:3], whole[3:]]
    found = np.concatenate(list(in_original_grid(iter(bands), depth, shape, (7, 5))))
    want = np.stack(
        [
            Resampled(ArrayVolume(whole[..., c], (1.0, 1.0, 1.0)), tuple(
                n / m for n, m in zip((depth, 7, 5), shape, strict=True)
            )).read(0, shape[0])
            for c in range(2)
        ],
        axis=-1,
    )  # fmt: skip
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_labels_do_not_depend_on_the_devices_and_are_in_the_volumes_grid():
    values = np.random.default_rng(0).random((9, 20, 12)).astype(np.float32)
    volume = ArrayVolume(values, (2.0, 1.0, 1.0))

    def predict(params, images):
        return jax.numpy.concatenate([params - images, images], axis=-1)

    found = []
    for devices in (1, 4):
        mesh = sharding.make_mesh(
            {"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices]
        )
        settings = {"overlap": 0.5, "batch_size": 4}
        segmenter = Segmenter(predict, (4, 8, 8), (1.5, 2.0, 0.0), mesh, **settings)
        found.append(np.concatenate(list(segmenter.labels(1.0, volume))))
        assert found[-1].shape == values.shape and found[-1].dtype == np.uint8
    np.testing.assert_array_equal(*found)
    plain = Segmenter(predict, (4, 8, 8), (0.0, 0.0, 0.0), mesh, **settings)
    labels = np.concatenate(list(plain.labels(1.0, volume)))
    np.testing.assert_array_equal(labels, values > 0.5)
    settings["batch_size"] = 3
    with pytest.raises(ConfigError, match=r"inference\.batch_size=3 is not possible"):
        Segmenter(predict, (4, 8, 8), (0.0, 0.0, 0.0), mesh, **settings)


@pytest.mark.slow
@pytest.mark.parity
def test_sliding_window_agrees_with_monai_on_the_same_network(tmp_path):
    sizes = UNETRConfig(width=24, layers=12, heads=2, mlp_width=32, features=4)
    window = (16, 32, 16)
    model = VolumetricModel(VolumetricConfig("unetr", sizes, window, num_outputs=3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    values = rng.random((37, 40, 12)).astype(np.float32)  # one side is shorter than a window
    np.savez(
        tmp_path / "in.npz",
        volumes=values[None, None],
        sizes=np.array([*window, 3, 4, 24, 32, 2]),
        **to_monai(params["network"]),
    )
    script = Path(__file__).parents[1] / "helpers" / "unetr_reference.py"
    command = [sys.executable, script, "sliding", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=600)
    theirs = np.load(tmp_path / "out.npz")["logits"][0].transpose(1, 2, 3, 0)

    def predict(params, images):
        output, _ = model.apply(params, images, train=False)
        return jax.nn.softmax(output.logits[0])

    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    segmenter = Segmenter(predict, window, (0.0, 0.0, 0.0), mesh, overlap=0.5, batch_size=2)
    ours = np.concatenate(
        list(segmenter.probabilities(params, ArrayVolume(values, (1.0, 1.0, 1.0))))
    )
    assert np.std(theirs) > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_memory_is_that_of_a_band_whatever_the_depth():
    def peak(depth):
        tracemalloc.start()
        bands = sliding_window.probabilities(
            lambda start, stop: np.ones((stop - start, 32, 32), np.float32),
            (depth, 32, 32),
            (8, 16, 16),
            lambda batch: np.repeat(batch, 5, axis=-1),
            overlap=0.5,
            batch_size=2,
        )
        assert sum(len(band) for band in bands) == depth
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    whole = 512 * 32 * 32 * 5 * 4
    assert peak(512) == pytest.approx(peak(64), rel=0.05)
    assert peak(512) < whole / 10
