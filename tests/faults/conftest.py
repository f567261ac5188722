"""What the tests of faults share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.helpers import data_set


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """16 training images (2 steps of 8) and 4 validation images in 2 classes."""
    return data_set(tmp_path / "images", ("ant", "bee"), train=8, val=2)


@pytest.fixture(autouse=True)
def terminals_can_hang_up() -> Iterator[None]:
    """The tests themselves may run under nohup, which every job of theirs would inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
