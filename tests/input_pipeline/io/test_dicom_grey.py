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
from helpers.dicom_grey import RAMP, WINDOW, decoded, shown, windowed
from pydicom import pixels

from input_pipeline.io import dicom, dicom_grey, grey_levels

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


# --- any mixture of them --------------------------------------------------------------------------

NUMBERS = ["", " ", "0", "1", "-1", "-2.5", "1e-3", "1000", "2000", "-1024", "40", "400", "65535",
           "1e9", "-1e300", "1e400", "NaN", "inf", "abc", "1,5", "1\\2", "\\", "0x10"]  # fmt: skip
TAGS = {
    "RescaleSlope": NUMBERS,
    "RescaleIntercept": NUMBERS,
    "WindowCenter": NUMBERS,
    "WindowWidth": NUMBERS,
    "VOILUTFunction": ["", "LINEAR", "LINEAR_EXACT", "SIGMOID", "linear", "OTHER"],
    "PresentationLUTShape": ["", "IDENTITY", "INVERSE", "OTHER"],
}


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_mixture_of_hints_costs_the_pixels(count):
    """Grey rises or falls with the stored values, and never is one value."""
    rng = np.random.default_rng(count)
    for number in range(count):
        dtype, bits = list(STORED.values())[number % len(STORED)]
        stored = np.sort(whole_range(dtype, bits).ravel()).reshape(4, 16)
        raw = {tag: str(rng.choice(values)) for tag, values in TAGS.items() if rng.random() < 0.7}
        photometric = str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
        found, _ = shown(stored, bits_stored=bits, photometric=photometric, raw=raw)
        assert found.min() < found.max(), raw
        steps = np.diff(found.ravel())
        assert (steps >= 0).all() or (steps <= 0).all(), raw
