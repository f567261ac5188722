"""Top-1 of models on the images of a validation folder, at each resize size or through each filter of a sweep."""

import os
from dataclasses import dataclass, replace

from torch import nn

from configs.schema import FinetuneConfig
from data.folder import ImageFolder, check_labels
from data.identity import identity
from data.loader import batch_loader
from data.samples import EvaluationSamples
from models.classifier import FilteredViews, ResizedViews
from models.normalize import Normalizer
from utils.run.job import Job, evaluation_batch_bytes
from utils.training.evaluation import Mistakes, Views, evaluate, in_evaluation_layout, share_of_rank


def open_labelled_images(config: FinetuneConfig, job: Job) -> ImageFolder:
    """The images of train that have labels to learn from: all, a share of each class, or those of a list.

    Raises: UserError if there is nothing to learn from them.
    """
    root = os.path.join(config.data.data_path, "train")
    folder = job.open_folder(lambda: ImageFolder(
        root, holdout_fraction=config.data.holdout_fraction, label_fraction=config.data.label_fraction,
        train_list=config.data.train_list,
    ))  # fmt: skip
    check_labels(folder)
    return folder


@dataclass(frozen=True)
class EvaluationData:
    """The images to evaluate on: val, and those of train to choose a resize size on, if one is to be chosen."""

    val: ImageFolder
    held_out: ImageFolder | None

    @classmethod
    def open(
        cls, config: FinetuneConfig, job: Job, classes: list[str] | None, holdout_fraction: float
    ) -> "EvaluationData":
        """Args: classes: None: in the order of val's folders. holdout_fraction: of the model's training."""
        held_out = None
        if config.run.select_val_resize_size:
            train = os.path.join(config.data.data_path, "train")
            held_out = job.world.in_turn(lambda: ImageFolder(train, classes, holdout_fraction, held_out=True))
        val = os.path.join(config.data.data_path, "val")
        return cls(job.open_folder(lambda: ImageFolder(val, classes)), held_out)

    def identities(self) -> dict[str, dict]:
        """Which images these are, for a comparison between ranks or with an earlier start."""
        identities = {"val": identity(self.val)}
        if self.held_out is not None:
            identities["held_out"] = identity(self.held_out)
        return identities

    def counts(self) -> dict[str, int]:
        """Images of each set."""
        counts = {"val": len(self.val)}
        if self.held_out is not None:
            counts["held out"] = len(self.held_out)
        return counts


def evaluate_models(
    config: FinetuneConfig, job: Job, models: dict[str, nn.Module], data: EvaluationData,
    mistakes: Mistakes | None = None,
) -> dict:  # fmt: skip
    """For result.json: `results`, val's rows, and `val_resize_size` with how that was settled.

    Args:
        models: name -> model.
        mistakes: collects those of the first model on val, at the first size.
    """
    rows: list[dict] = []
    settled: dict = {"chosen": "given before"}
    if data.held_out is not None:
        settled = {"chosen": "on held-out images of train", "held_out": []}
    for name, model in models.items():
        at_size = config
        if data.held_out is not None:
            candidates = evaluate_model(config, job, model, data.held_out, name)
            settled["held_out"] += candidates
            # Most images right, then the lower loss.
            size = max(candidates, key=lambda row: (row["top1_count"], -row["loss"]))["val_resize_size"]
            job.say(f"{name}: val_resize_size {size} is best on {len(data.held_out)} held-out images")
            at_size = replace(config, data=replace(config.data, val_resize_size=(size,)))
        rows += evaluate_model(at_size, job, model, data.val, name, mistakes)
        mistakes = None
    return {"results": rows, "val_resize_size": settled}


def evaluate_model(
    config: FinetuneConfig, job: Job, model: nn.Module, folder: ImageFolder, weights: str,
    mistakes: Mistakes | None = None,
) -> list[dict]:  # fmt: skip
    """A row for each resize size, or each filter of the sweep; `weights` names what was evaluated."""
    options = config.data
    normalize = Normalizer(options.mean, options.std, job.world.device)
    if config.run.frequency_sweep:
        last_bin_squared = 2 * (options.val_crop_size // 2) ** 2
        radii = tuple(radius for radius in config.run.sweep_radii if radius**2 <= last_bin_squared)
        views = FilteredViews(normalize, radii)
    else:
        views = ResizedViews(normalize, options.val_resize_size)
    samples = EvaluationSamples(folder, options.val_resize_size, options.val_crop_size, options.interpolation)
    return evaluate_views(config, job, model, samples, views, weights, mistakes)


def evaluate_views(
    config: FinetuneConfig, job: Job, model: nn.Module, samples: EvaluationSamples, views: Views, weights: str,
    mistakes: Mistakes | None = None,
) -> list[dict]:  # fmt: skip
    """A row for each view of the samples; `weights` names what was evaluated."""
    folder = samples.folder
    batches = batch_loader(
        samples,
        share_of_rank(len(folder), job.world, config.data.val_batch_size),
        workers=job.workers, device=job.world.device, timeout_minutes=config.run.timeout_minutes,
        ranks=job.world.local_size, batch_bytes=evaluation_batch_bytes(config),
    )  # fmt: skip
    model = in_evaluation_layout(model, config.model.channels_last)
    rows = evaluate(model, batches, views, len(folder), job.world, mistakes)
    return [{"weights": weights, **row} for row in rows]
