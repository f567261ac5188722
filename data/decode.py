"""Image files into RGB tensors. Nothing else decodes, so another decoder is a change of one function."""

import io
import math

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from utils.errors import UserError


def decode_image(path: str) -> torch.Tensor:
    """An image file as (3, H, W) uint8 RGB. EXIF rotation is not applied (ImageNet practice).

    Grey, CMYK, palette and 16-bit images are converted, alpha is dropped, an animation gives its first frame. The
    content decides, not the name.
    Raises: UserError naming a file that is missing, holds no image, or claims more than 179 million pixels.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            encoded = np.frombuffer(bytearray(file.read()), dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); was it moved or removed?") from error
    refuse_bomb(path, encoded)
    if encoded[:4].tobytes() == b"GIF8":  # torchvision would decode every frame: 2,000 in a file of some kilobytes
        return decode_with_pillow(path, encoded)
    try:
        image = torchvision_decode(torch.from_numpy(encoded), ImageReadMode.RGB)
    except (RuntimeError, ValueError):
        image = decode_with_pillow(path, encoded)
    if image.dtype == torch.uint16:
        image = from_16_bit(image.to(torch.int32))
    if image.dim() == 4:  # an animation
        return image[0]
    return image


def refuse_bomb(path: str, encoded: np.ndarray) -> None:
    """Look at the header alone: a small file can claim more pixels than the memory holds.

    Raises: UserError if it claims more than Pillow's limit of 179 million.
    """
    if pixels_of_jpeg(encoded) <= Image.MAX_IMAGE_PIXELS:
        return
    try:
        Image.open(io.BytesIO(encoded)).close()
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: refused before decoding ({error}); replace or remove the file") from error
    except Exception:
        return  # the decoders say what is wrong with it


def pixels_of_jpeg(encoded: np.ndarray) -> float:
    """Width × height from the frame header of a JPEG; inf for anything else, which Pillow then checks.

    Pillow could check every file, but takes 4 % of a decode for it.

    A file must not get past the check by showing us one frame and the decoder a larger one. So a frame header counts
    only if nothing but whole segments stands before it. tests/data/test_decode.py tries frames behind fill bytes,
    behind stray bytes, and behind markers that have no length, also read as if they had one: Pillow gets them all.
    """
    header = encoded[:65536].tobytes()
    if not header.startswith(b"\xff\xd8"):
        return math.inf
    at = 2
    while at + 9 <= len(header):
        marker, kind = header[at], header[at + 1]
        if marker != 0xFF or not 0xC0 <= kind < 0xFF:
            break
        if 0xD0 <= kind <= 0xD9:  # a marker without a length, which does not belong before the frame
            break
        if kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header: length, bits, height, width
            height = int.from_bytes(header[at + 5 : at + 7], "big")
            width = int.from_bytes(header[at + 7 : at + 9], "big")
            return height * width
        at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
    return math.inf


def decode_with_pillow(path: str, encoded: np.ndarray) -> torch.Tensor:
    """BMP, TIFF and whatever else torchvision does not know: (3, H, W) uint8."""
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            if image.mode.startswith("I"):  # Pillow's own conversion would saturate 16-bit values
                gray = from_16_bit(torch.from_numpy(np.asarray(image).astype(np.int32)))
                return gray.expand(3, *gray.shape)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except Exception as error:  # Pillow's readers may raise anything
        if not encoded.size:
            reason = "the file is empty"
        elif isinstance(error, UnidentifiedImageError):
            reason = "of no known format"
        else:
            reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a readable image ({reason}); replace or remove the file") from error


def from_16_bit(image: torch.Tensor) -> torch.Tensor:
    """int32 values from 0 to 65535 as uint8, rounded (65535 = 257 · 255)."""
    return ((image + 128) // 257).clamp_(0, 255).to(torch.uint8)
