"""Mask files of every kind -> the label values that were drawn, or a refusal with the remedy."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from input_pipeline.conversion.label_classes import SEVERAL_VALUES, Classes
from input_pipeline.io.exif import upright
from input_pipeline.io.label_pictures import read_label_picture, rounded_labels

ONE, THREE = Classes.parse("tumour"), Classes.parse("a,b,c")


def drawn(size=64):
    """Labels 0 to 3: three shapes."""
    image = Image.new("L", (size, size + 8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 40, 40), fill=1)
    draw.rectangle((20, 44, 60, 60), fill=2)
    draw.rectangle((50, 4, 58, 12), fill=3)
    return np.asarray(image)


LABELS = drawn()
BINARY = LABELS > 0


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels, bits, colour_type):
    """A PNG of a depth that Pillow does not write; pixels (H, W) or (H, W, C)."""
    rows = pixels.reshape(len(pixels), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        spread = [np.unpackbits(r.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :] for r in rows]
        lines = [np.packbits(row.ravel()).tobytes() for row in spread]

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def palette(indices, colours):
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def rgb(labels, colours):
    return np.array(colours, np.uint8)[labels]


def read(data, classes):
    return classes.label_map_of_picture(read_label_picture(data))[0]


def with_alpha(pixels, alpha):
    return encoded(np.dstack([pixels, alpha.astype(np.uint8)]))


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GREYS = [(0, 0, 0), (85, 85, 85), (170, 170, 170), (255, 255, 255)]
COLOURS = [(0, 0, 0), (0, 255, 0), (255, 0, 0), (0, 0, 255)]
NAMED = Classes.parse("a=#00FF00,b=#ff0000,c=#0000ff")
DRAWN = rgb(LABELS, COLOURS)
AS_LABELS = {
    "8 bit": encoded(LABELS),
    "16 bit": encoded(LABELS.astype(np.uint16)),
    "16 bit tiff": encoded(LABELS.astype(np.uint16), "TIFF"),
    "32 bit tiff": encoded(LABELS.astype(np.int32), "TIFF"),
    "float tiff": encoded(LABELS.astype(np.float32) * 0.9999, "TIFF"),
    "2 bit": png(LABELS, 2, 0),
    "4 bit": png(LABELS, 4, 0),
    "palette of colours": encoded(palette(LABELS, COLOURS)),
    "palette of greys": encoded(palette(LABELS, GREYS)),
    "palette of one colour": encoded(palette(LABELS, [*COLOURS[:2], BLACK, BLACK])),
    "grey rgb": encoded(np.repeat(LABELS[..., None], 3, axis=-1)),
    "opaque": with_alpha(LABELS, np.full_like(LABELS, 255)),
    "alpha alone": with_alpha(rgb(BINARY * 0, [BLACK]), LABELS),
    "webp": encoded(np.repeat(LABELS[..., None], 3, axis=-1), "WEBP", lossless=True),
    "pgm": encoded(LABELS, "PPM"),
    "pgm of few values": b"P5\n# labels\n64 72\n3\n" + LABELS.tobytes(),
    "bmp": encoded(LABELS, "BMP"),
}


@pytest.mark.parametrize("name", AS_LABELS)
def test_numbers_in_a_file_are_labels_whatever_its_format(name):
    np.testing.assert_array_equal(read(AS_LABELS[name], THREE), LABELS)
    np.testing.assert_array_equal(read(AS_LABELS[name], ONE), BINARY)


AS_BINARY = {
    "0 and 255": encoded(BINARY * np.uint8(255)),
    "0 and 1": encoded(BINARY * np.uint8(1)),
    "1 bit": encoded(Image.fromarray(BINARY)),
    "1 bit tiff": encoded(Image.fromarray(BINARY), "TIFF"),
    "0 and 65535": encoded(BINARY * np.uint16(65535)),
    "green": encoded(rgb(BINARY * 1, COLOURS)),
    "several colours": encoded(DRAWN),
    "green on transparent black": with_alpha(rgb(BINARY * 1, COLOURS), BINARY * 255),
    "green on transparent white": with_alpha(rgb(BINARY * 1, [WHITE, COLOURS[1]]), BINARY * 128),
    "black on transparent white": with_alpha(rgb(BINARY * 1, [WHITE, BLACK]), BINARY * 255),
    "white with alpha": with_alpha(rgb(BINARY * 0, [WHITE]), BINARY * 255),
    "gif": encoded(palette(LABELS, COLOURS), "GIF"),
    "white before black": encoded(palette(~BINARY, GREYS[::-3]), "GIF"),
    "jpeg": encoded(BINARY * np.uint8(255), "JPEG", quality=85),
    "colour jpeg of grey": encoded(rgb(BINARY * 1, [BLACK, WHITE]), "JPEG", quality=85),
    "png of a jpeg": encoded(Image.open(io.BytesIO(encoded(BINARY * np.uint8(255), "JPEG")))),
    "lossy webp": encoded(rgb(BINARY * 1, [BLACK, WHITE]), "WEBP", quality=90),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_BINARY)
def test_a_drawing_of_one_class_is_neither_empty_nor_full(name):
    found = read(AS_BINARY[name], ONE)
    if "jpeg" in name or "lossy" in name:
        assert np.mean(found != BINARY) < 0.002  # of edges alone, not of ringing
    else:
        np.testing.assert_array_equal(found, BINARY)


SHUFFLED = palette(np.array([1, 0, 2, 3])[LABELS], [COLOURS[i] for i in (1, 0, 2, 3)])


def test_colours_are_classes_where_they_are_named():
    for data in (
        encoded(DRAWN),
        encoded(palette(LABELS, COLOURS)),
        encoded(palette(LABELS, COLOURS), "GIF"),
        encoded(SHUFFLED.convert("RGB"), "TIFF"),
    ):
        np.testing.assert_array_equal(read(data, NAMED), LABELS)
    others = Classes.parse("a=*,b=#ff0000")
    want = np.array([0, 1, 2, 1])[LABELS]
    np.testing.assert_array_equal(read(encoded(DRAWN), others), want)


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
NOISY = np.clip(np.linspace(0, 255, 64) + np.zeros((64, 1)), 0, 255).astype(np.uint8)
SMALL = BINARY * np.uint8(255)
SMALL[60:66, 4:10] = 90
COMPRESSED = Image.open(io.BytesIO(encoded(LABELS * np.uint8(85), "JPEG")))
TINTED = Image.open(io.BytesIO(encoded(DRAWN, "JPEG")))
TWO = Classes.parse("a=#00ff00,b=#ff0000")
PAGES = encoded(LABELS, "TIFF", save_all=True, append_images=[Image.fromarray(LABELS)])
REFUSED = {
    "colours without names": (encoded(DRAWN), THREE, "name the colour of each"),
    "an unnamed colour": (encoded(DRAWN), TWO, "no class: #0000ff"),
    "green on white": (encoded(rgb(BINARY * 1, [WHITE, COLOURS[1]])), ONE, "name the colour"),
    "a colour picture": (encoded(PICTURE), ONE, "is a picture of"),
    "a grey picture": (encoded(PICTURE[..., 0]), ONE, "is a picture"),
    "a grey jpeg of two": (encoded(COMPRESSED), Classes.parse("a=*,b=128"), "compressed or"),
    "a colour jpeg of two": (encoded(TINTED), Classes.parse("a=*,b=#ff0000"), "is a picture of"),
    "a picture with alpha": (with_alpha(PICTURE, PICTURE[..., 0] > 9), ONE, "picture of"),
    "soft alpha": (with_alpha(DRAWN, LABELS * 80), ONE, "half-transparent"),
    "black within a palette": (encoded(SHUFFLED), THREE, "of the palette and not 0"),
    "an inverted palette": (encoded(palette(BINARY, GREYS[::-3])), ONE, "and .* as stored"),
    "jpeg of a small grey": (encoded(SMALL, "JPEG"), ONE, "not black and white"),
    "white is zero": (encoded(LABELS, "TIFF", tiffinfo={262: 0}), ONE, "as displayed"),
    "16 bit colour": (png(np.dstack([LABELS] * 3), 16, 2), THREE, "16 bits per channel"),
    "16 bit and alpha": (png(np.dstack([LABELS, LABELS * 0]), 16, 4), THREE, "16 bits per channel"),
    "jpeg of classes": (encoded(LABELS * 80, "JPEG"), THREE, "lossy format .* several classes"),
    "jpeg of 0 and 1": (encoded(BINARY * np.uint8(16), "JPEG"), ONE, "not black and white"),
    "jpeg of greys": (encoded(NOISY, "JPEG"), ONE, "not black and white"),
    "jpeg of colours": (encoded(DRAWN, "JPEG"), NAMED, "changes the colours"),
    "beyond the classes": (encoded(LABELS + np.uint8(1)), THREE, r"of no class: \[4\]"),
    "negative": (encoded(LABELS.astype(np.int32) - 1, "TIFF"), THREE, "negative .*: -1"),
    "interpolated": (encoded(LABELS * np.float32(0.5), "TIFF"), THREE, "whole numbers: 0.5, 1.5"),
    "no number": (encoded(np.where(BINARY, np.float32("nan"), 0), "TIFF"), THREE, "no numbers"),
    "pages": (PAGES, THREE, "2 frames"),
    "gif of numbers": (encoded(palette(LABELS, COLOURS), "GIF"), THREE, "name the colour"),
    "cmyk": (encoded(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"), ONE, "of the kind CMYK"),
    "a text": (b"a text", ONE, "not an image"),
    "nothing": (b"", ONE, "empty"),
    "cut off": (encoded(LABELS)[:60], THREE, "cannot be decoded|truncated|broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_certain_meaning_is_refused_with_the_reason(name):
    data, classes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read(data, classes)


def test_many_values_of_one_class_are_noted():
    _, notes = ONE.label_map_of_picture(read_label_picture(encoded(LABELS)))
    assert notes == (SEVERAL_VALUES,)
    assert ONE.label_map_of_picture(read_label_picture(encoded(BINARY * np.uint8(9))))[1] == ()


def test_explicit_values_go_before_the_others_whatever_their_order():
    for text in ("disc=*,cup=2", "cup=2,disc=*"):
        classes = Classes.parse(text)
        cup, disc = (classes.names.index(name) + 1 for name in ("cup", "disc"))
        want = np.array([0, disc, cup, disc])[LABELS]
        np.testing.assert_array_equal(read(encoded(LABELS), classes), want)
        np.testing.assert_array_equal(classes.label_map_of_some(LABELS), want)


@settings(deadline=None)
@given(arrays(np.uint8, (5, 4), elements=st.integers(0, 30)), st.floats(-0.04, 0.04))
def test_labels_near_whole_numbers_are_rounded_and_no_others(labels, error):
    np.testing.assert_array_equal(rounded_labels(labels + error), labels)
    np.testing.assert_array_equal(rounded_labels(labels.astype(np.float16)), labels)
    with pytest.raises(ValueError, match="not whole numbers"):
        rounded_labels(labels + 0.3 + error)
    with pytest.raises(ValueError, match="negative"):
        rounded_labels(labels.astype(np.float32) - 31)


WRITERS = [
    encoded,
    lambda m: encoded(m, "TIFF"),
    lambda m: encoded(m, "BMP"),
    lambda m: encoded(m, "GIF"),
    lambda m: encoded(m.astype(np.uint16)),
    lambda m: encoded(m.astype(np.float32) * 1.001, "TIFF"),
    lambda m: png(m, 2, 0),
    lambda m: png(m, 4, 0),
    lambda m: encoded(palette(m, COLOURS)),
    lambda m: encoded(palette(m, GREYS)),
    lambda m: encoded(palette(m, GREYS), "GIF"),
    lambda m: encoded(palette(m, GREYS[::-1])),
    lambda m: encoded(rgb(m, COLOURS)),
    lambda m: encoded(np.dstack([m] * 3)),
    lambda m: with_alpha(m, m),
    lambda m: with_alpha(rgb(m * 0, [BLACK]), m),
    lambda m: with_alpha(rgb(m, COLOURS), (m > 0) * 255),
    lambda m: encoded(rgb(m, COLOURS), "JPEG", quality=95),
    lambda m: encoded(m * 80, "JPEG", quality=50),
    lambda m: encoded(Image.fromarray(m).convert("RGB").quantize(4)),
]


@settings(deadline=None, max_examples=300)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2), elements=st.integers(0, 3)),
    st.sampled_from(range(len(WRITERS))),
    st.sampled_from([1, 2, 3]),
)
def test_labels_in_any_file_are_read_rightly_or_not_at_all(labels, writer, largest):
    labels = np.minimum(labels, largest).astype(np.uint8)
    try:
        found = read(WRITERS[writer](labels), THREE)
    except ValueError:
        return
    np.testing.assert_array_equal(found, labels)


def test_the_values_of_the_issue():
    np.testing.assert_array_equal(rounded_labels(np.array([0.0, 0.996, 0.9999999])), [0, 1, 1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_those_of_pillow(orientation):
    from PIL import ImageOps

    image = Image.fromarray(LABELS)
    image.getexif()[274] = orientation
    want = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright(LABELS, orientation), want)
    exif = Image.Exif()
    exif[274] = orientation
    assert read_label_picture(encoded(LABELS, exif=exif)).orientation == orientation
