"""What scripts/check_data.py asks of a single image, in a worker process."""

import contextlib
import hashlib
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from PIL import ExifTags

from data.decode import decode_image, open_with_pillow, read_file
from data.headers import JPEG_SIGNATURE, PNG_SIGNATURE
from utils.errors import UserError, first_line

MIN_SIDE = 8  # pixels; a shorter image holds next to nothing to learn from
TAIL = 1024  # bytes; no compressed image ends in so many zeros
COMPRESSED = (JPEG_SIGNATURE, PNG_SIGNATURE, b"GIF8", b"RIFF")

# Kinds of findings.
UNREADABLE = "unreadable images"
EMPTY = "empty files"
DAMAGED = "images that decoders complain about"
UNFINISHED = "files that end in zeros"
CONSTANT = "images of a single color"


@dataclass
class CheckedImage:
    """What is known of an image."""

    findings: dict[str, str] = field(default_factory=dict)  # kind -> a sentence that begins with the path
    notes: list[str] = field(default_factory=list)  # what may surprise in how the image is used
    digest: bytes = b""  # of the file, where asked for
    mean: torch.Tensor | None = None  # (3,) float64 in [0, 1], where asked for
    mean_square: torch.Tensor | None = None


@dataclass(frozen=True)
class ImageCheck:
    """`check(path)` checks an image; one object serves all worker processes.

    Args:
        sizes_to_hash: files of these sizes, in bytes, get a digest.
        measure_every: the brightness of one image in so many is measured; 0: of none.
    """

    sizes_to_hash: frozenset[int] = frozenset()
    measure_every: int = 0

    def check(self, path: str) -> CheckedImage:
        checked = CheckedImage()
        with captured_stderr() as messages:
            try:
                pixels = decode_image(path)
            except UserError as error:
                kind = UNREADABLE
                if os.path.isfile(path) and os.path.getsize(path) == 0:
                    kind = EMPTY
                checked.findings[kind] = str(error)
                return checked
        for message in "".join(messages).splitlines():
            if is_harmless(message):
                checked.notes.append("unusual headers")
            else:
                checked.findings[DAMAGED] = f"{path}: decoded, but damaged ({message.strip()}); replace it"
        self.check_pixels(path, pixels, checked)
        self.check_content(path, read_file(path), checked)
        return checked

    def check_pixels(self, path: str, pixels: torch.Tensor, checked: CheckedImage) -> None:
        if min(pixels.shape[-2:]) < MIN_SIDE:
            checked.notes.append(f"shorter side below {MIN_SIDE} pixels")
        flat = pixels.flatten(1)
        if (flat == flat[:, :1]).all():
            color = tuple(flat[:, 0].tolist())
            checked.findings[CONSTANT] = f"{path}: all of its pixels are {color}; is it the image that it should be?"
        if self.measure_every and zlib.crc32(os.fsencode(path)) % self.measure_every == 0:
            values = flat.double() / 255
            checked.mean = values.mean(1)
            checked.mean_square = values.square().mean(1)

    def check_content(self, path: str, content: bytearray, checked: CheckedImage) -> None:
        if len(content) in self.sizes_to_hash:
            checked.digest = hashlib.blake2b(content, digest_size=16).digest()
        if content.startswith(COMPRESSED) and content[-TAIL:] == bytes(TAIL):
            checked.findings[UNFINISHED] = f"{path}: ends in {TAIL} zero bytes or more; was it written to its end?"
        try:
            with warnings.catch_warnings(record=True) as warned, open_with_pillow(content) as image:
                warnings.simplefilter("always")
                if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    checked.notes.append("EXIF rotation, not applied")
                if getattr(image, "is_animated", False):
                    checked.notes.append("animated, first frame used")
                if image.mode not in ("RGB", "L", "P"):
                    checked.notes.append(f"{image.mode}, used as 8-bit RGB")
        except Exception:  # of a format, or of metadata, that Pillow alone stumbles over: the pixels were read
            checked.notes.append("unusual headers")
        else:
            checked.notes += [f"Pillow warns: {first_line(warning.message)}" for warning in warned]


def is_harmless(message: str) -> bool:
    """Whether a decoder's message is about metadata and not about pixels."""
    return not message.strip() or message.startswith("libpng warning") or "Unknown field with tag" in message


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Inside, what C libraries print to stderr is kept; the list gets it afterwards. libjpeg tells of damage so."""
    messages: list[str] = []
    stderr = 2
    saved = os.dup(stderr)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), stderr)
        try:
            yield messages
        finally:
            os.dup2(saved, stderr)
            os.close(saved)
            file.seek(0)
            messages.append(file.read().decode(errors="replace"))
