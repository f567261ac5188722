"""Samples as the loader's workers make them: uint8 images with their targets."""

import contextlib
from collections.abc import Callable

import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import center_crop

from data.augment import evaluation_crops
from data.decode import decode_image
from data.folder import ImageFolder
from data.sampling import SampleKey
from utils.errors import UserError
from utils.seeding import keyed_numpy, keyed_torch

REPLACEMENTS = 20  # images tried in place of an unreadable one; if all of them fail, the folder itself is broken

Target = bool | int | float  # the choice of a corruption, or a class number


class TrainingSamples(Dataset):
    """Training samples: `samples[epoch, index]` is (image (3, S, S) uint8, target, note).

    `samples[epoch, index, repeat]`, repeat from 1 on, is the same image augmented by other draws. A sample depends on
    nothing but its key and the seed. `note` says if another image was used, and why; else it is "".

    Args:
        transform: (3, H, W) uint8 -> (3, S, S) uint8; it draws from torch's CPU generator.
        target_of: target_of(epoch, index, used_index) is what the loss needs besides the image, such as the class
            number. `used_index` is the image that was used: `index`, or its replacement.
        skip_bad: replace an unreadable image by another one, drawn by the same key, instead of raising UserError.
    """

    def __init__(
        self,
        folder: ImageFolder,
        transform: Callable[[torch.Tensor], torch.Tensor],
        seed: int,
        target_of: Callable[[int, int, int], Target],
        skip_bad: bool = False,
    ):
        self.folder = folder
        self.transform = transform
        self.seed = seed
        self.target_of = target_of
        self.skip_bad = skip_bad

    def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, Target, str]:
        epoch, index = key[:2]
        image, used_index, note = self.decode(epoch, index)
        with keyed_torch(self.seed, "augmentation", *key):
            image = self.transform(image)
        return image, self.target_of(epoch, index, used_index), note

    def decode(self, epoch: int, index: int) -> tuple[torch.Tensor, int, str]:
        """Decode the image, or its replacement. Returns: image (3, H, W) uint8, used_index, note."""
        try:
            return decode_image(self.folder.path(index)), index, ""
        except UserError as error:
            if not self.skip_bad:
                raise
            reason = str(error)
        draw = keyed_numpy(self.seed, "replacement", epoch, index)
        for used_index in draw.integers(len(self.folder), size=REPLACEMENTS).tolist():
            path = self.folder.path(used_index)
            with contextlib.suppress(UserError):
                return decode_image(path), used_index, f"{reason}; replaced by {path}"
        raise UserError(f"{reason}; nor can {REPLACEMENTS} images drawn in its place: run scripts/check_data.py")


class EvaluationSamples(Dataset):
    """Evaluation samples: `samples[index]` is (crops (sizes, 3, S, S) uint8, class number). One decode for all sizes.

    Args:
        resize_sizes: short sides before the centre crop, in pixels.
        crop_size: side S of the centre crop, in pixels.
    """

    def __init__(self, folder: ImageFolder, resize_sizes: tuple[int, ...], crop_size: int, interpolation: str):
        self.folder = folder
        self.resize_sizes = resize_sizes
        self.crop_size = crop_size
        self.interpolation = interpolation

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = decode_image(self.folder.path(index))
        crops = evaluation_crops(image, self.resize_sizes, self.crop_size, self.interpolation)
        return crops, int(self.folder.labels[index])


class CentreSamples(EvaluationSamples):
    """Evaluation samples whose images are cropped as they are, without a resize, as ImageNet-C asks for.

    Raises: UserError if an image is smaller than the crop.
    """

    def __init__(self, folder: ImageFolder, crop_size: int):
        super().__init__(folder, (), crop_size, "bicubic")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.folder.path(index)
        image = decode_image(path)
        height, width = image.shape[1:]
        if min(height, width) < self.crop_size:
            raise UserError(
                f"{path}: {width}×{height} pixels, smaller than data.val_crop_size = {self.crop_size}; "
                "these images are cropped as they are, so give a smaller crop, or the larger images"
            )
        return center_crop(image, [self.crop_size])[None], int(self.folder.labels[index])

    def size_warning(self) -> str | None:
        """A warning if the first image is larger than the crop, so that a part of what it shows is left out."""
        path = self.folder.path(0)
        try:
            height, width = decode_image(path).shape[1:]
        except UserError:  # the evaluation will say so
            return None
        if min(height, width) <= self.crop_size:
            return None
        return (
            f"warning: {path}: {width}×{height} pixels, of which the middle {self.crop_size}×{self.crop_size} are "
            "scored: these images are cropped as they are. Published errors are of whole images of 224 pixels"
        )


class ListedSamples(Dataset):
    """Images by path for a prediction: `samples[index]` is (crops (1, 3, S, S) uint8, note).

    An image that cannot be read is black, and `note` says why; else that is "".
    """

    def __init__(self, paths: list[str], resize_size: int, crop_size: int, interpolation: str):
        self.paths = paths
        self.resize_size = resize_size
        self.crop_size = crop_size
        self.interpolation = interpolation

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        try:
            image = decode_image(self.paths[index])
        except UserError as error:
            return torch.zeros(1, 3, self.crop_size, self.crop_size, dtype=torch.uint8), str(error)
        return evaluation_crops(image, (self.resize_size,), self.crop_size, self.interpolation), ""


def fixed_images(folder: ImageFolder, count: int, size: int, interpolation: str) -> torch.Tensor:
    """The same few images every time, spread evenly over the folder, to show what a model does.

    Returns: (n, 3, size, size) uint8. n is at most `count`: unreadable images are left out.
    """
    count = min(count, len(folder))
    crops = []
    for number in range(count):
        path = folder.path(number * len(folder) // count)
        with contextlib.suppress(UserError):
            (crop,) = evaluation_crops(decode_image(path), (size,), size, interpolation)
            crops.append(crop)
    if not crops:
        return torch.empty(0, 3, size, size, dtype=torch.uint8)
    return torch.stack(crops)
