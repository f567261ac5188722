"""How long each recipe of configs/ takes on this machine, from what was measured on it."""

import math
from dataclasses import dataclass
from pathlib import Path

from scripts.machine.rows import Row, not_run
from scripts.machine.workload import ROOT
from utils.run.reading import FlatConfig, is_pretraining, resolved_config

RECIPES = "hours of a recipe"
IMAGES = {"imagenet": 1_281_167, "sample": 4_000}  # of train, by data.data_path


@dataclass(frozen=True)
class Measured:
    """What the hours are computed from.

    Args:
        pixels: side of the images of the measured step.
        step_rate: images/s of a pretraining step, all ranks together.
        loader_rate: images/s of the loaders of all ranks together.
    """

    model: str
    pixels: int
    step_rate: float
    loader_rate: float


def recipe_rows(measured: Measured, folder: Path = ROOT / "configs") -> list[Row]:
    """A row for each recipe of ImageNet and the sample, whose numbers of images are known."""
    if not math.isfinite(measured.step_rate + measured.loader_rate):
        return [not_run(RECIPES, "all", "the speed of the step or of the loader was not measured, see above")]
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        config = resolved_config(str(path))
        if config["data.data_path"] in IMAGES and config["model.name"] == measured.model:
            rows.append(recipe_row(path.stem, config, measured))
    if not rows:
        rows.append(not_run(RECIPES, "all", f"no recipe has the model that was measured, {measured.model}"))
    return rows


def recipe_row(name: str, config: FlatConfig, measured: Measured) -> Row:
    """Hours of training: without evaluation, checkpoints and start."""
    pixels = config["data.train_crop_size"]
    step_rate = measured.step_rate * (measured.pixels / pixels) ** 2
    rate = min(step_rate, measured.loader_rate)
    images = images_of(config)
    hours = images / rate / 3600
    scaled = []
    if pixels != measured.pixels:
        scaled.append(f"from {measured.pixels} to {pixels} pixels by area")
    if not is_pretraining(config):
        scaled.append("by a pretraining step")
        if config["data.rand_augment_ops"]:
            scaled.append("loader measured without RandAugment")
    note = f"{rate:.0f} images/s, {', '.join(scaled) or 'as measured'}"
    remedy = ""
    if measured.loader_rate < step_rate:
        remedy = f"the loader decides: with more cores {images / step_rate / 3600:,.1f} hours"
    return Row(
        RECIPES, name, f"{hours:,.1f} h ({note})", remedy=remedy,
        values={"hours": hours, "images": images, "images_per_second": rate, "scaled": scaled},
    )  # fmt: skip


def images_of(config: FlatConfig) -> int:
    """That a training of the recipe takes: whole batches, each counted as often as it is taken."""
    batch = config["train.batch_size"]
    if config["schedule.steps"] is not None:
        return config["schedule.steps"] * batch
    return int(config["schedule.epochs"] * (IMAGES[config["data.data_path"]] // batch)) * batch
