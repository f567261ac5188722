"""Exact evaluation: every image once, whatever the number of ranks and the batch size, counted in integers."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from utils.distributed import World
from utils.precision import exact_float32


def share_of_rank(length: int, world: World, batch_size: int) -> list[list[int]]:
    """This rank's image numbers, r, r + W, r + 2W, …, in batches; nothing is padded."""
    mine = range(world.rank, length, world.size)
    return [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]


@torch.inference_mode()
@exact_float32()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    prepare: Callable[[torch.Tensor], torch.Tensor], resize_sizes: tuple[int, ...], length: int, world: World,
) -> list[dict]:  # fmt: skip
    """Top-1, top-5 and mean cross-entropy at each resize size.

    Args:
        model: the bare model; it is run in float32 outside autocast and left in training mode if it was in it.
        batches: this rank's (crops (B, sizes, 3, S, S) uint8, class numbers (B,)).
        prepare: uint8 crops on the device -> what the model takes.
        length: images of the whole set; the counted images must come to this.
    Returns: a row for each size: val_resize_size, images, top1_count, top5_count, top1 and top5 in percent, loss.
    """
    counts = torch.zeros(len(resize_sizes), 3, dtype=torch.int64, device=world.device)  # images, top 1, top 5
    losses = torch.zeros(len(resize_sizes), dtype=torch.float64, device=world.device)
    was_training = model.training
    model.eval()
    world.copy_from_rank_0(model.buffers())
    for crops, labels in batches:
        labels = labels.to(world.device, non_blocking=True)
        for size, images in enumerate(crops.to(world.device, non_blocking=True).unbind(1)):
            logits = model(prepare(images)).float()
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            counts[size, 0] += len(labels)
            counts[size, 1] += right[:, 0].sum()
            counts[size, 2] += right.sum()
            losses[size] += F.cross_entropy(logits, labels, reduction="sum")
    model.train(was_training)
    rows = zip(resize_sizes, world.sum(counts).tolist(), world.sum(losses).tolist(), strict=True)
    results = [
        {
            "val_resize_size": size, "images": images, "top1_count": top1, "top5_count": top5,
            "top1": 100 * top1 / length, "top5": 100 * top5 / length, "loss": loss / length,
        }
        for size, (images, top1, top5), loss in rows
    ]  # fmt: skip
    for row in results:
        assert row["images"] == length, f"{row['images']} images counted, the set has {length}"
    return results


def table(rows: list[dict]) -> str:
    """The results as Markdown, a row a size."""
    lines = ["| val_resize_size | top-1 % | top-5 % | loss | images |", "|---|---|---|---|---|"]
    lines += ["| {val_resize_size} | {top1:.3f} | {top5:.3f} | {loss:.4f} | {images} |".format(**row) for row in rows]
    return "\n".join(lines)
