"""Image files of every format that conversion reads: valid, odd, damaged and hostile ones."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from helpers.dicom_files import dicom_file
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def picture(mode="RGB", size=(37, 29), seed=0):
    """A smooth drawing with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [127 + 90 * np.sin(x / (3 + k) + y / (7 - k)) for k in range(4)]
    pixels = np.stack(planes, -1) + rng.normal(0, 6, (*x.shape, 4))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if mode in ("CMYK", "RGBA"):
        return Image.fromarray(pixels, mode)
    if mode == "LA":
        return Image.merge("LA", Image.fromarray(pixels).split()[:2])
    return Image.fromarray(pixels[..., :3]).convert(mode)


def encoded(image, format_, **options):
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + _crc(kind + content)


def png(pixels: np.ndarray, colour: int, bits: int = 8, interlaced: bool = False, extra=b""):
    """A PNG of packed rows, uint8 (H, bytes); of one 8-bit sample per byte if interlaced."""
    height, width = pixels.shape[0], pixels.shape[1] * 8 // bits
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width //= channels
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        assert bits == 8
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                  (1, 0, 2, 2), (0, 1, 1, 2)]  # fmt: skip
    rows = []
    for left, top, across, down in passes:
        if interlaced:
            samples = pixels.reshape(height, width, channels)[top::down, left::across]
        else:
            samples = pixels[:, None]
        rows += [b"\0" + row.tobytes() for row in samples if row.size]
    content = zlib.compress(b"".join(rows))
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", content), chunk(b"IEND", b""))
    return PNG + b"".join(parts)


def valid() -> dict[str, bytes]:
    """Undamaged files by name: usual ones, and odd ones."""
    rgb, grey, rgba, palette = (picture(m) for m in ("RGB", "L", "RGBA", "P"))
    raw = np.asarray(rgb)
    deep = (np.asarray(grey).astype(np.uint16) * 257).astype(">u2").view(np.uint8)
    dark = (raw.reshape(29, -1).astype(np.uint16) * 16).astype(">u2").view(np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    frames = [picture("RGB", seed=n) for n in range(4)]

    def film(format_):
        copies = [frame.copy() for frame in frames]  # Pillow's writers leave settings behind
        return encoded(copies[0], format_, save_all=True, append_images=copies[1:])

    files = {
        "JPEG": encoded(rgb, "JPEG"),
        "JPEG grey": encoded(grey, "JPEG"),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True),
        "JPEG 4:4:4": encoded(rgb, "JPEG", subsampling=0, quality=100),
        "JPEG 4:2:2": encoded(rgb, "JPEG", subsampling=1),
        "JPEG quality 5": encoded(rgb, "JPEG", quality=5),
        "JPEG restarts": encoded(rgb, "JPEG", restart_marker_blocks=1),
        "JPEG CMYK": encoded(picture("CMYK"), "JPEG"),
        "JPEG turned": encoded(rgb, "JPEG", exif=turned),
        "JPEG comment": encoded(rgb, "JPEG", comment=b"\0" * 5000),
        "JPEG in colour space RGB": encoded(rgb, "JPEG", keep_rgb=True, subsampling=0),
        "JPEG with bytes after it": encoded(rgb, "JPEG") + b"trailing" * 50,
        "JPEG twice": encoded(rgb, "JPEG") + encoded(grey, "JPEG"),
        "MPO": film("MPO"),
        "PNG": encoded(rgb, "PNG"),
        "PNG grey": encoded(grey, "PNG"),
        "PNG alpha": encoded(rgba, "PNG"),
        "PNG grey alpha": encoded(picture("LA"), "PNG"),
        "PNG palette": encoded(palette, "PNG"),
        "PNG palette transparent": encoded(palette, "PNG", transparency=bytes(range(100))),
        "PNG palette of 4": encoded(rgb.quantize(4), "PNG"),
        "PNG colour key": encoded(rgb, "PNG", transparency=(127, 127, 127)),
        "PNG grey key": encoded(grey, "PNG", transparency=127),
        "PNG 1 bit": encoded(picture("1"), "PNG"),
        "PNG 2 bits": png(np.packbits(raw[..., 0] >> 7, axis=1), 0, 2),
        "PNG 4 bits": png(raw[..., 1], 0, 4),
        "PNG 16 bits": png(deep, 0, 16),
        "PNG 16 bits colour": png(dark * np.uint8(1), 2, 16),
        "PNG interlaced": png(raw.reshape(29, -1), 2, interlaced=True),
        "PNG interlaced grey": png(raw[..., 0], 0, interlaced=True),
        "PNG gamma": png(raw.reshape(29, -1), 2, extra=chunk(b"gAMA", struct.pack(">I", 100000))),
        "PNG private chunk": png(raw.reshape(29, -1), 2, extra=chunk(b"prVt", b"x" * 100)),
        "PNG turned": encoded(rgb, "PNG", exif=turned),
        "PNG with bytes after it": encoded(rgb, "PNG") + b"trailing" * 50,
        "PNG text": encoded(rgb, "PNG", pnginfo=_text()),
        "APNG": film("PNG"),
        "GIF": encoded(palette, "GIF"),
        "GIF film": film("GIF"),
        "BMP": encoded(rgb, "BMP"),
        "BMP grey": encoded(grey, "BMP"),
        "BMP alpha": encoded(rgba, "BMP"),
        "TIFF": encoded(rgb, "TIFF"),
        "TIFF LZW": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "TIFF JPEG": encoded(rgb, "TIFF", compression="jpeg"),
        "TIFF fax": encoded(picture("1"), "TIFF", compression="group4"),
        "TIFF CMYK": encoded(picture("CMYK"), "TIFF"),
        "TIFF pages": film("TIFF"),
        "TIFF 16 bits": encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 9), "TIFF"),
        "TIFF float": encoded(Image.fromarray(np.asarray(grey).astype(np.float32)), "TIFF"),
        "WebP": encoded(rgb, "WEBP"),
        "WebP lossless": encoded(rgba, "WEBP", lossless=True),
        "WebP film": film("WEBP"),
        "PPM": encoded(rgb, "PPM"),
        "JPEG 2000": encoded(rgb, "JPEG2000"),
        "DICOM": dicom_file(np.asarray(grey)),
        "DICOM 12 bits": dicom_file(
            np.asarray(grey).astype(np.uint16) * 16, bits_stored=12, WindowCenter=2048,
            WindowWidth=4096
        ),
        "DICOM colour": dicom_file(raw, photometric="RGB"),
    }  # fmt: skip
    return files


