"""Crops and resizes of uint8 images, (3, H, W) in and out, all from torchvision and always antialiased."""

from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode, v2


def train_transform(
    crop_size: int, crop_ratio: tuple[float, float], aspect_ratio: tuple[float, float], flip_probability: float,
    interpolation: str = "bicubic", rand_augment: tuple[int, int, int] = (0, 0, 2),
) -> Callable[[torch.Tensor], torch.Tensor]:  # fmt: skip
    """Random resized crop, flip, RandAugment. It draws from torch's CPU generator: call it inside `keyed_torch`.

    Args:
        crop_size: side of the result in pixels.
        crop_ratio: smallest and largest share of the area.
        aspect_ratio: narrowest and widest crop, width/height.
        flip_probability: of a horizontal flip.
        rand_augment: operations, magnitude, number of magnitudes; 0 operations turn it off.
    """
    crop = CropAndFlip(crop_size, crop_ratio, aspect_ratio, flip_probability, InterpolationMode(interpolation))
    operations, magnitude, magnitudes = rand_augment
    return v2.Compose([crop, v2.RandAugment(operations, magnitude, magnitudes)]) if operations else crop


class CropAndFlip:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip, draw for draw and pixel for pixel, in less time.

    A decoded image is HWC in memory; torch resizes that fast as a whole, but a window of it by a slower way. So the
    crop is copied to memory of its own first. And v2's general handling of inputs takes a tenth of a resize's time.
    """

    def __init__(self, crop_size, crop_ratio, aspect_ratio, flip_probability, interpolation):
        self.crop = v2.RandomResizedCrop(crop_size, crop_ratio, aspect_ratio)
        self.flip_probability, self.interpolation = flip_probability, interpolation

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.crop.make_params([image]).values()
        crop = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized = v2.functional.resize(crop, self.crop.size, interpolation=self.interpolation, antialias=True)
        return resized.flip(-1) if torch.rand(1) < self.flip_probability else resized


def evaluation_crops(
    image: torch.Tensor, resize_sizes: tuple[int, ...], crop_size: int, interpolation: str = "bicubic"
) -> torch.Tensor:
    """For each size: short side to that size, then the centre crop. (3, H, W) -> (sizes, 3, crop_size, crop_size)."""
    height, width = image.shape[-2:]
    longest = 16 * min(height, width)  # of 1×5000 pixels at size 235 the whole would come to 276 million
    if max(height, width) > longest:
        image = v2.functional.center_crop(image, [min(height, longest), min(width, longest)])
    mode = InterpolationMode(interpolation)
    resized = (v2.functional.resize(image, [size], interpolation=mode, antialias=True) for size in resize_sizes)
    crops = [v2.functional.center_crop(one, [crop_size]).permute(1, 2, 0) for one in resized]
    return torch.stack(crops).movedim(-1, -3)  # HWC in memory, as they are
