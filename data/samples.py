"""Samples as the loader's workers make them: uint8 images, and what belongs to each."""

import contextlib
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from data.augment import evaluation_crops
from data.decode import decode_image
from data.folder import ImageFolder
from utils.errors import UserError
from utils.process import shield_worker
from utils.seeding import keyed_numpy, keyed_torch

REPLACEMENTS = 20  # tries for an unreadable image


class TrainingSamples(Dataset):
    """(image (3, S, S) uint8, what belongs to it, what to tell) by (epoch, index), a function of these and the seed.

    Args:
        belonging: (epoch, index, number of the image taken) -> what the loss needs besides: `filter_coin`, `label`.
        skip_bad: take another image, drawn by the same key, for an unreadable one, and tell of it.
    """

    def __init__(self, folder: ImageFolder, transform: Callable, seed: int, belonging: Callable, skip_bad=False):
        self.folder, self.transform, self.seed = folder, transform, seed
        self.belonging, self.skip_bad = belonging, skip_bad

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, bool | int, str]:
        decoded, taken, told = self.decode(*key)
        with keyed_torch(self.seed, "augmentation", *key):
            return self.transform(decoded), self.belonging(*key, taken), told

    def decode(self, epoch: int, index: int) -> tuple[torch.Tensor, int, str]:
        try:
            return decode_image(self.folder.path(index)), index, ""
        except UserError as error:
            if not self.skip_bad:
                raise
            reason = str(error)
        for other in keyed_numpy(self.seed, "replacement", epoch, index).integers(len(self.folder), size=REPLACEMENTS):
            with contextlib.suppress(UserError):
                path = self.folder.path(other)
                return decode_image(path), int(other), f"{reason}; replaced by {path}"
        raise UserError(f"{reason}; nor can {REPLACEMENTS} images drawn in its place: run scripts/check_data.py")


def filter_coin(seed: int, low_pass_probability: float, epoch: int, index: int, _taken: int) -> bool:
    """keep_low of a sample: a function of (seed, epoch, index)."""
    return bool(keyed_numpy(seed, "coin", epoch, index).random() < low_pass_probability)


def label(folder: ImageFolder, _epoch: int, _index: int, taken: int) -> int:
    """The class number."""
    return int(folder.labels[taken])


class EvaluationSamples(Dataset):
    """(crops (sizes, 3, S, S) uint8, class number) by index: one decode for all sizes."""

    def __init__(self, folder: ImageFolder, resize_sizes: tuple[int, ...], crop_size: int, interpolation: str):
        self.folder, self.geometry = folder, (resize_sizes, crop_size, interpolation)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return evaluation_crops(decode_image(self.folder.path(index)), *self.geometry), int(self.folder.labels[index])


def fixed_images(folder: ImageFolder, count: int, size: int, interpolation: str) -> torch.Tensor:
    """At most `count` images, spread evenly over the folder: (n, 3, size, size) uint8; unreadable ones are left out."""
    count, crops = min(count, len(folder)), []
    for index in range(count):
        with contextlib.suppress(UserError):
            image = decode_image(folder.path(index * len(folder) // count))
            crops += evaluation_crops(image, (size,), size, interpolation)
    return torch.stack(crops) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8)


def collate(samples: list[tuple]) -> list:
    """default_collate's batch, whose images (B, …, 3, S, S) are HWC in memory as they come from decoder and resize."""
    images, *rest = default_collate([(image.movedim(-3, -1), *others) for image, *others in samples])
    return [images.movedim(-1, -3), *rest]


def batch_loader(
    samples: Dataset, batches, workers: int, device: torch.device, timeout_minutes: float = 0
) -> DataLoader:
    """A loader over lists of keys, pinned for a GPU; its workers are spared the rank's signals and die with it.

    A worker that gives no batch for timeout_minutes (0: no limit) is an error.
    """
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
        collate_fn=collate, worker_init_fn=shield_worker, prefetch_factor=4 if workers else None,
        timeout=60 * timeout_minutes if workers else 0,
    )  # fmt: skip
