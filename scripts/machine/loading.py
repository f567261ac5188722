"""Whether the loader brings images as fast as a step takes them."""

import importlib.util
import itertools
import math
import time
from collections.abc import Iterator

import torch

from data.augment import train_transform
from data.folder import ImageFolder
from data.loader import StepBatches, batch_loader
from data.parts import training_root
from data.samples import TrainingSamples
from data.sampling import epoch_order
from models.mfm import MaskedFrequencyModelling
from scripts.machine.rows import Row, judged
from scripts.machine.workload import Workload, config_of
from utils.distributed import World
from utils.errors import UserError
from utils.limits import available_cores

LOADER = "loader"
MADE_PHOTOGRAPHS = 64
LEAST_SECONDS, MOST_SECONDS = 2.0, 10.0
IMAGES_OF_A_BATCH = 32
ORDER_SEED = 0


def open_images(work: Workload, data_path: str | None) -> ImageFolder:
    """The images of `data_path` as pretraining lists them, or JPEGs of 500 × 375 pixels, which one rank of a machine
    makes.

    Raises: UserError if there are no images to load, nor anything to make photographs of.
    """
    if data_path is not None:
        return ImageFolder(training_root(data_path), labelled=False)
    if importlib.util.find_spec("skimage") is None:
        raise UserError("no images to load: give --data-path, or pip install scikit-image")
    from scripts.benchmark.photographs import make_photographs  # needs scikit-image, which training does not

    folder = work.folder / "photographs"
    if not folder.is_dir():
        make_photographs(folder, MADE_PHOTOGRAPHS)
    return ImageFolder(str(folder))


def loader_images_per_second(work: Workload, folder: ImageFolder, workers: int) -> float:
    """Files to micro-batches on the device, by so many loader processes, as pretraining loads them.

    The first batch of each worker is not counted: it holds the worker's start.
    """
    config = config_of(work)
    transform = train_transform(
        crop_size=config.data.train_crop_size, crop_ratio=config.data.crop_ratio,
        aspect_ratio=config.data.aspect_ratio, flip_probability=config.data.flip_probability,
        interpolation=config.data.interpolation,
    )  # fmt: skip
    task = MaskedFrequencyModelling.from_config(config, torch.device("cpu"))
    samples = TrainingSamples(folder, transform, config.run.seed, target_of=task.draw, skip_bad=True)
    size = min(IMAGES_OF_A_BATCH, work.images)
    loader = batch_loader(
        samples, endless_batches(len(folder), size, work.world), workers, work.device, timeout_minutes=2,
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


def endless_batches(length: int, size: int, world: World) -> Iterator[list[tuple[int, int]]]:
    """Keys (epoch, image) of a rank's batches, in a training's order: each rank begins elsewhere in the first epoch."""
    place = world.rank * length // world.size
    keys: list[tuple[int, int]] = []
    for epoch in itertools.count():
        for image in epoch_order(length, ORDER_SEED, epoch)[place:].tolist():
            keys.append((epoch, image))
            if len(keys) == size:
                yield keys
                keys = []
        place = 0


def loader_row(loader_rate: float, step_rate: float, workers: int) -> Row:
    """Whether the loader keeps up with the step.

    Args:
        loader_rate, step_rate: images/s of a rank.
        workers: loader processes of the rank.
    """
    needed: int | str = "more"
    if loader_rate > 0 and math.isfinite(step_rate):
        needed = math.ceil(workers * step_rate / loader_rate)
    remedy = (
        f"give each rank {needed} cores and data.workers={needed}, or train on smaller files "
        "(scripts/resize_images.py); else the device waits"
    )
    return judged(
        LOADER, f"images/s of {workers} workers a rank; the step's", loader_rate >= step_rate,
        f"{loader_rate:.0f}; {step_rate:.0f}", "at least the step's", remedy,
        {"loader_images_per_second": loader_rate, "step_images_per_second": step_rate, "workers": workers},
    )  # fmt: skip


def loader_rows(work: Workload, folder: ImageFolder, data_path: str | None, step_rate: float) -> list[Row]:
    """This rank's loader beside its step. All ranks load at once, as in a training."""
    workers = max(1, available_cores() // work.world.local_size)
    row = loader_row(loader_images_per_second(work, folder, workers), step_rate, workers)
    source = "made JPEGs of 500 × 375 pixels" if data_path is None else folder.root
    return [row, Row(LOADER, "loaded images", f"{source}, crops of {work.pixels} pixels")]


def loader_rate(rows: list[Row]) -> float:
    """The images/s among these rows; NaN if they were not measured."""
    for row in rows:
        if "loader_images_per_second" in row.values:
            return row.values["loader_images_per_second"]
    return math.nan
