"""Image files into RGB tensors. Nothing else decodes, so another decoder is a change of one function."""

import errno
import io
import os
import stat
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from data.headers import (
    BASELINE,
    EXTENDED,
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    BadImageError,
    is_cut_short,
    jpeg_frame,
    lacks_colors,
    png_header,
    refuse_bomb,
    refuse_scans,
)
from utils.errors import UserError, first_line

# The only formats that are ever opened. Pillow knows more, and one of them, PostScript, starts another program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
MAX_FILE_BYTES = 2**30
MAX_COMMENTS = 1000  # of a PPM in plain text: Pillow copies all of the text for each of them
# Tags of a TIFF, and what they hold.
BITS_PER_SAMPLE, PHOTOMETRIC, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT = 258, 262, 322, 323, 339
WHITE_IS_ZERO = 0
UNSIGNED, UNDEFINED = 1, 4


def decode_image(path: str) -> torch.Tensor:
    """An image file as (3, H, W) uint8 RGB. EXIF rotation is not applied (ImageNet practice).

    Grey, CMYK, palette and 16-bit images are converted, alpha is dropped, an animation gives its first frame. The
    content decides, not the name.
    Raises: UserError naming a file that is missing or no regular file, holds no image of FORMATS, is seen to be
        damaged, claims more pixels than it can hold (data/headers.py), or has pixels that have no defined brightness.
    """
    content = read_file(path)
    try:
        return decode(content)
    except BadImageError as error:
        raise UserError(f"{path}: {error}; replace or remove the file") from error


