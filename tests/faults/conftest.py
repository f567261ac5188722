"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.helpers import image_folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """16 training images (2 steps of 8) and 4 validation images in 2 classes."""
    image_folder(tmp_path / "images/train", per_class=8)
    image_folder(tmp_path / "images/val", per_class=2, seed=1)
    return tmp_path / "images"
