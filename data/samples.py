"""Samples as the loader's workers make them: uint8 images, and what belongs to each."""

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset

from data.decode import decode_image
from data.folder import ImageFolder
from data.geometry import evaluation_crops
from utils.distributed import shield_worker
from utils.seeding import keyed_numpy, keyed_torch


class TrainingImages(Dataset):
    """Augmented images by (epoch, index); the augmentation is a function of (seed, epoch, index)."""

    def __init__(self, folder: ImageFolder, transform: Callable[[torch.Tensor], torch.Tensor], seed: int):
        self.folder, self.transform, self.seed = folder, transform, seed

    def image(self, epoch: int, index: int) -> torch.Tensor:
        decoded = decode_image(self.folder.path(index))
        with keyed_torch(self.seed, "augmentation", epoch, index):
            return self.transform(decoded)


class PretrainingSamples(TrainingImages):
    """(image (3, S, S) uint8, keep_low bool): the filter coin is a function of (seed, epoch, index) too."""

    def __init__(self, folder, transform, seed: int, low_pass_probability: float):
        super().__init__(folder, transform, seed)
        self.low_pass_probability = low_pass_probability

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, bool]:
        coin = keyed_numpy(self.seed, "coin", *key).random()
        return self.image(*key), bool(coin < self.low_pass_probability)


class LabelledSamples(TrainingImages):
    """(image (3, S, S) uint8, class number)."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        return self.image(*key), int(self.folder.labels[key[1]])


class EvaluationSamples(Dataset):
    """(crops (sizes, 3, S, S) uint8, class number) by index: one decode for all sizes."""

    def __init__(self, folder: ImageFolder, resize_sizes: tuple[int, ...], crop_size: int, interpolation: str):
        self.folder, self.geometry = folder, (resize_sizes, crop_size, interpolation)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return evaluation_crops(decode_image(self.folder.path(index)), *self.geometry), int(self.folder.labels[index])


def batch_loader(samples: Dataset, batches, workers: int, device: torch.device) -> DataLoader:
    """A loader over lists of keys, pinned for a GPU; its workers are spared the rank's signals and die with it."""
    return DataLoader(
        samples, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
        worker_init_fn=shield_worker, prefetch_factor=4 if workers else None,
    )  # fmt: skip
