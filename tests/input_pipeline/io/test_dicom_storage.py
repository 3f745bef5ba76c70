"""How DICOM stores values: functional groups, padding, bits, floats and colour."""

import io

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import dicom_file, item
from helpers.dicom_grey import RAMP, WINDOW, decoded, shown, windowed

from input_pipeline.io import dicom, dicom_grey, grey_levels, images

# --- enhanced multi-frame -------------------------------------------------------------------------

FRAMES = np.stack([RAMP // 4, RAMP // 2, RAMP])  # the middle one is taken


def group(slope=None, center=None, width=None, **voi):
    made = item()
    if slope is not None:
        values = item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="HU")
        made.PixelValueTransformationSequence = [values]
    if center is not None:
        made.FrameVOILUTSequence = [item(WindowCenter=center, WindowWidth=width, **voi)]
    return made


def frames(shared=None, per_frame=None, **tags):
    tags |= {"SharedFunctionalGroupsSequence": [shared]} if shared is not None else {}
    tags |= {"PerFrameFunctionalGroupsSequence": per_frame} if per_frame is not None else {}
    return shown(FRAMES, **tags)[0]


def test_transforms_stand_in_functional_groups():
    expected = windowed(FRAMES[1] * 2.0, 900, 1200)
    both = [group(1, 5, 5), group(2, 900, 1200), group(3, 7, 7)]
    for found in (
        frames(shared=group(2, 900, 1200)),
        frames(per_frame=both),
        frames(shared=group(9, 9, 9), per_frame=both),
        frames(shared=group(2), per_frame=[group(center=900, width=1200)] * 3),
        frames(shared=group(2, 900, 1200), WindowCenter=1, WindowWidth=2, RescaleSlope=7),
        frames(shared=group(2), WindowCenter=900, WindowWidth=1200),
        frames(shared=group(center=900, width=1200), RescaleSlope=2, RescaleIntercept=0),
        frames(shared=group(2, 900, 1200), per_frame=[group()] * 3),
        frames(shared=group(2, 900, 1200), per_frame=[]),
        frames(shared=group(2, 900, 1200), per_frame=[group(5, 5, 5)]),  # of the first frame only
        frames(per_frame=[both[0], group(2), both[2]], shared=group(0, 900, 1200)),
    ):
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_the_function_of_a_frame_is_used():
    found = frames(shared=group(2, 900, 1200, VOILUTFunction="SIGMOID"))
    np.testing.assert_allclose(found, windowed(FRAMES[1] * 2.0, 900, 1200, "SIGMOID"), atol=0.51)


def test_empty_groups_fall_back_to_the_top_level():
    found = frames(shared=group(None, None), per_frame=[item()] * 3, **WINDOW)
    np.testing.assert_allclose(found, windowed(FRAMES[1], 1000, 2000), atol=0.51)


# --- padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("vr", "value"), [("SS", -2000), ("US", 63536)])
def test_padding_is_black_and_does_not_count(photometric, vr, value):
    stored = (np.arange(64).reshape(8, 8) + 1000).astype(np.int16)
    inner = stored.copy()
    stored[0] = -2000
    tags = {"PixelPaddingValue": pydicom.DataElement("PixelPaddingValue", vr, value)}
    found, notes = shown(stored, photometric=photometric, **tags)
    plain = grey_levels.grey_to_8_bit(inner[1:]).astype(int)
    expected = 255 - plain if photometric == "MONOCHROME1" else plain
    assert not found[0].any()
    np.testing.assert_array_equal(found[1:], expected)
    assert dicom_grey.PADDING_NOTE in notes


def test_a_range_of_padding_and_bits_that_are_not_stored():
    stored = (np.arange(64).reshape(8, 8) + 1000).astype(np.uint16)
    stored[0, :4], stored[0, 4:] = 4000, 4090
    found, _ = shown(stored, bits_stored=12, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000)
    assert not found[0].any() and found[1:].max() == 255
    stored[0] = 63536  # -2000, beyond the 12 bits
    found, _ = shown(stored, bits_stored=12, PixelPaddingValue=63536)
    assert not found[0].any() and found[1:].max() == 255


def test_an_image_of_padding_alone_keeps_its_pixels():
    found, _ = shown(np.full((4, 4), 90, np.uint8), PixelPaddingValue=90)
    assert (found == 90).all()


# --- how values are stored ------------------------------------------------------------------------


def test_bits_beyond_those_stored_are_not_read():
    overlaid = RAMP | 0x8000  # an overlay in the high bit
    found, _ = shown(overlaid, bits_stored=12, **WINDOW)
    np.testing.assert_allclose(found, windowed(RAMP, 1000, 2000), atol=0.51)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_values_in_the_high_bits_are_shifted(dtype):
    values = RAMP.astype(dtype) - (1000 if dtype == np.int16 else 0)
    shifted = (values << 4) | 5  # something else in the low bits
    center = 0 if dtype == np.int16 else 1000
    found, _ = shown(shifted, bits_stored=12, HighBit=15, WindowCenter=center, WindowWidth=2000)
    np.testing.assert_allclose(found, windowed(values, center, 2000), atol=0.51)


def test_a_high_bit_that_is_wrong_costs_nothing():
    found, _ = shown(RAMP, bits_stored=12, HighBit=15, **WINDOW)
    np.testing.assert_allclose(found, windowed(RAMP, 1000, 2000), atol=0.51)


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_few_bits_span_black_to_white(bits):
    values = np.arange(2**bits, dtype=np.uint8)[None]
    found, _ = shown(values, bits_stored=bits)
    assert found[0].tolist() == np.round(np.linspace(0, 255, 2**bits)).astype(int).tolist()


def test_packed_bits_are_black_and_white():
    packed = np.packbits(np.eye(8, dtype=np.uint8), bitorder="little")
    data = dicom_file(packed[None], Rows=8, Columns=8, BitsAllocated=1, BitsStored=1, HighBit=0)
    np.testing.assert_array_equal(decoded(data)[0], np.eye(8) * 255)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"),
                                                ("DoubleFloatPixelData", "f8")])  # fmt: skip