def hostile() -> dict[str, bytes]:
    """Small files that ask for much, or pretend to be something else."""
    rgb = picture("RGB")
    wide = struct.pack(">II", 200_000, 200_000)
    png_data, jpeg = encoded(rgb, "PNG"), bytearray(encoded(rgb, "JPEG"))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\xff\xff\xff\xff"
    bmp, gif = bytearray(encoded(rgb, "BMP")), bytearray(encoded(rgb.convert("P"), "GIF"))
    bmp[18:26] = struct.pack("<ii", 200_000, 200_000)
    gif[6:10] = b"\xff\xff\xff\xff"
    header = chunk(b"IHDR", wide + png_data[24:29])
    return {
        "PNG of 120 GB": PNG + header + png_data[33:],
        "JPEG of 13 GB": bytes(jpeg),
        "BMP of 120 GB": bytes(bmp),
        "GIF of 4 GB": bytes(gif),
        "PPM of 3 TB": b"P6 1000000 1000000 255\n" + bytes(100),
        "DICOM of 13 GB": dicom_file(np.zeros((4, 4), np.uint8), Rows=65535, Columns=65535),
        "PNG without an end": png_data[:-12],
        "PNG without pixels": PNG + png_data[8:33] + chunk(b"IEND", b""),
        "PNG of no size": PNG + chunk(b"IHDR", bytes(8) + png_data[24:29]) + png_data[33:],
        "signature alone": PNG,
        "JPEG marker alone": b"\xff\xd8\xff",
        "text": b"GIF89a is what this text begins with, and no more",
        "HTML": b"<html><body>404</body></html>",
        "pickle": b"\x80\x04\x95" + bytes(60),
        "zip": b"PK\x03\x04" + bytes(60),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "zeros": bytes(1000),
    }


def damaged(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Files with changed, missing, doubled or foreign bytes, in turn of every valid one."""
    files = list(valid().items())
    for number in range(count):
        name, data = files[number % len(files)]
        rng = np.random.default_rng([seed, number])
        how = _DAMAGES[(number // len(files)) % len(_DAMAGES)]
        yield f"{name}, {how.__name__.strip('_')} {number}", how(data, rng, files)


def _text():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * 3000, zip=True)
    return info


def _crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


def _cut_off(data, rng, files):
    return data[: int(rng.integers(1, len(data)))]


def _bit(data, rng, files):
    changed = bytearray(data)
    changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _bytes(data, rng, files):
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 20))):
        changed[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(changed)


def _header(data, rng, files):
    changed = bytearray(data)
    changed[int(rng.integers(min(80, len(data))))] = int(rng.integers(256))
    return bytes(changed)


def _zeros(data, rng, files):
    begin = int(rng.integers(len(data)))
    length = min(int(rng.integers(1, 200)), len(data) - begin)
    return data[:begin] + bytes(length) + data[begin + length :]


def _missing(data, rng, files):
    begin = int(rng.integers(len(data)))
    return data[:begin] + data[begin + int(rng.integers(1, 100)) :]


def _doubled(data, rng, files):
    begin = int(rng.integers(len(data)))
    return data[:begin] + data[max(0, begin - int(rng.integers(1, 100))) :]


def _foreign(data, rng, files):
    other = files[int(rng.integers(len(files)))][1]
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def _with_right_checksums(data, rng, files):
    """Changed bytes, but the chunks of a PNG have the checksums of what they hold."""
    changed = bytearray(_bytes(data, rng, files))
    changed[:8] = data[:8]
    begin = 8
    while data.startswith(PNG) and begin + 12 <= len(data):
        length = int.from_bytes(data[begin : begin + 4], "big")
        changed[begin : begin + 8] = data[begin : begin + 8]
        end = begin + 8 + length
        changed[end : end + 4] = _crc(bytes(changed[begin + 4 : end]))
        begin = end + 4
    return bytes(changed)


_DAMAGES = (_bit, _cut_off, _bytes, _header, _zeros, _missing, _doubled, _foreign,
            _with_right_checksums)  # fmt: skip
