"""What several test files need."""

from pathlib import Path

import numpy as np
from PIL import Image


def image_folder(root, classes=("ant", "bee"), per_class=4, size=(40, 36), seed=0):
    """Write root/<class>/<n>.png with random pixels, `size` wide and high; returns root."""
    pixels = np.random.default_rng(seed)
    for name in classes:
        folder = Path(root) / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(pixels.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    return Path(root)
