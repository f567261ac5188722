"""RandAugment (Cubuk et al., arXiv 1909.13719) of uint8 images, (3, H, W) in and out: torchvision's and timm's.

Whatever is drawn comes from torch's CPU generator: call these inside `keyed_torch`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode, v2

# Pillow computes these in another way than torchvision's tensor code: it can resample by bicubic interpolation, or its
# rounding differs by one level.
ON_PILLOW_IMAGES = ("ShearX", "ShearY", "Rotate", "Color", "Contrast", "Sharpness", "AutoContrast")


class RandAugment(v2.RandAugment):
    """torchvision's RandAugment, draw for draw, with the pixels that CoinCheung/MFM gets from Pillow images.

    Operations of which tensors have the same pixels work on tensors, where they take less time.
    """

    # The first version of torchvision's classes, which CoinCheung/MFM uses, has levels of 255 as thresholds. The second
    # has shares, and 255 × 0.33333334 is above 85: on a Pillow image that leaves a pixel of 85 as it is.
    _AUGMENTATION_SPACE = {  # noqa: RUF012, torchvision has it so
        **v2.RandAugment._AUGMENTATION_SPACE,
        "Solarize": (lambda num_bins, height, width: torch.linspace(255.0, 0.0, num_bins), False),
    }

    def _apply_image_or_video_transform(
        self, image: torch.Tensor, transform_id: str, magnitude: float, interpolation: InterpolationMode, fill: dict
    ) -> torch.Tensor:
        """torchvision's own method, which its `forward` calls for each operation that it drew."""
        if transform_id == "Solarize":
            return v2.functional.solarize(image, threshold=magnitude)
        if transform_id in ON_PILLOW_IMAGES:
            pillow = v2.functional.to_pil_image(image)
            pillow = super()._apply_image_or_video_transform(pillow, transform_id, magnitude, interpolation, fill)
            return v2.functional.pil_to_tensor(pillow)
        # Translations are by whole pixels, so the nearest pixel is the bicubic value.
        nearest = InterpolationMode.NEAREST
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, nearest, fill)


def eight_bit_colour(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    """Channels in [0, 1] -> levels from 0 to 255, the nearest ones."""
    red, green, blue = [max(0, min(255, round(255 * channel))) for channel in colour]
    return red, green, blue


@dataclass(frozen=True)
class Warp:
    """How a shear, a rotation or a translation resamples, and the colour that it fills the border with."""

    interpolation: Image.Resampling
    fill: tuple[int, int, int]

    def affine(self, image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
        """Pixel (x, y) of the result is pixel (a x + b y + c, d x + e y + f) of the image; coefficients: a to f."""
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, coefficients, resample=self.interpolation, fillcolor=self.fill)

    def rotate(self, image: Image.Image, degrees: float) -> Image.Image:
        return image.rotate(degrees, resample=self.interpolation, fillcolor=self.fill)


def blend(enhancer: type, image: Image.Image, strength: float) -> Image.Image:
    """By a factor from 0.1 to 1.9, where 1 leaves the image as it is."""
    return enhancer(image).enhance(max(0.1, 1 + 0.9 * strength))


def brighten_below(image: Image.Image, limit: int, added: int) -> Image.Image:
    """Adds to the levels below the limit."""
    table = [min(255, level + added) for level in range(limit)] + list(range(limit, 256))
    return image.point(table * 3)


def keep_bits(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each level; 0 makes the image black, which Pillow 13's own posterize refuses to do."""
    dropped = 8 - bits
    table = [level >> dropped << dropped for level in range(256)]
    return image.point(table * 3)


# Each takes (image, strength, warp). Strength is from -1 to 1; where a direction means nothing, its sign is ignored.
TIMM_OPERATIONS: dict[str, Callable[[Image.Image, float, Warp], Image.Image]] = {
    "AutoContrast": lambda image, strength, warp: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, warp: ImageOps.equalize(image),
    "Invert": lambda image, strength, warp: ImageOps.invert(image),
    "Rotate": lambda image, strength, warp: warp.rotate(image, 30 * strength),
    "Posterize": lambda image, strength, warp: keep_bits(image, 4 - int(4 * abs(strength))),
    "Solarize": lambda image, strength, warp: ImageOps.solarize(image, 256 - int(256 * abs(strength))),
    "SolarizeAdd": lambda image, strength, warp: brighten_below(image, 128, int(110 * abs(strength))),
    "Color": lambda image, strength, warp: blend(ImageEnhance.Color, image, strength),
    "Contrast": lambda image, strength, warp: blend(ImageEnhance.Contrast, image, strength),
    "Brightness": lambda image, strength, warp: blend(ImageEnhance.Brightness, image, strength),
    "Sharpness": lambda image, strength, warp: blend(ImageEnhance.Sharpness, image, strength),
    "ShearX": lambda image, strength, warp: warp.affine(image, (1, 0.3 * strength, 0, 0, 1, 0)),
    "ShearY": lambda image, strength, warp: warp.affine(image, (1, 0, 0, 0.3 * strength, 1, 0)),
    "TranslateX": lambda image, strength, warp: warp.affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0)),
    "TranslateY": lambda image, strength, warp: warp.affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height)),
}
STRONGEST = 10  # timm's levels are from 0 to it


@dataclass(frozen=True)
class DrawnOperation:
    """One of TIMM_OPERATIONS, and how strongly it works: from -1 to 1."""

    name: str
    strength: float


class TimmRandAugment:
    """timm's RandAugment with "increasing" operations: rand-m6-mstd0.5-inc1 is magnitude 6, noise 0.5.

    Operations are drawn with replacement, and each is applied with a probability.

    Args:
        operations: drawn for an image.
        magnitude: mean level of an operation, from 0 to 10.
        noise: standard deviation of the level, which is then clipped to 0 … 10.
        probability: of each drawn operation to be applied.
        interpolation: of shears, rotations and translations.
        mean: colour that they fill the border with, channels in [0, 1].
    """

    def __init__(
        self, operations: int, magnitude: float, noise: float, probability: float, interpolation: str,
        mean: tuple[float, float, float],
    ):  # fmt: skip
        self.operations = operations
        self.magnitude = magnitude
        self.noise = noise
        self.probability = probability
        self.warp = Warp(Image.Resampling[interpolation.upper()], eight_bit_colour(mean))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        drawn = self.draw()
        if not drawn:
            return image
        pillow = v2.functional.to_pil_image(image)
        for operation in drawn:
            pillow = TIMM_OPERATIONS[operation.name](pillow, operation.strength, self.warp)
        return v2.functional.pil_to_tensor(pillow)

    def draw(self) -> list[DrawnOperation]:
        """The operations to apply to one image, in order."""
        names = tuple(TIMM_OPERATIONS)
        drawn = []
        for _ in range(self.operations):
            name = names[int(torch.randint(len(names), ()))]
            applied = bool(torch.rand(()) < self.probability)
            level = self.magnitude + self.noise * torch.randn((), dtype=torch.float64).item()
            strength = max(0.0, min(level, STRONGEST)) / STRONGEST
            if torch.rand(()) < 0.5:
                strength = -strength
            if applied:
                drawn.append(DrawnOperation(name, strength))
        return drawn
