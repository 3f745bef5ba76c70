"""How stored values of DICOM become grey, against pydicom and against the formulas of PS3.3.

The files are real; of every combination of transforms, the whole path from bytes to pixels is
compared.
"""

import io
import itertools

import numpy as np
import pydicom
import pytest
from helpers.dicom_files import dicom_file, item, lookup_table
from pydicom import pixels

from input_pipeline.io import dicom, dicom_grey, grey_levels, images

RAMP = np.arange(2001, dtype=np.uint16).reshape(3, 667)


def decoded(data):
    """The pixels that are stored, and the notes."""
    picture, notes = images.decode(data)
    return np.asarray(picture).astype(int), notes


def shown(*args, **tags):
    return decoded(dicom_file(*args, **tags))


def windowed(values, center, width, function="LINEAR"):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, literally, pixel by pixel; 0 to 255."""
    out = []
    for x in np.asarray(values, float).ravel():
        if function == "SIGMOID":
            y = 1 / (1 + np.exp(-4 * (x - center) / width))
        elif function == "LINEAR_EXACT":
            if x <= center - width / 2:
                y = 0
            elif x > center + width / 2:
                y = 1
            else:
                y = (x - center) / width + 0.5
        elif x <= center - 0.5 - (width - 1) / 2:
            y = 0
        elif x > center - 0.5 + (width - 1) / 2:
            y = 1
        else:
            y = (x - (center - 0.5)) / (width - 1) + 0.5
        out.append(y * 255)
    return np.reshape(out, np.shape(values))


# --- the examples of the report -------------------------------------------------------------------


def test_a_negative_slope_turns_the_ramp_round():
    found, _ = shown(
        RAMP, RescaleSlope=-1, RescaleIntercept=2000, WindowCenter=1000, WindowWidth=2000
    )
    expected = windowed(2000 - RAMP.astype(int), 1000, 2000)
    np.testing.assert_allclose(found, expected, atol=0.51)
    assert found[0, 0] == 255 and found[-1, -1] == 0
    assert (np.diff(found.ravel()) <= 0).all()


def test_a_window_that_is_there_but_empty_is_no_window():
    found, notes = shown(RAMP, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(found, grey_levels.grey_to_8_bit(RAMP))
    assert found.min() == 0 and found.max() == 255
    assert dicom_grey.NO_VIEW_NOTE in notes


# --- the grid -------------------------------------------------------------------------------------

STORED = {  # name -> dtype, bits stored
    "u1": (np.uint8, 1),
    "u8": (np.uint8, 8),
    "u10": (np.uint16, 10),
    "u12": (np.uint16, 12),
    "u14": (np.uint16, 14),
    "u16": (np.uint16, 16),
    "u32": (np.uint32, 32),
    "s8": (np.int8, 8),
    "s12": (np.int16, 12),
    "s16": (np.int16, 16),
    "s32": (np.int32, 32),
}
RESCALES = [(1, 0), (-1, 0), (2.5, -1024), (-0.001, 3), (1, -1024), (1e-6, 0)]
FUNCTIONS = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]
PRESENTATIONS = [("MONOCHROME2", None), ("MONOCHROME1", None), ("MONOCHROME1", "INVERSE"),
                 ("MONOCHROME2", "IDENTITY")]  # fmt: skip


def whole_range(dtype, bits):
    """Values over the whole range of the stored bits, with its ends."""
    low = -(2 ** (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    return np.linspace(low, low + 2**bits - 1, 64).round().astype(dtype).reshape(4, 16)


QUICK = ("u8", "u12", "s16")


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in STORED]
)
def test_every_combination_of_rescale_window_and_presentation(kind):
    dtype, bits = STORED[kind]
    stored = whole_range(dtype, bits)
    compared = 0
    for (slope, intercept), function, (photometric, shape), narrow in itertools.product(
        RESCALES, FUNCTIONS, PRESENTATIONS, (1.0, 0.5, 0.05)
    ):
        modality = stored.astype(float) * slope + intercept
        center, width = float(np.mean(modality)), float(np.ptp(modality) * narrow)
        center, width = float(f"{center:.8g}"), float(f"{width:.8g}")
        if width < 1 and function == "LINEAR":
            continue
        expected = windowed(modality, center, width, function)
        if np.ptp(expected.round()) == 0:
            continue
        tags = {"VOILUTFunction": function, "WindowCenter": center, "WindowWidth": width}
        tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        tags |= {"PresentationLUTShape": shape} if shape else {}
        found, _ = shown(stored, bits_stored=bits, photometric=photometric, **tags)
        if photometric == "MONOCHROME1":
            expected = 255 - expected
        np.testing.assert_allclose(found, expected, atol=0.502, err_msg=str(tags))
        compared += 1
    assert compared > 80


def luts(first):
    return {
        "none": {},
        "modality LUT": {"ModalityLUTSequence": [lookup_table(np.arange(200)[::-1] * 300, first)]},
        "VOI LUT": {"VOILUTSequence": [lookup_table(np.arange(200) ** 2, first)]},
        "VOI LUT of 8 bits": {"VOILUTSequence": [lookup_table(range(256), first, 8)]},
    }


@pytest.mark.parametrize("name", luts(0))
@pytest.mark.parametrize("kind", ["u8", "u10", "u12", "u14", "u16", "s8", "s12", "s16"])
def test_pydicom_shows_the_same(kind, name):
    dtype, bits = STORED[kind]
    stored = whole_range(dtype, bits)
    first = int(max(stored.min(), -99))
    top = 2**16 if name == "modality LUT" else 2 ** (bits - 1)
    for function, width in itertools.product(FUNCTIONS, (1.0, top / 3, 2.0 * top)):
        tags = luts(first)[name] | {"VOILUTFunction": function, "WindowCenter": top / 2}
        data = dicom_file(stored, bits_stored=bits, WindowWidth=width, **tags)
        dataset = pydicom.dcmread(io.BytesIO(data))
        # wide integers, because pydicom's index into a table wraps
        modality = pixels.apply_modality_lut(stored.astype(np.int64), dataset)
        if name.startswith("VOI"):
            clipped = np.clip(modality, first, first + 255)
            seen = pixels.apply_voi_lut(clipped, dataset)
            black, white = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        else:
            seen = pixels.apply_voi_lut(modality, dataset)
            black, white = pixels.apply_windowing(np.array([-1e12, 1e12]), dataset)
        expected = (seen.astype(float) - black) / (white - black) * 255
        if np.ptp(expected.round()) > 2:
            np.testing.assert_allclose(decoded(data)[0], expected, atol=0.502, err_msg=str(tags))


def test_a_presentation_lut_is_pydicoms():
    table = lookup_table(np.arange(4096)[::-1] * 16)
    found, _ = shown(RAMP, WindowCenter=1000.5, WindowWidth=2001, PresentationLUTSequence=[table])
    dataset = pydicom.Dataset()
    dataset.PresentationLUTSequence = [table]
    expected = pixels.apply_presentation_lut(RAMP, dataset).astype(int) / 65535 * 255
    np.testing.assert_allclose(found, expected, atol=0.6)


# --- hints that cannot be used --------------------------------------------------------------------

WINDOW = {"WindowCenter": 1000, "WindowWidth": 2000}
UNUSABLE_WINDOWS = {
    "empty texts": {"raw": {"WindowCenter": "", "WindowWidth": ""}},
    "spaces": {"raw": {"WindowCenter": "  ", "WindowWidth": "  "}},
    "no numbers": {"raw": {"WindowCenter": "abc", "WindowWidth": "n/a"}},
    "decimal comma": {"raw": {"WindowCenter": "1000,0", "WindowWidth": "2000,0"}},
    "NaN": {"raw": {"WindowCenter": "NaN", "WindowWidth": "NaN"}},
    "infinite": {"raw": {"WindowCenter": "1000", "WindowWidth": "inf"}},
    "overflow": {"raw": {"WindowCenter": "1e400", "WindowWidth": "2000"}},
    "no center": {"WindowWidth": 2000},
    "no width": {"WindowCenter": 1000},
    "one empty": {"WindowCenter": None, "WindowWidth": 2000},
    "width 0": {"WindowCenter": 1000, "WindowWidth": 0},
    "negative width": {"WindowCenter": 1000, "WindowWidth": -2000},
    "linear width below 1": {"WindowCenter": 1000, "WindowWidth": 0.5},
    "exact width 0": {"WindowCenter": 1000, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid width 0": {"WindowCenter": 1000, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
    "far away": {"WindowCenter": 50000, "WindowWidth": 100},
    "far too wide": {"WindowCenter": 0, "WindowWidth": 1e9},
    "empty LUT sequence": {"VOILUTSequence": []},
    "LUT without data": {"VOILUTSequence": [item(LUTDescriptor=[256, 0, 16])]},
    "LUT without descriptor": {"VOILUTSequence": [item(LUTExplanation="none")]},
    "LUT that is too short": {
        "VOILUTSequence": [item(LUTDescriptor=[4096, 0, 16], LUTData=bytes(2048))]
    },
    "LUT of one value": {"VOILUTSequence": [lookup_table([7] * 256)]},
}


@pytest.mark.parametrize("case", UNUSABLE_WINDOWS)
def test_a_view_that_cannot_be_used_never_costs_the_pixels(case):
    found, notes = shown(RAMP, **UNUSABLE_WINDOWS[case])
    np.testing.assert_array_equal(found, grey_levels.grey_to_8_bit(RAMP))
    assert dicom_grey.NO_VIEW_NOTE in notes


@pytest.mark.parametrize("case", UNUSABLE_WINDOWS)
def test_8_bits_without_a_usable_view_stay_as_they_are(case):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if case in ("far too wide", "width 0", "NaN", "no width", "LUT without data"):
        np.testing.assert_array_equal(shown(ramp, **UNUSABLE_WINDOWS[case])[0], ramp)


UNUSABLE_RESCALES = {
    "empty": ({"RescaleSlope": None, "RescaleIntercept": None}, 0),
    "slope 0": ({"RescaleSlope": 0, "RescaleIntercept": -500}, -500),
    "no slope": ({"RescaleIntercept": -500}, -500),
    "no intercept": ({"RescaleSlope": 1}, 0),
    "empty slope": ({"RescaleSlope": None, "RescaleIntercept": -500}, -500),
    "no numbers": ({"raw": {"RescaleSlope": "x", "RescaleIntercept": "y"}}, 0),
    "NaN": ({"raw": {"RescaleSlope": "NaN", "RescaleIntercept": "-500"}}, -500),
    "overflow": ({"raw": {"RescaleSlope": "1e306", "RescaleIntercept": "0"}}, 0),
    "empty sequence": ({"ModalityLUTSequence": []}, 0),
    "LUT without data": ({"ModalityLUTSequence": [item(LUTDescriptor=[256, 0, 16])]}, 0),
    "LUT of one value": ({"ModalityLUTSequence": [lookup_table([9] * 256)]}, 0),
}


@pytest.mark.parametrize("case", UNUSABLE_RESCALES)
def test_a_rescale_that_cannot_be_used_leaves_the_values(case):
    tags, intercept = UNUSABLE_RESCALES[case]
    found, _ = shown(RAMP, WindowCenter=700 + intercept, WindowWidth=1000, **tags)
    np.testing.assert_allclose(found, windowed(RAMP, 700, 1000), atol=0.51)


def test_what_was_left_out_is_noted():
    assert dicom_grey.UNUSABLE_VIEW_NOTE in shown(RAMP, WindowCenter=1, WindowWidth=0)[1]
    assert dicom_grey.UNUSABLE_MODALITY_NOTE in shown(RAMP, RescaleSlope=0)[1]
    notes = shown(RAMP, RescaleSlope=1, RescaleIntercept=0, **WINDOW)[1]
    assert notes == ("DICOM stored as PNG", dicom.IDENTITY_NOTE)


def test_a_narrow_window_may_clip():
    found, _ = shown(RAMP, WindowCenter=1000, WindowWidth=1)
    np.testing.assert_array_equal(found, np.where(RAMP > 999.5, 255, 0))


@pytest.mark.parametrize(
    ("centers", "widths", "used"),
    [
        ([1000, 5], [2000, 9], (1000, 2000)),
        ([1000, 5], 2000, (1000, 2000)),
        (1000, [2000, 9], (1000, 2000)),
        ([5, 1000], [0, 2000], (1000, 2000)),
        ([40000, 1000], [10, 2000], (1000, 2000)),
        ([None, 1000], [2000, 800], (1000, 800)),
    ],
)
def test_of_several_windows_the_first_usable_is_taken(centers, widths, used):
    as_text = {
        key: "\\".join("" if v is None else str(v) for v in np.atleast_1d(value))
        for key, value in {"WindowCenter": centers, "WindowWidth": widths}.items()
    }
    found, _ = shown(RAMP, raw=as_text)
    np.testing.assert_allclose(found, windowed(RAMP, *used), atol=0.51)


@pytest.mark.parametrize("function", ["", "sigmoid", " SIGMOID ", "FOO"])
def test_the_function_is_read_leniently(function):
    found, notes = shown(RAMP, raw={"VOILUTFunction": function}, **WINDOW)
    expected = "SIGMOID" if "SIGMOID" in function.upper() else "LINEAR"
    np.testing.assert_allclose(found, windowed(RAMP, 1000, 2000, expected), atol=0.51)
    assert (dicom_grey.UNUSABLE_VIEW_NOTE in notes) == (function == "FOO")


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
