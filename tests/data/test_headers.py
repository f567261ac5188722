"""What a header claims is read as the decoder reads it, and no more is believed than the bytes can hold."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.headers import BadImageError, JpegFrame, is_cut_short, jpeg_frame, refuse_bomb

SIDES = st.integers(1, 300)


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.booleans(), st.integers(1, 100), st.booleans(), st.binary(max_size=99))
def test_the_frame_of_a_jpeg_is_read_from_its_header(width, height, progressive, quality, gray, comment):
    file = io.BytesIO()
    image = Image.new("L" if gray else "RGB", (width, height))
    image.save(file, "JPEG", progressive=progressive, quality=quality, comment=comment)
    assert jpeg_frame(bytearray(file.getvalue())) == JpegFrame(0xC2 if progressive else 0xC0, width, height)
    assert not is_cut_short(bytearray(file.getvalue()))
    assert is_cut_short(bytearray(file.getvalue()[:-2]))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x02", b"\xff\xd8\xff\xff"]))
def test_what_does_not_begin_as_a_jpeg_does_is_left_to_pillow(rest, start):
    """A frame header is taken for one only after whole segments; nothing here ends in an error."""
    frame = jpeg_frame(bytearray(start + rest))
    assert frame is None or start == b"\xff\xd8\xff\xe0\x00\x02" or (start + rest)[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("before", [b"\xff\xd0", b"\xff\x01\x00\x02", b"\xff\xff", b"\x00", b"\xff\xd9"])
def test_a_jpeg_that_hides_its_frame_is_left_to_pillow(before):
    """Else a second, larger frame could follow one that only we see."""
    frame = b"\xff\xc0\x00\x11\x08" + (2).to_bytes(2, "big") * 2 + b"\x03" + bytes(9)
    assert jpeg_frame(bytearray(b"\xff\xd8" + frame)) == JpegFrame(0xC0, 2, 2)
    assert jpeg_frame(bytearray(b"\xff\xd8" + before + frame)) is None
    large = frame[:5] + b"\xff" * 4 + frame[9:]
    skipped = before + (2 + len(large)).to_bytes(2, "big") + large  # as if the marker had a length
    assert jpeg_frame(bytearray(b"\xff\xd8" + skipped + frame)) is None


def test_a_thumbnails_end_is_not_taken_for_the_end_of_the_image():
    thumbnail = b"\xff\xda" + bytes(50) + b"\xff\xd9"
    assert is_cut_short(bytearray(b"\xff\xd8" + thumbnail + b"\xff\xda" + bytes(500)))
    assert not is_cut_short(bytearray(b"\xff\xd8" + thumbnail + b"\xff\xda" + bytes(500) + b"\xff\xd9" + bytes(99)))


@pytest.mark.parametrize(
    ("width", "height", "length", "complaint"),
    [
        (4096, 4096, 35, None),  # 16.8 million pixels take 50 MB, and are believed of any file
        (4097, 4096, 35, "in 35 bytes"),
        (13_000, 10_000, 130_000_000 // 256 + 1, None),
        (13_000, 10_000, 400_000, "13000 × 10000 pixels in 400000 bytes"),
        (178_956_970, 1, 10**9, None),
        (178_956_971, 1, 10**9, "at most 178,956,970"),
    ],
)
def test_claims_are_believed_in_proportion_to_the_bytes(width, height, length, complaint):
    if complaint is None:
        refuse_bomb(width, height, length)
    else:
        with pytest.raises(BadImageError, match=complaint):
            refuse_bomb(width, height, length)
