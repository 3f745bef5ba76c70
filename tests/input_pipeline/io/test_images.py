"""Images of many formats and depths: what is stored, what is noted, what is refused."""

import io
import struct

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import dicom_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.io import dicom, images

RAMP = np.arange(16 * 12, dtype=np.uint16).reshape(12, 16)


def encoded(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def stored(data, **options):
    """What `normalise` makes of it, decoded: (format, pixels, notes)."""
    made, notes = images.normalise(data, **options)
    image = Image.open(io.BytesIO(made))
    return image.format, np.asarray(image), notes


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000"])
def test_other_formats_become_png_without_loss(format_):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12), np.uint8))
    data = encoded(grey, format_, **({"lossless": True} if format_ == "WEBP" else {}))
    kind, pixels, notes = stored(data)
    assert kind == "PNG" and notes == (f"{format_} stored as PNG",)
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    np.testing.assert_array_equal(pixels, np.asarray(grey))


@pytest.mark.parametrize("format_", ["TIFF", "GIF", "WEBP"])
def test_of_several_frames_the_middle_one_is_taken(format_):
    frames = [Image.new("L", (9, 9), grey) for grey in (0, 90, 180, 250)]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    _, pixels, notes = stored(data)
    assert np.all(pixels == 180)
    assert notes[-1] == "middle of several frames"


def test_smaller_levels_of_a_pyramid_are_no_frames():
    levels = [Image.new("L", (8 >> n, 8 >> n), 50 * (n + 1)) for n in range(3)]
    data = encoded(levels[0], "TIFF", save_all=True, append_images=levels[1:])
    _, pixels, notes = stored(data)
    assert pixels.shape == (8, 8) and np.all(pixels == 50)
    assert notes == ("TIFF stored as PNG",)


# --- depth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_12_bit_images_in_16_bit_files_keep_their_contrast(format_):
    kind, pixels, notes = stored(encoded(Image.fromarray(RAMP * 20), format_))
    assert kind == "PNG" and pixels.dtype == np.uint8
    assert pixels.min() == 0 and pixels.max() == 255
    assert np.all(np.diff(pixels.ravel().astype(int)) >= 0), "order of grey values is lost"
    assert abs(int(pixels[6, 0]) - 128) <= 2
    assert notes[-1] == "16-bit grey scaled to 8 bit"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_in_which_small_values_are_bright_are_turned_round(dtype):
    data = bytearray(encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry) == (262,):  # photometric interpretation
            struct.pack_into("<H", data, entry + 8, 0)  # white is zero
    _, pixels, _ = stored(bytes(data))
    assert (np.diff(pixels.ravel().astype(int)) <= 0).all() and pixels[0, 0] == 255


def test_one_bright_marker_does_not_darken_the_rest():
    deep = np.tile(RAMP, (10, 10))
    deep[0, 0] = 65535
    pixels = images.grey_to_8_bit(deep)
    assert np.median(pixels) > 120


@given(st.integers(-(2**31), 2**31 - 1), st.integers(1, 8), st.integers(1, 8))
def test_flat_images_become_one_grey_value(value, height, width):
    pixels = images.grey_to_8_bit(np.full((height, width), value, np.int64))
    assert pixels.shape == (height, width) and len(np.unique(pixels)) == 1


def test_16_bit_colour_png_is_kept():
    # TensorFlow and Pillow read its high bytes, which are the 8-bit image
    png = encoded(Image.fromarray(np.zeros((2, 2, 3), np.uint8)), "PNG")
    assert images.normalise(png) == (png, ())


# --- bounded size -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [((90, 60), (45, 30)), ((60, 91), (30, 46))])
def test_short_side_is_bounded_and_the_shape_kept(size, expected):
    data = encoded(Image.linear_gradient("L").resize(size), "PNG")
    kind, pixels, notes = stored(data, short_side=30)
    assert kind == "JPEG" and pixels.shape == expected[::-1]
    assert notes == ("short side bounded to 30",)
    exact = np.asarray(Image.linear_gradient("L").resize(size).resize(expected, 1), int)
    assert np.abs(pixels - exact).mean() < 2


def test_small_images_are_kept_under_a_bound():
    data = encoded(Image.new("RGB", (30, 40)), "JPEG")
    assert images.normalise(data, short_side=30) == (data, ())


# --- DICOM --------------------------------------------------------------------------------------


def test_window_maps_its_ends_to_black_and_white_after_rescaling():
    pixels = np.array([[0, 1000, 1024, 1064, 1104, 3000]], np.uint16)
    window = {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 1, "RescaleIntercept": -1024}
    kind, grey, _ = stored(dicom_file(pixels, bits_stored=12, **window))
    assert kind == "PNG"
    assert list(grey[0, [0, 1, 4, 5]]) == [0, 0, 255, 255]  # HU -1024, -24, 80, 1976
    assert grey[0, 2] <= 3 and abs(int(grey[0, 3]) - 128) <= 3  # HU 0 and 40


