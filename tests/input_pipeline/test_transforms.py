"""Preprocessing against torchvision (in its own process) and against Pillow's bicubic filter."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from input_pipeline import resample, transforms

REFERENCE = Path(__file__).parents[1] / "helpers" / "torch_reference.py"


def _encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=92)
    return buffer.getvalue()


def _crop(data: bytes, size: int, seed: tf.Tensor, *area: tuple[float, float]) -> np.ndarray:
    return transforms.random_resized_crops(tf.constant([data]), size, seed[None], *area)[0].numpy()


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Two real photographs in several shapes, colour and greyscale, JPEG and PNG."""
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return {
        "landscape": _encoded(china),
        "portrait": _encoded(flower.crop((100, 0, 350, 400))),
        "wide": _encoded(china.crop((0, 100, 600, 230))),
        "square_grey": _encoded(flower.crop((0, 0, 300, 300)).convert("L")),
        "odd": _encoded(china.resize((333, 217))),
        "png": _encoded(flower.resize((301, 200)), "PNG"),
        "smaller_than_target": _encoded(flower.resize((90, 70))),
    }


@pytest.mark.slow
def test_evaluation_preprocessing_equals_torchvision(photographs, tmp_path):
    size = 128
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in photographs.items()}
    np.savez(tmp_path / "in.npz", size=size, **arrays)
    command = [sys.executable, REFERENCE, "resize_crop", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, timeout=300)
    expected = np.load(tmp_path / "out.npz")
    for name, data in photographs.items():
        ours = transforms.resize_and_center_crops(tf.constant([data]), size)[0].numpy()
        np.testing.assert_array_equal(ours, expected[name], err_msg=name)


@pytest.mark.parametrize("size", [224, 48])
def test_a_crop_has_pillows_bits(photographs, size):
    for index, data in enumerate(photographs.values()):
        seed = tf.constant([7, index], tf.int64)
        ours = _crop(data, size, seed, (0.3, 1.0))
        image = Image.open(io.BytesIO(data)).convert("RGB")
        uniform = tf.random.stateless_uniform((4, 10), seed, dtype=tf.float64).numpy()
        top, left, height, width = resample.random_box(
            image.height, image.width, uniform, (0.3, 1.0)
        )
        box = (left, top, left + width, top + height)
        pillow = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(ours, np.asarray(pillow))


def test_a_crop_is_a_function_of_its_seed(photographs):
    def crop(*seed):
        seed = tf.constant(seed, tf.int64)
        return _crop(photographs["square_grey"], 48, seed)

    assert np.array_equal(crop(1, 2), crop(1, 2))
    assert not np.array_equal(crop(1, 2), crop(1, 3))
    assert not np.array_equal(crop(1, 2), crop(2, 2))


def test_many_crops_are_those_of_single_images(photographs):
    encoded = list(photographs.values())
    seeds = tf.constant([[5, row] for row in range(len(encoded))], tf.int64)

    @tf.function
    def crops():
        return transforms.random_resized_crops(tf.constant(encoded), 48, seeds)

    one_by_one = [_crop(*row) for row in zip(encoded, [48] * len(encoded), seeds, strict=True)]
    np.testing.assert_array_equal(crops(), one_by_one)


def test_crops_cover_the_stated_share_of_the_area():
    # a horizontal and a vertical ramp: the corners of the crop can be read off its pixels
    height, width = 240, 200
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)
    data = _encoded(Image.fromarray(ramp), "PNG")
    shares = []
    for index in range(60):
        seed = tf.constant([3, index], tf.int64)
        crop = _crop(data, 64, seed).astype(float)
        side = [np.ptp(crop[..., axis]) * 64 / 63 for axis in (0, 1)]
        shares.append(side[0] * side[1] / (height * width))
    assert 0.85 < min(shares) < 0.93
    assert 0.96 < max(shares) < 1.03


def test_an_image_too_wide_for_any_proposal_is_cut_centrally():
    wide = np.zeros((50, 500, 3), np.uint8)
    wide[:, 240:260] = 255
    crop = _crop(_encoded(Image.fromarray(wide), "PNG"), 32, tf.constant([0, 0], tf.int64))
    assert crop[:, 14:18].min() > 200
    assert crop[:, :6].max() < 20
