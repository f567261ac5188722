"""Photographs to measure with, where there is no ImageNet: crops of those that scikit-image ships.

JPEGs of 500 × 375 pixels or upright, as ImageNet's mostly are, all different.
"""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

SOURCES = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "ihc.png",
    "retina.jpg",
)
WIDE, UPRIGHT = (500, 375), (375, 500)
QUALITY = 95


def make_photographs(root: Path, count: int, classes: int = 4) -> Path:
    """Write root/class_<n>/<n>.jpg; returns root."""
    folder = Path(skimage.__file__).parent / "data"
    sources = [Image.open(folder / name, formats=["JPEG", "PNG", "TIFF"]).convert("RGB") for name in SOURCES]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = random_crop(sources[number % len(sources)], generator)
        path = root / f"class_{number % classes}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.save(path, quality=QUALITY)
    return root


def random_crop(source: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A window of 75 to 100 % of the largest one that fits, a side, resized."""
    size = WIDE if generator.random() < 0.75 else UPRIGHT
    largest = min(source.width / size[0], source.height / size[1])
    width = round(size[0] * largest * generator.uniform(0.75, 1))
    height = round(size[1] * largest * generator.uniform(0.75, 1))
    left = generator.integers(source.width - width + 1)
    top = generator.integers(source.height - height + 1)
    window = (left, top, left + width, top + height)
    return source.resize(size, Image.Resampling.LANCZOS, window)
