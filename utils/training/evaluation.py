"""Exact evaluation: every image once, whatever the number of ranks and the batch size, counted in integers."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from utils.console import progress_bar, say
from utils.distributed import World
from utils.errors import UserError
from utils.precision import exact_float32, uses_channels_last, without_algorithm_search
from utils.tables import markdown_table

LARGEST_CONFUSION = 100  # classes that a confusion matrix is counted for
LARGEST_LOSS = 1e6  # a mean cross-entropy that weights of use can have
# Difference of two images' logits, as a share of the largest logit, that may be rounding alone. A ResNet's differ by up
# to 1.5e-6 between batches of other sizes, and by 5e-2 for images that are one level of 255 apart.
SAME_LOGITS = 1e-4


class MeaninglessScoreError(UserError):
    """A model gives every image the same logits: its score is the share of one class."""


def share_of_rank(length: int, world: World, batch_size: int) -> list[list[int]]:
    """This rank's image numbers, r, r + W, r + 2W, …, in batches; nothing is padded."""
    numbers = range(world.rank, length, world.size)
    return [list(numbers[start : start + batch_size]) for start in range(0, len(numbers), batch_size)]


class Views(Protocol):
    """Several ways to look at each image, such as resize sizes; models/classifier.py has some."""

    names: list[dict]  # how the row of results of each view begins, as in {"val_resize_size": 235}

    def __call__(self, crops: torch.Tensor) -> Iterator[torch.Tensor]:
        """Crops (B, sizes, 3, S, S) uint8 on the device -> what the model takes, (B, 3, S, S), for each view."""


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm takes its running statistics; after it the model is as it was, also after an error.

    A part that was in evaluation before, as a frozen trunk, stays in it.
    """
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def in_evaluation_layout(model: nn.Module, channels_last: bool | None) -> nn.Module:
    """The model itself, or a copy in the memory layout that float32 is faster in on its device.

    Args:
        channels_last: the knob model.channels_last.
    """
    parameters = list(model.parameters())
    is_contiguous = all(parameter.is_contiguous() for parameter in parameters)
    if is_contiguous or uses_channels_last(channels_last, torch.float32, parameters[0].device):
        return model
    # Converting the model to and fro could leave weights in another layout than the optimizer's moments of them.
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


@torch.inference_mode()
@exact_float32()
@without_algorithm_search()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], views: Views, length: int, world: World,
    mistakes: "Mistakes | None" = None,
) -> list[dict]:  # fmt: skip
    """Top-1, top-5 and mean cross-entropy of each view of the images.

    Args:
        model: the bare model; it is run in float32 outside autocast and left in training mode if it was in it.
        batches: this rank's (crops (B, sizes, 3, S, S) uint8, class numbers (B,)), in the order of share_of_rank.
        length: images of the whole set; the counted images must come to this.
        mistakes: collects those of the first view.
    Returns: a row for each view: its name, images, top1_count, top5_count, top1 and top5 in percent, loss.
    Raises: UserError, on all ranks, if logits are not finite: argmax would take NaN for the surest class.
        MeaninglessScoreError if all images have the same logits, in every view.
    """
    # of each view: images, top 1, top 5, images whose logits are not finite, images with the logits of the first one
    counts = torch.zeros(len(views.names), 5, dtype=torch.int64, device=world.device)
    first_logits: dict[int, torch.Tensor] = {}  # of each view, on this rank
    losses = torch.zeros(len(views.names), dtype=torch.float64, device=world.device)
    world.copy_from_rank_0(model.buffers())
    for crops, labels in progress_bar(batches, desc="evaluation", unit="batch"):
        labels = labels.to(world.device, non_blocking=True)
        for view, images in enumerate(views(crops.to(world.device, non_blocking=True))):
            with in_evaluation(model):
                logits = model(images).float()
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            counts[view, 0] += len(labels)
            counts[view, 1] += right[:, 0].sum()
            counts[view, 2] += right.sum()
            counts[view, 3] += (~logits.isfinite().all(1)).sum()  # looked at below, so that nothing waits here
            counts[view, 4] += are_alike(logits, first_logits.setdefault(view, logits[0])).sum()
            losses[view] += F.cross_entropy(logits.double(), labels, reduction="sum")
            if mistakes is not None and view == 0:
                mistakes.add(logits, labels)
    rows = scored_rows(views.names, world.sum(counts).tolist(), world.sum(losses).tolist(), length, world.size)
    warn_of_large_losses(rows, world)
    return rows


def scored_rows(names: list[dict], counts: list[list[int]], losses: list[float], length: int, ranks: int) -> list[dict]:
    """The rows of `evaluate`, from the sums over all ranks. Raises: as `evaluate` does.

    Args:
        names: of the views; counts, losses: of each view, as `evaluate` collects them.
        length: images of the whole set.
    """
    rows = []
    alike_in_views = []
    for name, (images, top1, top5, not_finite, alike), loss in zip(names, counts, losses, strict=True):
        assert images == length, f"{images} images counted, the set has {length}"
        if not_finite:
            raise UserError(
                f"evaluation ({view_in_words(name)}): the logits of {not_finite} of {images} images are not finite: "
                "no score.\n"
                "The weights or BatchNorm's statistics have run away; evaluate an earlier checkpoint."
            )
        alike_in_views.append(alike == length)
        rows.append({
            **name, "images": images, "top1_count": top1, "top5_count": top5,
            "top1": 100 * top1 / length, "top5": 100 * top5 / length, "loss": loss / length,
        })  # fmt: skip
    if all(alike_in_views) and length > ranks:  # of one image a rank nothing can be said
        raise MeaninglessScoreError(
            f"evaluation: the logits of all {length} images are the same: no score.\n"
            "The weights do not look at the images, or all images are alike; evaluate an earlier checkpoint."
        )
    return rows


def warn_of_large_losses(rows: list[dict], world: World) -> None:
    """Say, from rank 0, that a mean cross-entropy is too large to be one of useful weights."""
    largest_loss = max(row["loss"] for row in rows)
    if largest_loss > LARGEST_LOSS and world.rank == 0:
        say(
            f"warning: evaluation: a mean loss of {largest_loss:.1e} shows that the weights or BatchNorm's statistics "
            "have run away; do not trust the score"
        )


def view_in_words(name: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in name.items())


def are_alike(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Which rows of logits (B, K) are those of `reference` (K,), up to rounding: (B,) bool."""
    return (logits - reference).abs().amax(1) <= SAME_LOGITS * reference.abs().amax()