def test_a_window_that_no_pixel_fills_is_not_stretched():
    pixels = np.array([[100, 150]], np.uint16)
    _, grey, _ = stored(dicom_file(pixels, bits_stored=12, WindowCenter=128, WindowWidth=256))
    assert [abs(int(g) - e) <= 1 for g, e in zip(grey[0], (100, 150), strict=True)] == [True] * 2


def test_of_several_windows_the_first_is_taken():
    pixels = np.array([[0, 100, 200]], np.uint16)
    _, grey, _ = stored(dicom_file(pixels, WindowCenter=[100, 5000], WindowWidth=[200, 9000]))
    assert grey[0, 0] == 0 and abs(int(grey[0, 1]) - 128) <= 2 and grey[0, 2] >= 254


def test_voi_lut_comes_before_windows():
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4, 0, 16]
    lut.LUTData = (np.array([10, 20, 200, 250], np.uint16) * 257).tobytes()
    lut["LUTData"].VR = "OW"
    tags = {"VOILUTSequence": [lut], "WindowCenter": 2, "WindowWidth": 4}
    _, grey, _ = stored(dicom_file(np.array([[0, 1, 2, 3]], np.uint8), **tags))
    assert list(grey[0]) == [10, 20, 200, 250]


def test_monochrome1_is_inverted():
    ramp = np.linspace(0, 255, 20, dtype=np.uint8).reshape(4, 5)
    _, plain, _ = stored(dicom_file(ramp))
    _, inverted, _ = stored(dicom_file(ramp, photometric="MONOCHROME1"))
    np.testing.assert_array_equal(plain, ramp)
    np.testing.assert_array_equal(inverted, 255 - ramp)


def test_deep_dicom_without_window_is_scaled_like_any_16_bit_image():
    _, grey, notes = stored(dicom_file(RAMP * 20, bits_stored=12))
    np.testing.assert_array_equal(grey, images.grey_to_8_bit(RAMP * 20))
    assert "DICOM without window scaled to 8 bit" in notes


def test_of_a_dicom_film_the_middle_frame_is_taken():
    film = np.stack([np.full((4, 5), grey, np.uint8) for grey in (0, 90, 180)])
    _, grey, notes = stored(dicom_file(film))
    assert np.all(grey == 90) and "middle of several frames" in notes


def test_colour_dicom():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    _, found, _ = stored(dicom_file(pixels, photometric="RGB"))
    np.testing.assert_array_equal(found, pixels)


def test_colour_of_luminance_and_chrominance_becomes_rgb():
    ybr = np.array([[[76, 85, 255], [150, 44, 21], [29, 255, 107]]], np.uint8)  # red, green, blue
    _, found, _ = stored(dicom_file(ybr, photometric="YBR_FULL"))
    assert np.abs(found[0].astype(int) - 255 * np.eye(3, dtype=int)).max() <= 3


def test_palette_colour():
    tables = {}
    for name, values in (("Red", (0, 255)), ("Green", (10, 20)), ("Blue", (0, 0))):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        data = (np.array(values, np.uint16) * 257).tobytes()
        tables[f"{name}PaletteColorLookupTableData"] = data
    index = np.array([[0, 1]], np.uint8)
    _, found, _ = stored(dicom_file(index, photometric="PALETTE COLOR", **tables))
    assert found[0].tolist() == [[0, 10, 0], [255, 20, 0]]


def test_8_bits_with_an_idle_rescale_stay_as_they_are():
    ramp = np.linspace(30, 90, 20, dtype=np.uint8).reshape(4, 5)
    _, grey, _ = stored(dicom_file(ramp, RescaleSlope=1, RescaleIntercept=0))
    np.testing.assert_array_equal(grey, ramp)


def test_compressed_dicom_is_decoded():
    ramp = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(ramp)))
    dataset.compress("1.2.840.10008.1.2.5")  # RLE lossless
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    _, grey, _ = stored(buffer.getvalue())
    np.testing.assert_array_equal(grey, ramp)


def test_nothing_of_the_patient_is_stored_and_identity_is_counted():
    data = dicom_file(RAMP, BurnedInAnnotation="YES")
    assert b"secret-4711" in data
    made, notes = images.normalise(data)
    assert b"secret" not in made and b"Nobody" not in made
    assert not Image.open(io.BytesIO(made)).info
    assert {dicom.IDENTITY_NOTE, dicom.BURNED_IN_NOTE} <= set(notes)
    anonymous = dicom_file(RAMP, PatientName="", PatientID="")
    assert dicom.IDENTITY_NOTE not in images.normalise(anonymous)[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(132, 700))
def test_truncated_dicom_is_refused(length):
    with pytest.raises(ValueError, match="DICOM file cannot be decoded"):
        images.normalise(dicom_file(RAMP)[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_reason(data):
    with pytest.raises(ValueError, match=r"image"):
        images.normalise(data)
