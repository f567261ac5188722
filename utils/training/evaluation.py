"""Exact evaluation: every image once, whatever the number of ranks and the batch size, counted in integers."""

import contextlib
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from utils.distributed import World
from utils.precision import exact_float32

LARGEST_CONFUSION = 100  # classes that a confusion matrix is counted for


def share_of_rank(length: int, world: World, batch_size: int) -> list[list[int]]:
    """This rank's image numbers, r, r + W, r + 2W, …, in batches; nothing is padded."""
    mine = range(world.rank, length, world.size)
    return [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]


@contextlib.contextmanager
def in_evaluation(model: nn.Module):
    """Inside, BatchNorm takes its running statistics; after it the model is as it was, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
@exact_float32()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    views: Callable[[torch.Tensor], Iterable[torch.Tensor]], names: list[dict], length: int, world: World,
    mistakes: "Mistakes | None" = None,
) -> list[dict]:  # fmt: skip
    """Top-1, top-5 and mean cross-entropy in each of several views of the images, such as resize sizes.

    Args:
        model: the bare model; it is run in float32 outside autocast and left in training mode if it was in it.
        batches: this rank's (crops (B, sizes, 3, S, S) uint8, class numbers (B,)).
        views: these crops on the device -> what the model takes (B, 3, S, S), once for each view.
        names: what each view's row begins with, as in {"val_resize_size": 235}.
        length: images of the whole set; the counted images must come to this.
        mistakes: is told of the first view.
    Returns: a row for each view: its name, images, top1_count, top5_count, top1 and top5 in percent, loss.
    """
    counts = torch.zeros(len(names), 3, dtype=torch.int64, device=world.device)  # images, top 1, top 5
    losses = torch.zeros(len(names), dtype=torch.float64, device=world.device)
    world.copy_from_rank_0(model.buffers())
    for crops, labels in batches:
        labels = labels.to(world.device, non_blocking=True)
        for view, images in enumerate(views(crops.to(world.device, non_blocking=True))):
            with in_evaluation(model):
                logits = model(images).float()
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            counts[view, 0] += len(labels)
            counts[view, 1] += right[:, 0].sum()
            counts[view, 2] += right.sum()
            losses[view] += F.cross_entropy(logits.double(), labels, reduction="sum")
            if mistakes and view == 0:
                mistakes.add(logits, labels)
    rows = zip(names, world.sum(counts).tolist(), world.sum(losses).tolist(), strict=True)
    results = [
        {
            **name, "images": images, "top1_count": top1, "top5_count": top5,
            "top1": 100 * top1 / length, "top5": 100 * top5 / length, "loss": loss / length,
        }
        for name, (images, top1, top5), loss in rows
    ]  # fmt: skip
    for row in results:
        assert row["images"] == length, f"{row['images']} images counted, the set has {length}"
    return results


class Mistakes:
    """True against predicted classes, and the `most` wrong images that the model was surest of.

    It is told of a rank's images in the order of `share_of_rank`. Nothing in `add` waits for the device.
    """

    def __init__(self, num_classes: int, world: World, most: int = 8):
        self.world, self.most, self.seen = world, most, 0
        square = (num_classes, num_classes) if num_classes <= LARGEST_CONFUSION else (0, 0)
        self.confusion = torch.zeros(square, dtype=torch.int64, device=world.device)  # rows true, columns predicted
        self.surest = torch.zeros(0, 4, dtype=torch.float64, device=world.device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        confidence, predicted = logits.double().softmax(1).max(1)
        if len(self.confusion):
            self.confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        turns = torch.arange(self.seen, self.seen + len(labels), device=labels.device)
        self.seen += len(labels)
        confidence = confidence.where(predicted != labels, -1)
        rows = torch.cat(
            [self.surest, torch.stack([confidence, self.world.rank + self.world.size * turns, labels, predicted], 1)]
        )
        self.surest = rows[rows[:, 0].topk(min(self.most, len(rows))).indices]

    def collected(self) -> tuple[torch.Tensor, list[tuple[float, int, int, int]]]:
        """Of all ranks: counts (K, K) (0 × 0 if too many); (confidence, image, true, predicted), surest first."""
        rows = [row for rank in self.world.gather(self.surest.tolist()) for row in rank if row[0] >= 0]
        rows = sorted(((c, *map(int, rest)) for c, *rest in rows), key=lambda row: (-row[0], row[1]))
        confusion = self.world.sum(self.confusion) if len(self.confusion) else self.confusion
        return confusion, rows[: self.most]


def table(rows: list[dict]) -> str:
    """The results as Markdown, a row a view, its name first."""
    named = [key for key in rows[0] if key in ("kind", "radius", "val_resize_size")]
    lines = [f"| {' | '.join(named)} | top-1 % | top-5 % | loss | images |", "|---" * len(named) + "|---|---|---|---|"]
    for row in rows:
        name = " | ".join("" if row[key] is None else str(row[key]) for key in named)
        lines.append("| {} | {top1:.3f} | {top5:.3f} | {loss:.4f} | {images} |".format(name, **row))
    return "\n".join(lines)
