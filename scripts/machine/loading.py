"""Whether the loader brings images as fast as a step takes them."""

import itertools
import math
import os
import time
from pathlib import Path

import torch

from data.augment import train_transform
from data.folder import ImageFolder
from data.loader import StepBatches, batch_loader
from data.samples import TrainingSamples
from models.mfm import MaskedFrequencyModelling
from scripts.machine.rows import Row, judged
from scripts.machine.workload import Workload, config_of
from utils.errors import UserError
from utils.limits import available_cores

LOADER = "loader"
MADE_PHOTOGRAPHS = 64
LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0
IMAGES_OF_A_BATCH = 32


def image_path(work: Workload, data_path: str | None) -> Path:
    """The training images of `data_path`, or JPEGs of 500 × 375 pixels that one rank of a machine makes.

    Raises: UserError if there is no data_path, and nothing to make photographs of.
    """
    if data_path is not None:
        return Path(data_path, "train")
    folder = work.folder / "photographs"
    try:
        from scripts.benchmark.photographs import make_photographs  # needs scikit-image, which training does not
    except ImportError as error:
        raise UserError("no images to load: give --data-path, or pip install scikit-image") from error
    if not folder.is_dir():
        make_photographs(folder, MADE_PHOTOGRAPHS)
    return folder


def loader_images_per_second(work: Workload, images: Path, workers: int) -> float:
    """Files to micro-batches on the device, by so many loader processes, as pretraining loads them.

    The first batch of each worker is not counted: it holds the worker's start.
    """
    config = config_of(work)
    folder = ImageFolder(images)
    transform = train_transform(
        crop_size=config.data.train_crop_size, crop_ratio=config.data.crop_ratio,
        aspect_ratio=config.data.aspect_ratio, flip_probability=config.data.flip_probability,
        interpolation=config.data.interpolation,
    )  # fmt: skip
    task = MaskedFrequencyModelling.from_config(config, torch.device("cpu"))
    samples = TrainingSamples(folder, transform, config.run.seed, target_of=task.draw)
    size = min(IMAGES_OF_A_BATCH, work.images)
    loader = batch_loader(
        samples, endless_batches(len(folder), size), workers, work.device, timeout_minutes=2,
        ranks=work.world.local_size, batch_bytes=3 * size * work.pixels**2,
    )  # fmt: skip
    batches = StepBatches(loader, accumulation=1, device=work.device)
    for _ in range(workers):
        batches.next_step()
    count, began = 0, time.monotonic()
    while time.monotonic() - began < LEAST_SECONDS or count < 4 * workers:
        batches.next_step()
        count += 1
        if time.monotonic() - began > MOST_SECONDS:
            break
    return count * size / (time.monotonic() - began)


def endless_batches(length: int, size: int):
    """Keys (epoch, number) of batches, round and round through so many images."""
    for first in itertools.count(0, size):
        yield [divmod(number, length) for number in range(first, first + size)]


def loader_row(loader_rate: float, step_rate: float, workers: int) -> Row:
    """Whether the loader keeps up with the step.

    Args:
        loader_rate, step_rate: images/s of a rank.
        workers: loader processes of the rank.
    """
    needed = math.ceil(workers * step_rate / loader_rate) if loader_rate > 0 else "more"
    remedy = (
        f"give each rank {needed} cores and data.workers={needed}, or train on smaller files "
        "(scripts/resize_images.py); else the device waits"
    )
    return judged(
        LOADER, f"images/s of {workers} workers a rank; the step's", loader_rate >= step_rate,
        f"{loader_rate:.0f}; {step_rate:.0f}", "at least the step's", remedy,
        {"loader_images_per_second": loader_rate, "step_images_per_second": step_rate, "workers": workers},
    )  # fmt: skip


def loader_rows(work: Workload, data_path: str | None, step_rate: float) -> tuple[list[Row], float]:
    """The row, and the slowest rank's images/s. All ranks load at once, as in a training."""
    workers = max(1, available_cores() // work.world.local_size)
    images = work.world.in_turn(lambda: image_path(work, data_path))
    rate = min(work.world.gather(loader_images_per_second(work, images, workers)))
    row = loader_row(rate, max(work.world.gather(step_rate)), workers)
    source = "made JPEGs of 500 × 375 pixels" if data_path is None else os.path.join(data_path, "train")
    return [row, Row(LOADER, "loaded images", f"{source}, crops of {work.pixels} pixels")], rate
