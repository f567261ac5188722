"""Image files of every kind, for the tests of decoding."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.decode import decode_image

WIDTH, HEIGHT = 24, 20


def photo() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 10, y * 12, (x + y) * 5], -1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    """(3, H, W) int array of a PIL image as Pillow turns it into RGB."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)


def decoded(path: Path) -> np.ndarray:
    """(3, H, W) int array of a file."""
    image = decode_image(str(path))
    assert image.dtype == torch.uint8
    return image.numpy().astype(int)


def values_16_bit(channels: int) -> np.ndarray:
    """From 0 to 65535, evenly."""
    return (np.arange(HEIGHT * WIDTH * channels) * 65535 // (HEIGHT * WIDTH * channels - 1)).reshape(HEIGHT, WIDTH, -1)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
