"""Crops and resizes of uint8 images, (3, H, W) in and out, all from torchvision and always antialiased."""

import torch
from torchvision.transforms import InterpolationMode, v2


def train_transform(
    crop_size: int, crop_ratio: tuple[float, float], aspect_ratio: tuple[float, float], flip_probability: float,
    interpolation: str = "bicubic", rand_augment: tuple[int, int, int] = (0, 0, 2),
) -> v2.Compose:  # fmt: skip
    """Random resized crop, flip, RandAugment. It draws from torch's CPU generator: call it inside `keyed_torch`.

    Args:
        crop_size: side of the result in pixels.
        crop_ratio: smallest and largest share of the area.
        aspect_ratio: narrowest and widest crop, width/height.
        flip_probability: of a horizontal flip.
        rand_augment: operations, magnitude, number of magnitudes; 0 operations turn it off.
    """
    steps = [
        RandomResizedCrop(crop_size, crop_ratio, aspect_ratio, InterpolationMode(interpolation), antialias=True),
        v2.RandomHorizontalFlip(flip_probability),
    ]
    operations, magnitude, magnitudes = rand_augment
    if operations:
        steps.append(v2.RandAugment(operations, magnitude, magnitudes))
    return v2.Compose(steps)


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, pixel for pixel, but the crop is copied to memory of its own first.

    A decoded image is HWC in memory; torch resizes that fast as a whole, and a window of it by a slower way.
    """

    def transform(self, inpt: torch.Tensor, params: dict[str, int]) -> torch.Tensor:
        crop = v2.functional.crop(inpt, **params).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize(crop, self.size, interpolation=self.interpolation, antialias=self.antialias)


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
    return torch.stack([v2.functional.center_crop(one, [crop_size]) for one in resized])