class Mistake(NamedTuple):
    """A wrong prediction: how sure the model was of it, the image's number, the true class and the predicted one."""

    confidence: float
    image: int
    true: int
    predicted: int


class Mistakes:
    """Collects true against predicted classes, and the wrong predictions that the model was surest of.

    Call `add` for each batch in the order of `share_of_rank`: image numbers are derived from that order. Nothing in
    `add` waits for the device.

    Args:
        most: how many wrong predictions to keep.
    """

    def __init__(self, num_classes: int, world: World, most: int = 8):
        self.world, self.most, self.images_seen = world, most, 0
        side = num_classes if num_classes <= LARGEST_CONFUSION else 0
        self.confusion = torch.zeros(side, side, dtype=torch.int64, device=world.device)  # rows true, columns predicted
        self.surest = torch.zeros(0, 4, dtype=torch.float64, device=world.device)  # rows are a Mistake each

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits (B, K), class numbers (B,)."""
        confidence, predicted = logits.double().softmax(1).max(1)
        if len(self.confusion):
            self.confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        turns = torch.arange(self.images_seen, self.images_seen + len(labels), device=labels.device)
        self.images_seen += len(labels)
        images = self.world.rank + self.world.size * turns
        confidence = confidence.where(predicted != labels, -1)  # a right prediction is no mistake
        rows = torch.cat([self.surest, torch.stack([confidence, images, labels, predicted], 1)])
        # A stable sort of rows in the order of images: of equally sure mistakes the first image comes first.
        order = rows[:, 0].sort(descending=True, stable=True).indices
        self.surest = rows[order[: self.most]]

    def collected(self) -> tuple[torch.Tensor, list[Mistake]]:
        """Of all ranks: counts (K, K), or (0, 0) of too many classes; and the mistakes, the surest first."""
        mistakes = []
        for rows in self.world.gather(self.surest.tolist()):
            for confidence, image, true, predicted in rows:
                if confidence >= 0:
                    mistakes.append(Mistake(confidence, int(image), int(true), int(predicted)))
        mistakes.sort(key=lambda mistake: (-mistake.confidence, mistake.image))
        confusion = self.world.sum(self.confusion) if len(self.confusion) else self.confusion
        return confusion, mistakes[: self.most]


def results_table(rows: list[dict]) -> str:
    """An evaluation's rows as Markdown: the view's name, then the scores."""
    lines = []
    for row in rows:
        line = {}
        for key in ("kind", "radius", "val_resize_size"):
            if key in row:
                line[key] = "" if row[key] is None else row[key]
        line |= {"top-1 %": f"{row['top1']:.3f}", "top-5 %": f"{row['top5']:.3f}"}
        line |= {"loss": f"{row['loss']:.4f}", "images": row["images"]}
        lines.append(line)
    return markdown_table(lines)
