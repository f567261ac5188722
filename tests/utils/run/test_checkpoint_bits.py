"""Every bit of a small checkpoint's zip directory and headers, flipped: refused, or of no consequence.

The zip format protects the content of each entry by a checksum, but not what its headers say about it. A flipped bit
there has made torch read memory that was never written, and take it for a weight.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from tests.support.comparing import unequal
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.faults  # ten thousand damaged files
LOCAL_HEADER_BYTES = 30  # before the name and the extra field, whose lengths are its last four bytes


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    torch.save({"model": {"w": torch.arange(1.0, 5.0)}, "step": 3}, path)
    return path


def header_positions(path: Path) -> list[int]:
    """Positions of the bytes that are no content of an entry: local headers, central directory, end records."""
    whole = path.read_bytes()
    positions = set(range(len(whole)))
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            lengths = whole[entry.header_offset + LOCAL_HEADER_BYTES - 4 : entry.header_offset + LOCAL_HEADER_BYTES]
            name_length, extra_length = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
            start = entry.header_offset + LOCAL_HEADER_BYTES + name_length + extra_length
            positions -= set(range(start, start + entry.compress_size))
    return sorted(positions)


def test_no_flipped_bit_of_the_directory_passes_for_a_weight(saved, tmp_path):
    whole, expected = saved.read_bytes(), read_checkpoint(saved)
    path = tmp_path / "flipped.pt"
    refused = harmless = 0
    for position in header_positions(saved):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                content = read_checkpoint(path)
            except UserError:
                refused += 1
                continue
            assert unequal(content, expected) == [], f"bit {bit} of byte {position}"
            harmless += 1
    assert refused > 1000 and harmless > 1000  # names and sizes, and padding: both kinds were met