def read_file(path: str) -> bytearray:
    """The bytes of a regular file. Raises: UserError; a pipe, socket or device is not opened."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: not a regular file but a pipe, socket or device, which holds no image; remove it")
        if status.st_size > MAX_FILE_BYTES:
            raise UserError(
                f"{path}: has {status.st_size:,} bytes, and an image at most {MAX_FILE_BYTES:,}; remove the file"
            )
        with open(path, "rb", buffering=0) as file:
            return bytearray(file.read())
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # too many open files: no fault of the image, never skipped
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror}); was it moved or removed?") from error


def decode(content: bytearray) -> torch.Tensor:
    """As `decode_image`. Raises: BadImageError."""
    if not content:
        raise BadImageError("not a readable image (the file is empty)")
    if content.startswith(JPEG_SIGNATURE):
        image = decode_jpeg(content)
    elif content.startswith(PNG_SIGNATURE):
        image = decode_png(content)
    else:
        image = decode_other(content)
    if image.dtype == torch.uint16:
        image = eight_bit(image.to(torch.int32), white=65535)
    return image


def decode_jpeg(content: bytearray) -> torch.Tensor:
    """By torchvision, and what it does not know, such as arithmetic coding, by Pillow."""
    frame = jpeg_frame(content)
    if frame is None:
        with open_with_pillow(content) as image:
            width, height = image.size
    else:
        width, height = frame.width, frame.height
        refuse_bomb(width, height, len(content))
    if frame is None or frame.kind not in (BASELINE, EXTENDED):
        refuse_scans(width, height, content)
    try:
        return with_torchvision(content)
    except (RuntimeError, ValueError) as error:
        if is_cut_short(content):  # Pillow would fill up what is missing
            raise BadImageError(f"not a readable image (cut short: {first_line(error)})") from error
    with open_with_pillow(content) as image:
        return pixels_of_pillow(image)


def decode_png(content: bytearray) -> torch.Tensor:
    """By torchvision alone, which knows every kind. Pillow would fill up what is missing."""
    header = png_header(content)
    refuse_bomb(header.width, header.height, len(content))
    try:
        pixels = with_torchvision(content)
    except (RuntimeError, ValueError) as error:
        raise BadImageError(f"not a readable image (cut short or damaged: {first_line(error)})") from error
    if lacks_colors(content, header):
        with open_with_pillow(content) as image:
            try:
                refuse_missing_colors(image)
            except OSError as error:
                raise unreadable(error) from error
    return pixels


def decode_other(content: bytearray) -> torch.Tensor:
    """WebP by torchvision, unless it is animated; GIF, TIFF, BMP and PPM by Pillow.

    torchvision reads GIF too, but decodes every frame: 2,000 in a file of some kilobytes.
    """
    with open_with_pillow(content) as image:
        if image.format == "WEBP" and not image.is_animated:
            try:
                return with_torchvision(content)
            except (RuntimeError, ValueError) as error:
                raise BadImageError(f"not a readable image (damaged: {first_line(error)})") from error
        return pixels_of_pillow(image)


def with_torchvision(content: bytearray) -> torch.Tensor:
    """(3, H, W) uint8 or uint16. Raises: RuntimeError or ValueError."""
    return torchvision_decode(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB)


def open_with_pillow(content: bytes | bytearray) -> Image.Image:
    """The header of an image of FORMATS, in a size that can be expected. Raises: BadImageError."""
    if content[:2] in (b"P1", b"P2", b"P3") and content.count(b"#") > MAX_COMMENTS:
        raise BadImageError(f"refused before decoding: a text file with more than {MAX_COMMENTS} comments")
    try:
        with warnings.catch_warnings():  # they concern sizes, which are checked here, or metadata, which is not used
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        tile = (1, 1)
        if image.format == "TIFF":  # a tile is decoded as a whole, however small the image
            tile = (number_of(image, TILE_WIDTH), number_of(image, TILE_LENGTH))
    except Image.DecompressionBombError as error:
        raise BadImageError(f"refused before decoding ({error})") from error
    except Exception as error:  # Pillow's readers may raise anything
        raise unreadable(error) from error
    for width, height in (image.size, tile):
        refuse_bomb(width, height, len(content))
    return image


def pixels_of_pillow(image: Image.Image) -> torch.Tensor:
    """An image that Pillow has opened, as (3, H, W) uint8. Raises: BadImageError."""
    try:
        refuse_undefined_brightness(image)
        refuse_missing_colors(image)
        if image.mode.startswith("I"):  # Pillow's own conversion would saturate 16-bit values
            gray = deep_gray(image)
            return gray.expand(3, *gray.shape)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except BadImageError:
        raise
    except Exception as error:
        raise unreadable(error) from error


def deep_gray(image: Image.Image) -> torch.Tensor:
    """A grey image of more than 8 bits as (H, W) uint8."""
    white = 65535
    values = torch.from_numpy(np.asarray(image).astype(np.int32))
    if image.format == "TIFF":
        if number_of(image, BITS_PER_SAMPLE) == 12:  # Pillow leaves the values as they are
            white = 4095
        if number_of(image, PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow heeds it up to 8 bits only
            values = white - values
    return eight_bit(values, white)


def eight_bit(values: torch.Tensor, white: int) -> torch.Tensor:
    """int32 values from 0 to white, which is at most 65535, as uint8, rounded."""
    return ((values * 255 + white // 2) // white).clamp_(0, 255).to(torch.uint8)


def refuse_undefined_brightness(image: Image.Image) -> None:
    """Raise BadImageError for pixels of which nothing says which value is black and which is white."""
    if image.mode == "F":
        raise BadImageError("has float pixels, and nothing says which value is white; save it with 8 or 16 bits")
    if image.format != "TIFF":
        return
    sample_format = image.tag_v2.get(SAMPLE_FORMAT, UNSIGNED)
    if not isinstance(sample_format, tuple):
        sample_format = (sample_format,)
    if not set(sample_format) <= {UNSIGNED, UNDEFINED}:
        raise BadImageError(
            "has signed pixels, and nothing says which value is black; save it with 8 or 16 unsigned bits"
        )
    if image.mode == "I":
        raise BadImageError("has 32-bit pixels, and nothing says which value is white; save it with 8 or 16 bits")


def refuse_missing_colors(image: Image.Image) -> None:
    """Raise BadImageError if pixels have a color that the palette does not hold; decoders take black for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()
    if image.mode != "P":
        return
    colors = len(image.palette.palette) // len(image.palette.mode)
    largest = image.getextrema()[1]
    if largest >= colors:
        raise BadImageError(f"not a readable image (damaged: has color number {largest} of a palette of {colors})")


def number_of(image: Image.Image, tag: int) -> int:
    """The number in a tag of a TIFF, or the first of several; 1 if there is none."""
    value = image.tag_v2.get(tag, 1)
    if isinstance(value, tuple):
        value = value[0]
    return int(value)


def unreadable(error: Exception) -> BadImageError:
    """What Pillow says of a file that it cannot read."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, UnidentifiedImageError):
        reason = f"of no known format, which are {' '.join(FORMATS)}"
    return BadImageError(f"not a readable image ({reason})")
