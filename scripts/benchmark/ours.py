"""This project's parts as scripts/benchmark/benchmark.py measures them. Each class is a task of side_by_side.py."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from configs.schema import PretrainConfig
from data.augment import augmentations, evaluation_crops, train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.index import cache_file
from data.loader import collate
from data.samples import EvaluationSamples, TrainingSamples
from losses.frequency import MaskedFrequencyLoss
from models.frequency_filter import FrequencyFilter
from models.mfm import MaskedFrequencyModelling, masked_frequency_network
from models.trunk import make_trunk
from scripts.benchmark.workload import (
    ASPECT_RATIO,
    CROP_RATIO,
    FLIP_PROBABILITY,
    LEARNING_RATE,
    RADIUS,
    RAND_AUGMENT_MAGNITUDE,
    FilterAndLoss,
    LoadsImages,
    Recipe,
    noise_batch,
)
from utils.config import parse_command_line
from utils.distributed import World
from utils.precision import choose_precision, set_determinism, set_numerics
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

ROOT = Path(__file__).resolve().parents[2]


class OurInput(LoadsImages):
    """Files to batches of uint8 crops, as in pretraining."""

    def __init__(self, data_path: str, size: int, interpolation: str, images: int):
        folder = ImageFolder(data_path)
        super().__init__(images, total=len(folder))
        transform = crop_transform(size, interpolation)
        task = MaskedFrequencyModelling.from_config(PretrainConfig(), torch.device("cpu"))
        self.samples = TrainingSamples(folder, transform, seed=0, target_of=task.draw)

    def load(self, number: int) -> tuple:
        return self.samples[0, number]

    def collate(self, loaded: list) -> list:
        return collate(loaded)


def crop_transform(size: int, interpolation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The random crops that both sides make: (3, H, W) uint8 -> (3, size, size) uint8."""
    return train_transform(
        crop_size=size,
        crop_ratio=CROP_RATIO,
        aspect_ratio=ASPECT_RATIO,
        flip_probability=FLIP_PROBABILITY,
        interpolation=interpolation,
    )


class OurRandAugment(LoadsImages):
    """RandAugment of uint8 crops, with the strengths of RSB A3, in torchvision's or timm's style."""

    def __init__(self, style: str, data_path: str, size: int, images: int):
        self.crops = centre_crops(data_path, size, images)
        super().__init__(images, total=len(self.crops))
        [self.rand_augment] = augmentations(
            rand_augment_ops=2, rand_augment_magnitude=RAND_AUGMENT_MAGNITUDE, rand_augment_style=style
        )

    def load(self, number: int) -> torch.Tensor:
        return self.rand_augment(self.crops[number])

    def collate(self, loaded: list) -> list:
        return loaded


def centre_crops(data_path: str, size: int, count: int) -> list[torch.Tensor]:
    """The first `count` images of a folder, or all if they are fewer, each as (3, size, size) uint8."""
    folder = ImageFolder(data_path)
    crops = []
    for number in range(min(count, len(folder))):
        [crop] = evaluation_crops(decode_image(folder.path(number)), (size,), size)
        crops.append(crop)
    return crops


class DecodingAlone(LoadsImages):
    """Files to whole uint8 images, each forgotten at once."""

    def __init__(self, data_path: str, images: int):
        self.folder = ImageFolder(data_path)
        super().__init__(images, total=len(self.folder))

    def load(self, number: int) -> None:
        decode_image(self.folder.path(number))

    def collate(self, loaded: list) -> int:
        return len(loaded)


class EvaluationInput(LoadsImages):
    """Files to centre crops, one for each resize size, as in an evaluation."""

    def __init__(self, data_path: str, resize_sizes: list[int], size: int, interpolation: str, images: int):
        folder = ImageFolder(data_path)
        super().__init__(images, total=len(folder))
        self.samples = EvaluationSamples(folder, tuple(resize_sizes), size, interpolation)

    def load(self, number: int) -> tuple:
        return self.samples[number]

    def collate(self, loaded: list) -> list:
        return collate(loaded)


class OurFilterAndLoss(FilterAndLoss):
    def __init__(self, recipe: Recipe, batch: int, size: int, device: str):
        super().__init__(recipe, batch, size, device)
        self.frequency_filter = FrequencyFilter(RADIUS, output=recipe.output, clamp=recipe.clamp)
        self.frequency_loss = MaskedFrequencyLoss(eps=recipe.eps, reduction=recipe.reduction)

    def filtered(self, images: torch.Tensor) -> torch.Tensor:
        return self.frequency_filter(images, self.keep_low)

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        removed = self.frequency_filter.removed(self.keep_low, *target.shape[-2:])
        return self.frequency_loss(predicted, target, removed)


class OurCorruption:
    """Each call corrupts a batch of noise, and takes the loss of a prediction and its gradient.

    Args:
        words: settings over configs/pretrain_resnet50_paper.yaml, as on the command line.
    """

    def __init__(self, words: tuple[str, ...], batch: int, size: int, device: str):
        recipe = ["--config", str(ROOT / "configs/pretrain_resnet50_paper.yaml"), f"data.train_crop_size={size}"]
        config = parse_command_line(PretrainConfig, [*recipe, *words], "")
        self.task = MaskedFrequencyModelling.from_config(config, torch.device(device))
        self.images, _ = noise_batch(batch, size, device)
        self.choices = torch.tensor([self.task.draw(0, index) for index in range(batch)], device=device)
        self.predicted = torch.rand(batch, 3, size, size, device=device).requires_grad_()
        self.work = batch

    def __call__(self) -> None:
        clean, _, removed = self.task.corrupt(self.images, self.choices)
        self.task.frequency_loss(self.predicted, self.task.target(clean), removed).backward()
        self.predicted.grad = None


class OurStep:
    """A training step of configs/pretrain_resnet50.yaml on the same batch of noise at each call."""

    def __init__(self, model: str, precision: str, batch: int, size: int, device: str, compile_with: str | None = None):
        config = parse_command_line(PretrainConfig, ["--config", str(ROOT / "configs/pretrain_resnet50.yaml")], "")
        torch_device = torch.device(device)
        dtype = choose_precision(precision, torch_device)
        set_determinism(False)
        set_numerics(dtype, tf32=None)
        network = masked_frequency_network(make_trunk(model), out_channels=1)
        network = network.to(torch_device, memory_format=torch.channels_last)
        self.state = TrainingState(
            network,
            make_optimizer(network, config.optimizer),
            World(rank=0, size=1, local_size=1, device=torch_device),
            dtype,
            clip_grad_norm=config.optimizer.clip_grad_norm,
            compile_with=compile_with,
        )
        self.task = MaskedFrequencyModelling.from_config(config, torch_device)
        self.micro_batches = [noise_batch(batch, size, device)]
        self.work = batch

    def __call__(self) -> dict:
        return training_step(self.state, 0, LEARNING_RATE, self.micro_batches, self.task.loss)


class OurListing:
    """A folder's images, listed anew."""

    def __init__(self, data_path: str, files: int):
        self.data_path, self.work = data_path, files

    def __call__(self) -> int:
        shutil.rmtree(cache_file(self.data_path).parent, ignore_errors=True)
        return len(ImageFolder(self.data_path))


class CachedListing:
    """A folder's images, from the cache of an earlier listing."""

    def __init__(self, data_path: str, files: int):
        self.data_path, self.work = data_path, files

    def __call__(self) -> int:
        return len(ImageFolder(self.data_path))
