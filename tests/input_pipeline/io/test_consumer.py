"""What conversion accepts, training decodes to the same pixels, whatever happened to the file."""

import io
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import tensorflow as tf
from helpers import damaged_images
from PIL import Image

from input_pipeline import transforms
from input_pipeline.io import images

VALID = damaged_images.valid()
REENCODED = {"JPEG CMYK", "JPEG turned", "PNG turned", "PNG 16 bits", "PNG 16 bits colour"}


@dataclass
class Tally:
    """Of files: tried, accepted, kept byte for byte, decoded equally."""

    tried: int = 0
    accepted: int = 0
    kept: int = 0
    equal: int = 0
    unequal: list[str] = field(default_factory=list)

    def add(self, name, data):
        """Stores a file as conversion does, or refuses it with a reason; nothing else."""
        self.tried += 1
        try:
            stored, _ = images.normalise(data)
        except ValueError as error:
            assert str(error).strip(), name
            return
        self.accepted += 1
        self.kept += stored == data
        pillow = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
        verified = np.asarray(images.decode(data)[0].convert("RGB"))
        if name.startswith("TIFF fax"):  # libtiff leaves lost rows as they are in memory
            verified = pillow
        if np.array_equal(pillow, verified) and np.array_equal(in_training(stored), verified):
            self.equal += 1
        else:
            self.unequal.append(name)


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def _decode_in_graph(encoded):
    return transforms.decode_image(encoded)


def in_training(stored):
    """The pixels that a step of training reads, from its graph."""
    return _decode_in_graph(stored).numpy()


def tally(files):
    counts = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and pydicom about damaged headers
        for name, data in files:
            counts.add(name, data)
    print(
        f"{counts.tried} files tried, {counts.accepted} accepted ({counts.kept} byte for byte), "
        f"{counts.equal} decoded equally by training"
    )
    return counts


@pytest.mark.parametrize("name", VALID)
def test_valid_files_are_accepted_and_usual_ones_kept(name):
    counts = tally([(name, VALID[name])])
    assert (counts.accepted, counts.equal) == (1, 1)
    assert counts.kept == (name.startswith(("JPEG", "MPO", "PNG", "APNG")) and
                           name not in REENCODED | {"JPEG 2000"})  # fmt: skip


@pytest.mark.parametrize("count", [1000, pytest.param(6000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_equally(count):
    counts = tally(damaged_images.damaged(count))
    assert not counts.unequal
    assert count / 10 < counts.accepted < count * 2 / 3


LOSSES = ("bit", "cut_off", "zeros", "missing")


def test_damaged_pngs_are_refused_or_have_all_of_their_pixels():
    whole = {name: np.asarray(images.decode(data)[0]) for name, data in VALID.items()}
    accepted = 0
    for name, data in damaged_images.damaged(27 * len(VALID), seed=1):
        kind, damage = name.split(", ")
        if not kind.startswith("PNG") or damage.split()[0] not in LOSSES:
            continue
        try:
            found = np.asarray(images.normalise(data) and images.decode(data)[0])
        except ValueError:
            continue
        np.testing.assert_array_equal(found, whole[kind], err_msg=name)
        accepted += 1
    assert accepted


@pytest.mark.parametrize("name", damaged_images.hostile())
def test_hostile_files_are_refused_before_they_cost_anything(name):
    with pytest.raises(ValueError, match=r"image|DICOM"):
        images.normalise(damaged_images.hostile()[name])


def test_turned_pictures_are_stored_upright():
    plain = np.asarray(Image.open(io.BytesIO(VALID["JPEG"])))
    for orientation, upright in {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.swapaxes(0, 1),
        6: np.rot90(plain, -1),
        7: np.rot90(plain, 2).swapaxes(0, 1),
        8: np.rot90(plain),
    }.items():
        exif = Image.Exif()
        exif[274] = orientation
        data = damaged_images.encoded(damaged_images.picture(), "JPEG", exif=exif)
        stored, notes = images.normalise(data)
        np.testing.assert_array_equal(in_training(stored), upright)
        assert (stored == data) == (orientation == 1) == (not notes)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_colour_of_16_bit_pngs_is_scaled_to_the_bits_it_uses(bits):
    values = np.linspace(0, 2**bits - 1, 8 * 9 * 3).round().reshape(8, 9, 3)
    rows = values.astype(">u2").reshape(8, -1).view(np.uint8)
    stored, notes = images.normalise(damaged_images.png(rows, 2, 16))
    assert np.abs(in_training(stored) - values / (2**bits - 1) * 255).max() <= 1
    assert bool(notes) == (bits < 16)


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_grey_values_of_16_bit_pngs_with_colour_or_alpha_are_scaled_as_grey(colour):
    grey = np.arange(63).reshape(7, 9) * 40
    full = np.full_like(grey, 65535)
    planes = {2: [grey] * 3, 4: [grey, full], 6: [grey, grey, grey, full]}[colour]
    rows = np.stack(planes, -1).astype(">u2").reshape(7, -1).view(np.uint8)
    stored, notes = images.normalise(damaged_images.png(rows, colour, 16))
    assert in_training(stored).min() == 0 and in_training(stored).max() == 255
    assert notes == ("16-bit grey scaled to 8 bit",)
