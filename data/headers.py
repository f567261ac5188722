"""What the header of an image file claims, read before anything is decoded: a small file can claim all memory."""

from dataclasses import dataclass

MAX_PIXELS = 178_956_970  # of an image; Pillow's limit
# Below, any claim is believed: 16.8 million pixels are 50 MB. Above, a claim must bear some relation to the bytes.
PIXELS_BELIEVED = 2**24
# Photographs have 1 to 20 pixels a byte, one grey as a JPEG 170. A hostile header has 100,000.
MAX_PIXELS_PER_BYTE = 256
# Each scan of a progressive JPEG goes over the whole image again, and takes 10 bytes of the file. Usual are 6 to 12.
MAX_SCANNED_PIXELS = 12 * MAX_PIXELS

JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PALETTE = 3  # a color type
BASELINE, EXTENDED = 0xC0, 0xC1  # kinds of JPEG frames whose scans do not refine each other


class BadImageError(Exception):
    """Why the content of a file is no image that can be used. The file's name and the remedy are added later."""


@dataclass(frozen=True)
class JpegFrame:
    """The frame header of a JPEG."""

    kind: int  # second byte of the marker
    width: int
    height: int


@dataclass(frozen=True)
class PngHeader:
    """What is used of the first chunk of a PNG."""

    width: int
    height: int
    bits: int  # of a sample, or of a color number
    color_type: int


def refuse_bomb(width: int, height: int, length: int) -> None:
    """Raise BadImageError if an image of width × height pixels cannot be expected in a file of `length` bytes."""
    claim = f"refused before decoding: it claims {width} × {height} pixels"
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{claim}, and at most {MAX_PIXELS:,} are read")
    if width * height > max(PIXELS_BELIEVED, MAX_PIXELS_PER_BYTE * length):
        raise BadImageError(f"{claim} in {length} bytes, and at most {MAX_PIXELS_PER_BYTE} a byte are believed")


def refuse_scans(width: int, height: int, content: bytearray) -> None:
    """Raise BadImageError if a progressive JPEG goes over its pixels so often that this takes minutes."""
    scans = content.count(b"\xff\xda")
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise BadImageError(
            f"refused before decoding: its {scans} scans of {width} × {height} pixels are more than "
            f"{MAX_SCANNED_PIXELS:,} together"
        )


def jpeg_frame(content: bytearray) -> JpegFrame | None:
    """The frame header of a JPEG; None if it does not stand where it should, which Pillow then looks into.

    Pillow could look into every file, but takes 4 % of a decode for it.

    A file must not get past the check by showing us one frame and the decoder a larger one. So a frame header counts
    only if nothing but whole segments stands before it. tests/data/test_headers.py tries frames behind fill bytes,
    behind stray bytes, and behind markers that have no length, also read as if they had one: Pillow gets them all.
    """
    header = bytes(content[:65536])
    if not header.startswith(b"\xff\xd8"):
        return None
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
            return JpegFrame(kind, width, height)
        at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
    return None


def is_cut_short(content: bytearray) -> bool:
    """Whether a JPEG has no end marker after its last scan."""
    end = content.rfind(b"\xff\xd9")
    return end < 0 or content.find(b"\xff\xda", end) >= 0


def png_header(content: bytearray) -> PngHeader:
    """The header of a PNG. Raises: BadImageError if the file does not begin with it."""
    if content[12:16] != b"IHDR" or len(content) < 33:
        raise BadImageError("not a readable image (a PNG without its header)")
    width = int.from_bytes(content[16:20], "big")
    height = int.from_bytes(content[20:24], "big")
    return PngHeader(width, height, bits=content[24], color_type=content[25])


def lacks_colors(content: bytearray, header: PngHeader) -> bool:
    """Whether a PNG has a palette without a color for every number that its pixels can have."""
    if header.color_type != PNG_PALETTE:
        return False
    at = 33  # the first chunk after the header: length, name, data, checksum
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"PLTE":
            return length < 3 * 2**header.bits
        at += 12 + length
    return True
