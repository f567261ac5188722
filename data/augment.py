"""Training and evaluation crops of uint8 images, (3, H, W) in and out. Every resize is torchvision's, antialiased."""

from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode, v2

from data.rand_augment import RandAugment, TimmRandAugment

LONGEST_SIDE = 16  # times the short side; what lies beyond is cropped away before a resize


def train_transform(
    *,
    crop_size: int,
    crop_ratio: tuple[float, float],
    aspect_ratio: tuple[float, float],
    flip_probability: float,
    interpolation: str = "bicubic",
    rand_augment_ops: int = 0,
    rand_augment_magnitude: int = 0,
    rand_augment_bins: int = 10,
    rand_augment_style: str = "torchvision",
    rand_augment_noise: float = 0.5,
    rand_augment_probability: float = 0.5,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Random resized crop, then horizontal flip, then RandAugment.

    It draws from torch's CPU generator: call it inside `keyed_torch`. A new operation belongs at the end, where it does
    not move what the others draw.

    Args:
        crop_size: side of the result in pixels.
        crop_ratio: smallest and largest share of the image's area.
        aspect_ratio: narrowest and widest crop, width / height.
        flip_probability: of a horizontal flip.
        interpolation: of the resize, and of RandAugment's shears and rotations.
        rand_augment_ops: RandAugment operations an image; 0 turns it off.
        rand_augment_magnitude: torchvision's style: strength of each operation, from 0 to rand_augment_bins - 1;
            timm's style: mean of the strengths, from 0 to 10.
        rand_augment_bins: torchvision's style: number of strengths; the last is the strongest.
        rand_augment_style: "torchvision" or "timm".
        rand_augment_noise: timm's style: standard deviation of the strengths.
        rand_augment_probability: timm's style: of each operation to be applied.
        mean: of the data set, channels in [0, 1]; timm's style fills borders with it.
    Returns: a function (3, H, W) uint8 -> (3, crop_size, crop_size) uint8.
    """
    crop_and_flip = CropAndFlip(
        crop_size=crop_size,
        crop_ratio=crop_ratio,
        aspect_ratio=aspect_ratio,
        flip_probability=flip_probability,
        interpolation=InterpolationMode(interpolation),
    )
    if rand_augment_ops == 0:
        return crop_and_flip
    if rand_augment_style == "timm":
        rand_augment = TimmRandAugment(
            operations=rand_augment_ops,
            magnitude=rand_augment_magnitude,
            noise=rand_augment_noise,
            probability=rand_augment_probability,
            interpolation=interpolation,
            mean=mean,
        )
    else:
        rand_augment = RandAugment(
            num_ops=rand_augment_ops,
            magnitude=rand_augment_magnitude,
            num_magnitude_bins=rand_augment_bins,
            interpolation=InterpolationMode(interpolation),
        )
    return v2.Compose([crop_and_flip, rand_augment])


class CropAndFlip:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip, draw for draw and pixel for pixel, in less time.

    A decoded image is HWC in memory. torch resizes a whole HWC image fast, but a window of one slowly, so we copy the
    crop to memory of its own first. We also avoid v2's general handling of inputs, a tenth of a resize's time.
    """

    def __init__(
        self,
        *,
        crop_size: int,
        crop_ratio: tuple[float, float],
        aspect_ratio: tuple[float, float],
        flip_probability: float,
        interpolation: InterpolationMode,
    ):
        self.random_crop = v2.RandomResizedCrop(crop_size, scale=crop_ratio, ratio=aspect_ratio)
        self.flip_probability = flip_probability
        self.interpolation = interpolation

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        window = self.random_crop.make_params([image])
        bottom = window["top"] + window["height"]
        right = window["left"] + window["width"]
        crop = image[:, window["top"] : bottom, window["left"] : right]
        crop = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # HWC in memory
        resized = v2.functional.resize(crop, self.random_crop.size, interpolation=self.interpolation, antialias=True)
        if torch.rand(1) < self.flip_probability:
            return resized.flip(-1)
        return resized


def evaluation_crops(
    image: torch.Tensor, resize_sizes: tuple[int, ...], crop_size: int, interpolation: str = "bicubic"
) -> torch.Tensor:
    """For each size: resize the short side to it, then take the centre crop.

    Args:
        image: (3, H, W) uint8.
        resize_sizes: short sides in pixels.
        crop_size: side of the crop in pixels.
    Returns: (len(resize_sizes), 3, crop_size, crop_size) uint8, HWC in memory.
    """
    height, width = image.shape[-2:]
    longest = LONGEST_SIDE * min(height, width)
    if max(height, width) > longest:
        # Resizing 1 × 5000 pixels to a short side of 235 would give 276 million pixels. The centre crop sees none of
        # what is cut away here.
        image = v2.functional.center_crop(image, [min(height, longest), min(width, longest)])
    mode = InterpolationMode(interpolation)
    crops = []
    for size in resize_sizes:
        resized = v2.functional.resize(image, [size], interpolation=mode, antialias=True)
        crops.append(v2.functional.center_crop(resized, [crop_size]).permute(1, 2, 0))
    return torch.stack(crops).movedim(-1, -3)
