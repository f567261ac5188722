"""Every file a folder of photographs may hold arrives as (3, H, W) uint8 RGB, or as an error that names it."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.decode import decode_image
from tests.support.image_files import HEIGHT, WIDTH, chunk, decoded, photo, pixels, values_16_bit
from utils.errors import UserError


def with_alpha(mode="RGBA"):
    image = photo()
    image.putalpha(Image.fromarray(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)))
    return image.convert(mode)


def flipped():
    return photo().transpose(Image.Transpose.FLIP_TOP_BOTTOM)


PALETTE_ALPHA = {"transparency": bytes(range(0, 256, 16))}
ANIMATED = {"save_all": True, "append_images": [flipped()], "duration": 100}
FILES = {
    "rgb.png": (photo(), {}),
    "gray.png": (photo().convert("L"), {}),
    "gray_alpha.png": (with_alpha("LA"), {}),
    "rgb_alpha.png": (with_alpha(), {}),
    "rgb_key.png": (photo(), {"transparency": (10, 12, 5)}),
    "palette.png": (photo().quantize(16), {}),
    "palette_alpha.png": (photo().quantize(16), PALETTE_ALPHA),
    "one_bit.png": (photo().convert("1"), {}),
    "animated.png": (photo(), ANIMATED),
    "rgb.bmp": (photo(), {}),
    "one_bit.bmp": (photo().convert("1"), {}),
    "rgb.tif": (photo(), {}),
    "cmyk.tif": (photo().convert("CMYK"), {}),
    "gray_alpha.tif": (with_alpha("LA"), {}),
    "palette.gif": (photo().quantize(16), {}),
    "animated.gif": (photo(), ANIMATED),
    "lossless.webp": (photo(), {"lossless": True}),
    "alpha.webp": (with_alpha(), {"lossless": True}),
    "animated.webp": (photo(), ANIMATED | {"lossless": True}),
    "gray.pgm": (photo().convert("L"), {}),
    "png_named.jpg": (photo(), {"format": "PNG"}),
}
JPEGS = {
    "rgb.jpg": (photo(), {}),
    "gray.jpeg": (photo().convert("L"), {}),
    "cmyk.jpg": (photo().convert("CMYK"), {}),
    "progressive.jpg": (photo(), {"progressive": True}),
    "jpeg_named.png": (photo(), {"format": "JPEG"}),
    "lossy.webp": (photo(), {}),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(("name", "tolerance"), [(name, 0) for name in FILES] + [(name, 2) for name in JPEGS])
def test_agrees_with_pillow(tmp_path, name, tolerance):
    image, options = (FILES | JPEGS)[name]
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as reopened:
        expected = pixels(reopened)
    np.testing.assert_allclose(decoded(tmp_path / name), expected, atol=tolerance)


@pytest.mark.parametrize("name", ["animated.png", "animated.gif", "animated.webp"])
def test_animation_gives_its_first_frame(tmp_path, name):
    image, options = FILES[name]
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as reopened:
        assert reopened.n_frames == 2
    first, last = (abs(decoded(tmp_path / name) - pixels(frame)).mean() for frame in (photo(), flipped()))
    assert first < 4 < 20 < last  # GIF has 256 colours


def write_16_bit_png(path, values, color_type):
    """values (H, W, channels) uint16; Pillow writes grey ones only."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_is_scaled_not_saturated(tmp_path, color_type, channels):
    values = values_16_bit(channels)
    write_16_bit_png(tmp_path / "deep.png", values, color_type)
    colors = values[..., :3] if channels > 2 else values[..., :1]
    expected = np.broadcast_to(np.rint(colors / 257).astype(int), (HEIGHT, WIDTH, 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(tmp_path / "deep.png"), expected)


@pytest.mark.parametrize("name", ["deep.tif", "deep.pgm", "big_endian.tif"])
def test_16_bit_gray_outside_png_is_scaled_not_saturated(tmp_path, name):
    values = values_16_bit(1)[..., 0]
    if name == "big_endian.tif":
        image = Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values.astype(np.uint16))
    image.save(tmp_path / name)
    expected = np.broadcast_to(np.rint(values / 257).astype(int), (3, HEIGHT, WIDTH))
    np.testing.assert_array_equal(decoded(tmp_path / name), expected)


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90°
    for name in ("rotated.jpg", "rotated.png", "rotated.webp"):
        photo().save(tmp_path / name, exif=exif, quality=95)
        assert Image.open(tmp_path / name).getexif()[0x0112] == 6
        image = decoded(tmp_path / name)
        assert image.shape == (3, HEIGHT, WIDTH)
        assert abs(image - pixels(photo())).mean() < 6


def jpeg_bytes(tmp_path):
    photo().save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize(
    "content",
    {
        "zero bytes": lambda whole: b"",
        "truncated header": lambda whole: whole[:20],
        "half a JPEG": lambda whole: whole[: len(whole) // 2],
        "random bytes": lambda whole: np.random.default_rng(0).bytes(5000),
        "HTML": lambda whole: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "half a PNG": lambda whole: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    }.items(),
    ids=lambda item: item[0],
)
def test_file_without_an_image_is_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content[1](jpeg_bytes(tmp_path)))
    with pytest.raises(UserError, match="not a readable image") as caught:
        decode_image(str(path))
    assert str(path) in str(caught.value)
    assert ("empty" in str(caught.value)) == (content[0] == "zero bytes")


@pytest.mark.parametrize("name", ["missing.jpg", "folder.jpg"])
def test_missing_file_is_named(tmp_path, name):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        decode_image(str(tmp_path / name))
