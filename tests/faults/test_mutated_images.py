"""Two hundred damaged image files: each gives an image or a UserError, in bounded time and memory, and nothing else."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.support.launch import ROOT
from tests.support.memory import needs_proc

pytestmark = pytest.mark.slow

COUNT = 200
MEGABYTES = 900  # more than at the start; the largest image believed of any file is 50, and decoders keep copies
SECONDS = 300  # for all

SAVED = {
    "baseline.jpg": ("JPEG", "RGB", {}),
    "progressive.jpg": ("JPEG", "RGB", {"progressive": True}),
    "cmyk.jpg": ("JPEG", "CMYK", {}),
    "rgb.png": ("PNG", "RGB", {}),
    "palette.png": ("PNG", "P", {}),
    "deep.png": ("PNG", "I;16", {}),
    "palette.gif": ("GIF", "P", {}),
    "lossy.webp": ("WEBP", "RGB", {}),
    "lossless.webp": ("WEBP", "RGB", {"lossless": True}),
    "raw.tif": ("TIFF", "RGB", {}),
    "lzw.tif": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "deflate.tif": ("TIFF", "L", {"compression": "tiff_deflate"}),
    "jpeg.tif": ("TIFF", "RGB", {"compression": "jpeg"}),
    "fax.tif": ("TIFF", "1", {"compression": "group4"}),
    "rgb.bmp": ("BMP", "RGB", {}),
    "palette.bmp": ("BMP", "P", {}),
    "gray.pgm": ("PPM", "L", {}),
}

DECODE_ALL = """
import os, resource, sys, time
from pathlib import Path
from data.decode import decode_image
from utils.errors import UserError

started = []
forbidden = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
def audit(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in forbidden or writes:
        started.append((event, arguments))

decode_image(sys.argv[2])  # so that every library is loaded
sys.addaudithook(audit)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slowest, counts = (0, ""), {"decoded": 0, "refused": 0}
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.monotonic()
    try:
        image = decode_image(str(path))
        assert image.dim() == 3 and image.shape[0] == 3 and image.dtype.itemsize == 1, (path, image.shape)
        counts["decoded"] += 1
    except UserError as error:
        assert str(error).startswith(str(path)), error
        counts["refused"] += 1
    slowest = max(slowest, (time.monotonic() - began, path.name))
assert not started, started
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(counts["decoded"], counts["refused"], megabytes, *slowest)
"""


def originals() -> dict[str, bytes]:
    y, x = np.mgrid[0:90, 0:120]
    photo = Image.fromarray(np.stack([x * 2, y * 2, (x * y) % 256], -1).astype(np.uint8))
    files = {}
    for name, (kind, mode, options) in SAVED.items():
        if mode == "I;16":
            image = Image.fromarray((x * y * 5 % 65536).astype(np.uint16))
        else:
            image = photo.convert(mode)
        file = io.BytesIO()
        image.save(file, kind, **options)
        files[name] = file.getvalue()
    return files


def mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """Bytes replaced in the header or anywhere, numbers made huge, a piece removed or repeated, or the end cut off."""
    damaged = bytearray(content)
    way = draw.integers(5)
    if way == 0:
        for position in draw.integers(len(damaged), size=draw.integers(1, 20)):
            damaged[position] = draw.integers(256)
    elif way == 1:
        for position in draw.integers(min(100, len(damaged)), size=draw.integers(1, 6)):
            damaged[position] = draw.integers(256)
    elif way == 2:
        position = draw.integers(min(200, len(damaged)))
        damaged[position : position + 2] = b"\xff\xff"
    elif way == 3:
        first, last = sorted(draw.integers(len(damaged), size=2))
        damaged[first:last] = damaged[first:last] * draw.integers(0, 4)
    else:
        damaged = damaged[: draw.integers(len(damaged))]
    return bytes(damaged)


@needs_proc
@pytest.mark.parametrize("seed", range(2))
def test_mutated_images_end_in_an_image_or_a_user_error(tmp_path, seed):
    files = originals()
    draw = np.random.default_rng(seed)
    names = list(files)
    folder = tmp_path / "mutated"
    folder.mkdir()
    for number in range(COUNT):
        name = names[number % len(names)]
        (folder / f"{number:03d}_{name}").write_bytes(mutated(files[name], draw))
    (tmp_path / "whole.tif").write_bytes(files["lzw.tif"])
    command = [sys.executable, "-c", DECODE_ALL, str(folder), str(tmp_path / "whole.tif")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    decoded, refused, megabytes = ended.stdout.split()[:3]
    assert int(decoded) + int(refused) == COUNT and int(decoded) > 20 and int(refused) > 60, ended.stdout
    assert int(megabytes) < MEGABYTES, ended.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"mutated", "whole.tif"}