def test_float_pixels(keyword, dtype):
    values = np.linspace(-1, 3, 64).reshape(8, 8).astype(dtype)
    values[0, :3] = np.nan, np.inf, -np.inf
    bits = values.itemsize * 8
    window = {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "LINEAR_EXACT"}
    tags = {keyword: values.tobytes(), "BitsAllocated": bits, "BitsStored": bits}
    data = dicom_file(np.zeros((8, 8), np.uint16), without=["PixelData"], **tags)
    found, _ = decoded(data)
    assert found[0, :3].tolist() == [0, 255, 0] and found[0, 3] < 10 and found[-1, -1] == 255
    found, _ = decoded(
        dicom_file(np.zeros((8, 8), np.uint16), without=["PixelData"], **tags, **window)
    )
    np.testing.assert_allclose(found[1:], windowed(values[1:], 1, 2, "LINEAR_EXACT"), atol=0.51)


LACKING = {
    "BitsStored": {"without": ["BitsStored"]},
    "HighBit": {"without": ["HighBit"]},
    "PixelRepresentation": {"without": ["PixelRepresentation"]},
    "SamplesPerPixel": {"without": ["SamplesPerPixel"]},
    "PhotometricInterpretation": {"without": ["PhotometricInterpretation"]},
    "a strange photometric": {"photometric": "FOO"},
    "a small photometric": {"photometric": "monochrome2"},
    "0 bits stored": {"BitsStored": 0},
    "too many bits stored": {"BitsStored": 99},
    "no frames": {"raw": {"NumberOfFrames": ""}},
    "frames that are no number": {"raw": {"NumberOfFrames": "x"}},
}


@pytest.mark.parametrize("case", LACKING)
def test_what_the_file_lacks_is_assumed(case):
    found, _ = shown(RAMP, **WINDOW, **LACKING[case])
    np.testing.assert_allclose(found, windowed(RAMP, 1000, 2000), atol=0.51)


# --- colour ---------------------------------------------------------------------------------------

COLOURS = np.random.default_rng(0).integers(16, 236, (4, 6, 3), np.uint8)


def test_planes_and_pixels_of_colour():
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    data = dicom_file(COLOURS, photometric="RGB", PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(decoded(data)[0], COLOURS)
    without = dicom_file(COLOURS, photometric="RGB", without=["PlanarConfiguration"])
    np.testing.assert_array_equal(decoded(without)[0], COLOURS)


def test_colour_of_more_than_8_bits():
    deep = COLOURS.astype(np.uint16) * 16
    found, _ = shown(deep, photometric="RGB", bits_stored=12)
    np.testing.assert_allclose(found, deep / 4095 * 255, atol=0.51)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422"])
def test_luminance_and_chrominance_become_rgb(photometric):
    partial = photometric == "YBR_PARTIAL_422"
    red, green, blue = ((81, 90, 240), (145, 54, 34), (41, 240, 110)) if partial else (
        (76, 85, 255), (150, 44, 21), (29, 255, 107))  # fmt: skip
    ybr = np.array([[red, green, blue, red]], np.uint8)
    found, _ = shown(ybr, photometric=photometric)
    assert np.abs(found[0, :3] - 255 * np.eye(3, dtype=int)).max() <= 3


def test_halved_chrominance():
    # two pixels share their chrominance: Y Y Cb Cr
    stored = np.array([76, 76, 85, 255, 150, 150, 44, 21], np.uint8)
    data = dicom_file(
        np.zeros((1, 4, 3), np.uint8), photometric="YBR_FULL_422", PixelData=stored.tobytes()
    )
    found, _ = decoded(data)
    assert np.abs(found[0, 0] - [255, 0, 0]).max() <= 3
    assert np.abs(found[0, 3] - [0, 255, 0]).max() <= 3


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "FOO"])
def test_colours_that_nobody_knows_are_refused(photometric):
    with pytest.raises(ValueError, match=f"colour.*{photometric}|{photometric}.*colour"):
        shown(COLOURS, photometric=photometric)


def test_a_window_does_not_touch_colour():
    found, _ = shown(COLOURS, photometric="RGB", WindowCenter=5, WindowWidth=2, RescaleSlope=-1)
    np.testing.assert_array_equal(found, COLOURS)


def test_a_small_file_that_asks_for_gigabytes_is_refused():
    data = dicom_file(np.zeros((4, 4), np.uint8), Rows=60000, Columns=60000)
    with pytest.raises(ValueError, match="60000 x 60000 pixels, more than"):
        images.decode(data)


def test_a_deflated_file_is_read_and_one_that_unpacks_to_gigabytes_refused(monkeypatch):
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(RAMP.astype(np.uint8))))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(decoded(buffer.getvalue())[0], RAMP.astype(np.uint8))
    monkeypatch.setattr(dicom, "_MOST_UNPACKED", 1000)  # instead of a bomb
    with pytest.raises(ValueError, match="unpacks to more than 1,000 bytes"):
        images.decode(buffer.getvalue())
