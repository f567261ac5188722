"""Files into RGB images. The one place that decodes, so that another decoder is a change of one function."""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from utils.errors import UserError


def decode_image(path: str) -> torch.Tensor:
    """An image file as (3, H, W) uint8 RGB: an animation's first frame, EXIF rotation not applied (ImageNet practice).

    Grey, CMYK, palette and 16-bit images are converted, alpha is dropped, the content decides and not the name.
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
    return image[0] if image.dim() == 4 else image


def refuse_bomb(path: str, encoded: np.ndarray) -> None:
    """Look at the header alone: a small file can claim more pixels than the memory holds."""
    if pixels_of_jpeg(encoded) <= Image.MAX_IMAGE_PIXELS:
        return
    try:
        Image.open(io.BytesIO(encoded)).close()
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: refused before decoding ({error}); replace or remove the file") from error
    except Exception:
        return  # the decoders say what is wrong with it


def pixels_of_jpeg(encoded: np.ndarray) -> float:
    """Width times height if the file is a JPEG that begins with whole segments only, as good as all do; else infinity.

    Pillow tells that of any file, but takes 4 % of a decode for it.
    """
    header = encoded[:65536].tobytes()
    at = 2 if header[:2] == b"\xff\xd8" else len(header)
    while at + 9 <= len(header) and header[at] == 0xFF and 0xC0 <= header[at + 1] < 0xFF:
        kind = header[at + 1]
        if kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame header: length, bits, height, width
            return int.from_bytes(header[at + 5 : at + 7], "big") * int.from_bytes(header[at + 7 : at + 9], "big")
        if 0xD0 <= kind <= 0xD9:  # these have no length; none belongs here
            break
        at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
    return float("inf")


def decode_with_pillow(path: str, encoded: np.ndarray) -> torch.Tensor:
    """BMP, TIFF and whatever else torchvision does not know: (3, H, W) uint8."""
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            if image.mode.startswith("I"):  # Pillow's own conversion would saturate 16-bit values
                gray = from_16_bit(torch.from_numpy(np.asarray(image).astype(np.int32)))
                return gray.expand(3, *gray.shape)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        unknown = "of no known format" if encoded.size else "the file is empty"
        reason = unknown if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a readable image ({reason}); replace or remove the file") from error


def from_16_bit(image: torch.Tensor) -> torch.Tensor:
    """int32 values 0…65535 to uint8, rounded (65535 = 257 · 255)."""
    return ((image + 128) // 257).clamp_(0, 255).to(torch.uint8)
