"""Images for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def image_folder(
    root: str | Path,
    classes: Sequence[str] = ("ant", "bee"),
    per_class: int = 4,
    size: tuple[int, int] = (40, 36),
    seed: int = 0,
) -> Path:
    """Write root/<class>/<n>.png with random pixels, `size` wide and high; returns root."""
    random = np.random.default_rng(seed)
    for name in classes:
        folder = Path(root) / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return Path(root)


def data_set(root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), train: int = 9, val: int = 3) -> Path:
    """Write root/train and root/val with so many images a class; returns root.

    27 training images, as there are without other numbers, are 3 steps of 8 and a tail of 3.
    """
    image_folder(root / "train", classes, per_class=train)
    image_folder(root / "val", classes, per_class=val, seed=1)
    return root
