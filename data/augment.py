"""Training and evaluation crops of uint8 images, (3, H, W) in and out. Every resize is torchvision's, antialiased."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from data.rand_augment import RandAugment, TimmRandAugment, eight_bit_colour

LONGEST_SIDE = 16  # times the short side; what lies beyond is cropped away before a resize

Transform = Callable[[torch.Tensor], torch.Tensor]  # (3, H, W) uint8 -> (3, H, W) uint8

# What may stand in place of RandAugment: torchvision's first classes, with the draws and pixels that CoinCheung/MFM has
# from them. AugMix works on tensors, which torchvision does not shear or rotate by bicubic interpolation.
AUTO_AUGMENTS: dict[str, Callable[[InterpolationMode], Transform]] = {
    "auto_augment": lambda mode: on_pillow_images(transforms.AutoAugment(interpolation=mode)),
    "trivial_augment_wide": lambda mode: on_pillow_images(transforms.TrivialAugmentWide(interpolation=mode)),
    "augmix": lambda mode: transforms.AugMix(interpolation=InterpolationMode.BILINEAR),
}


def on_pillow_images(transform: Callable[[Image.Image], Image.Image]) -> Transform:
    return v2.Compose([v2.ToPILImage(), transform, v2.PILToTensor()])


def train_transform(
    *,
    crop_size: int,
    crop_ratio: tuple[float, float],
    aspect_ratio: tuple[float, float],
    flip_probability: float,
    interpolation: str = "bicubic",
    then: Sequence[Transform] = (),
) -> Transform:
    """Random resized crop, then horizontal flip, then others, as `augmentations` makes them.

    It draws from torch's CPU generator: call it inside `keyed_torch`. A new operation belongs at the end, where it does
    not move what the others draw.

    Args:
        crop_size: side of the result in pixels.
        crop_ratio: smallest and largest share of the image's area.
        aspect_ratio: narrowest and widest crop, width / height.
        flip_probability: of a horizontal flip.
    Returns: a function (3, H, W) uint8 -> (3, crop_size, crop_size) uint8.
    """
    crop_and_flip = CropAndFlip(
        crop_size=crop_size,
        crop_ratio=crop_ratio,
        aspect_ratio=aspect_ratio,
        flip_probability=flip_probability,
        interpolation=InterpolationMode(interpolation),
    )
    return v2.Compose([crop_and_flip, *then])


def augmentations(
    *,
    rand_augment_ops: int = 0,
    rand_augment_style: str = "torchvision",
    rand_augment_magnitude: int = 6,
    rand_augment_bins: int = 10,
    rand_augment_noise: float = 0.5,
    rand_augment_probability: float = 0.5,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    interpolation: str = "bicubic",
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> list[Transform]:
    """RandAugment or another in its place, then random erasing (Zhong et al., arXiv 1708.04896).

    Args:
        rand_augment_ops: RandAugment's operations an image; 0 turns it off.
        rand_augment_style: "torchvision" (RandAugment takes magnitude and bins) or "timm" (TimmRandAugment takes
            magnitude, noise and probability).
        auto_augment: a name in AUTO_AUGMENTS; rand_augment_ops must be 0 then.
        random_erasing: probability that a rectangle of 2 to 33 % of the area takes the colour `mean`. torchvision and
            CoinCheung/MFM set it to 0 after normalisation, which is the same but for half a level of 255.
        interpolation: of shears and rotations, "bilinear" or "bicubic".
        mean: colour of the data set, channels in [0, 1]. timm's style fills borders with it, torchvision's with black.
    """
    mode = InterpolationMode(interpolation)
    steps: list[Transform] = []
    if auto_augment is not None:
        steps.append(AUTO_AUGMENTS[auto_augment](mode))
    if rand_augment_ops > 0 and rand_augment_style == "timm":
        noise, probability = rand_augment_noise, rand_augment_probability
        steps.append(TimmRandAugment(rand_augment_ops, rand_augment_magnitude, noise, probability, interpolation, mean))
    elif rand_augment_ops > 0:
        steps.append(RandAugment(rand_augment_ops, rand_augment_magnitude, rand_augment_bins, mode))
    if random_erasing > 0:
        steps.append(v2.RandomErasing(p=random_erasing, value=eight_bit_colour(mean)))
    return steps


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
