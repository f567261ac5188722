"""Files that no decoder should be trusted with: other formats, damage, claims, pixels that mean nothing."""

import ast
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.decode import FORMATS, decode_image
from tests.support.image_files import HEIGHT, WIDTH, chunk, decoded, photo, pixels, values_16_bit
from tests.support.launch import ROOT
from utils.errors import UserError


def refused(path, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        decode_image(str(path))
    assert str(caught.value).startswith(str(path))


# Which formats are opened.

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_no_program_starts_for_postscript(tmp_path, monkeypatch, name):
    """Pillow would run `gs`, which here is a program that leaves a file."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / name).write_bytes(POSTSCRIPT)
    refused(tmp_path / name, "of no known format")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI", "IM", "JPEG2000", "DDS", "PDF"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    try:
        photo().save(tmp_path / "image.jpg", kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    refused(tmp_path / "image.jpg", "of no known format")


def test_every_call_that_opens_an_image_names_the_formats():
    calls = []
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] == "tests" or path.relative_to(ROOT).parts[0].startswith("."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                calls.append((path.name, {keyword.arg for keyword in node.keywords}))
    assert len(calls) >= 3 and all("formats" in keywords for _, keywords in calls), calls
    assert "EPS" not in FORMATS


# Values that a decoder turns over, cuts off or makes up.


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("bits", "mode"), [(8, "L"), (16, "I;16")])
def test_white_is_zero(tmp_path, bits, mode, big_endian):
    """Of 16 bits, Pillow does not heed the tag, and does not know the big-endian kind, which is refused."""
    white = 2**bits - 1
    values = values_16_bit(1)[..., 0] * white // 65535
    path = tmp_path / "white_is_zero.tif"
    write_gray_tiff(path, values, bits, photometric=0, order=">" if big_endian else "<")
    if bits == 16 and big_endian:
        refused(path, "of no known format")
    else:
        expected = np.rint((white - values) * 255 / white).astype(int)
        np.testing.assert_array_equal(decoded(path), np.broadcast_to(expected, (3, HEIGHT, WIDTH)))


def test_12_bits_are_scaled(tmp_path):
    values = values_16_bit(1)[..., 0] * 4095 // 65535
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    write_gray_tiff(tmp_path / "twelve.tif", packed, 12)
    expected = np.rint(values * 255 / 4095).astype(int)
    np.testing.assert_array_equal(decoded(tmp_path / "twelve.tif"), np.broadcast_to(expected, (3, HEIGHT, WIDTH)))


def write_gray_tiff(path, values, bits, photometric=1, sample_format=1, order="<"):
    """A grey TIFF of HEIGHT × WIDTH pixels in one strip; values of 12 bits come packed into bytes."""
    size = {8: "u1", 12: "u1", 16: "u2", 32: "u4"}[bits]
    pixels = np.asarray(values).astype(order + size).tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, HEIGHT)]
    tags += [(279, len(pixels)), (339, sample_format)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + pixels)


@pytest.mark.parametrize(
    ("bits", "sample_format", "complaint"),
    [(8, 2, "signed pixels"), (16, 2, "signed pixels"), (32, 2, "signed pixels"), (32, 1, "32-bit"), (32, 3, "float")],
)
def test_pixels_without_a_defined_brightness_are_refused(tmp_path, bits, sample_format, complaint):
    write_gray_tiff(tmp_path / "raw.tif", np.arange(HEIGHT * WIDTH) % 100, bits, sample_format=sample_format)
    refused(tmp_path / "raw.tif", complaint)


def test_a_float_map_is_refused(tmp_path):
    photo().convert("F").save(tmp_path / "map.ppm", "PPM")
    refused(tmp_path / "map.ppm", "float pixels")


def test_16_bit_color_tiff_is_scaled(tmp_path):
    image = photo()
    deep = np.asarray(image).astype("<u2") * 257
    tags = [(256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, None), (259, 3, 1), (262, 3, 2), (273, 4, None), (277, 3, 3)]
    tags += [(278, 4, HEIGHT), (279, 4, deep.nbytes)]
    bits_at = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        count = 3 if tag == 258 else 1
        entries += struct.pack("<HHII", tag, kind, count, {258: bits_at, 273: bits_at + 6}.get(tag, value))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    (tmp_path / "deep.tif").write_bytes(head + entries + bytes(4) + struct.pack("<HHH", 16, 16, 16) + deep.tobytes())
    np.testing.assert_array_equal(decoded(tmp_path / "deep.tif"), pixels(image))


def test_palettes_that_are_turned_over_or_short(tmp_path):
    image = photo().convert("1")
    image.save(tmp_path / "one_bit.bmp")
    content = bytearray((tmp_path / "one_bit.bmp").read_bytes())
    assert content[54:62] == bytes([0, 0, 0, 0, 255, 255, 255, 0])
    content[54:62] = content[58:62] + content[54:58]
    (tmp_path / "inverted.bmp").write_bytes(content)
    np.testing.assert_array_equal(decoded(tmp_path / "inverted.bmp"), 255 - pixels(image))


def palette_png(colors, largest, height=8):
    rows = b"".join(b"\0" + bytes([largest] * 8) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(3 * colors))) if colors else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colors_that_a_palette_does_not_hold_are_refused(tmp_path):
    (tmp_path / "whole.png").write_bytes(palette_png(colors=5, largest=4))
    assert decoded(tmp_path / "whole.png")[:, 0, 0].tolist() == [12, 13, 14]
    (tmp_path / "short.png").write_bytes(palette_png(colors=5, largest=5))
    refused(tmp_path / "short.png", "color number 5 of a palette of 5")
    (tmp_path / "none.png").write_bytes(palette_png(colors=0, largest=5))
    refused(tmp_path / "none.png", "damaged")
    photo().quantize(5).save(tmp_path / "short.bmp")
    content = bytearray((tmp_path / "short.bmp").read_bytes())
    content[-1] = 77
    (tmp_path / "short.bmp").write_bytes(content)
    refused(tmp_path / "short.bmp", "a palette of 5")


# Damage that one decoder fills up in silence.


def test_a_png_that_lacks_rows_is_refused(tmp_path):
    for colors in (5, 80):
        (tmp_path / "short.png").write_bytes(palette_png(colors, largest=4, height=5))
        refused(tmp_path / "short.png", "cut short or damaged")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("rest", ["zeros", "nothing"])
def test_a_jpeg_without_its_second_half_is_refused(tmp_path, progressive, rest):
    noise = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.jpg", progressive=progressive)
    content = (tmp_path / "half.jpg").read_bytes()
    half = content[: len(content) // 2]
    (tmp_path / "half.jpg").write_bytes(half + bytes(len(half) if rest == "zeros" else 0))
    refused(tmp_path / "half.jpg", "cut short")


# What is never opened, and what is never believed.


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_a_device_is_not_opened(tmp_path, make):
    make(tmp_path / "image.png")
    refused(tmp_path / "image.png", "not a regular file")


def test_a_file_of_a_terabyte_is_not_read(tmp_path):
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(2**40)
    refused(tmp_path / "sparse.jpg", "1,099,511,627,776 bytes")


def gif_screen(side):
    start = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    return start + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def jpeg_claiming(width, height, scans):
    """A progressive JPEG whose header says width × height, with more scans that change nothing."""
    file = io.BytesIO()
    Image.new("L", (16, 16), 99).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    frame = content.index(b"\xff\xc2")
    content = content[: frame + 5] + struct.pack(">HH", height, width) + content[frame + 9 :]
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00\x00"
    return content[:-2] + scan * scans + b"\xff\xd9"


BOMBS = {
    "a GIF's screen": gif_screen(13_000),
    "a progressive JPEG": jpeg_claiming(13_000, 10_000, scans=1),
    "a TIFF": b"II*\0\x08\0\0\0\x07\0" + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((256, 13_000), (257, 10_000), (258, 8), (259, 1), (262, 1), (273, 8), (279, 8))
    ) + bytes(4),
    "a PPM": b"P5 13000 10000 255\n" + bytes(99),
    "a lossless WebP": b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f" + struct.pack("<I", 12_999 | 12_999 << 14) + bytes(15),
    "a BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 13_000, 10_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "a PNG whose text Pillow refuses": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 10_000, 8, 2, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21)))
    + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_small_file_that_claims_a_large_image_is_refused_before_decoding(tmp_path, bomb):
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    refused(tmp_path / "bomb.jpg", "refused before decoding")


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    (tmp_path / "usual.jpg").write_bytes(jpeg_claiming(16, 16, scans=12))
    assert decoded(tmp_path / "usual.jpg").shape == (3, 16, 16)
    (tmp_path / "endless.jpg").write_bytes(jpeg_claiming(4000, 4000, scans=200))
    refused(tmp_path / "endless.jpg", "20. scans of 4000 × 4000 pixels")


def test_a_text_image_of_endless_comments_is_refused(tmp_path):
    (tmp_path / "comments.ppm").write_bytes(b"P2 2 2 255\n" + b"#\n" * 500_000 + b"1 2 3 4\n")
    refused(tmp_path / "comments.ppm", "comments")


def test_a_tile_larger_than_its_image_is_refused(tmp_path):
    tags = [(256, 8), (257, 8), (258, 8), (259, 5), (262, 1), (322, 50_000), (323, 50_000), (324, 8), (325, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "tile.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(99))
    refused(tmp_path / "tile.tif", "50000 × 50000 pixels")
