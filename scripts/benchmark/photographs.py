"""Photographs to measure with, where there is no ImageNet: crops of those that scikit-image ships.

JPEGs of 500 × 375 pixels or upright, as ImageNet's mostly are, all different.
"""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

SOURCES = "astronaut.png coffee.png chelsea.png rocket.jpg motorcycle_left.png motorcycle_right.png ihc.png retina.jpg"
SIZE, QUALITY = (500, 375), 95


def make_photographs(root: Path, count: int, classes: int = 4) -> Path:
    """Write root/class_<n>/<n>.jpg; returns root."""
    draw = np.random.default_rng(0)
    sources = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in SOURCES.split()]
    for number in range(count):
        source, size = sources[number % len(sources)], SIZE if draw.random() < 0.75 else SIZE[::-1]
        largest = min(source.width / size[0], source.height / size[1])
        width, height = (round(side * largest * draw.uniform(0.75, 1)) for side in size)
        left, top = draw.integers(source.width - width + 1), draw.integers(source.height - height + 1)
        photograph = source.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
        folder = root / f"class_{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"{number}.jpg", quality=QUALITY)
    return root
