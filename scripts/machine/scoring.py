"""Whether an evaluation counts the same twice."""

from collections.abc import Iterator

import torch
from torch import nn

from models.classifier import ResizedViews
from models.normalize import Normalizer
from models.trunk import make_trunk
from scripts.machine.rows import Row, judged
from scripts.machine.workload import Workload, made_batch
from utils.seeding import keyed_torch
from utils.training.evaluation import evaluate, in_evaluation_layout, share_of_rank

EVALUATION = "evaluation"
CLASSES = 10  # few, so that many of the noise images are counted as right by chance
BATCHES = 4
COUNTS = ("images", "top1_count", "top5_count")


def evaluation_rows(work: Workload) -> list[Row]:
    """The same images and weights evaluated twice, with cuDNN's search for algorithms on outside, as in training."""
    with keyed_torch(0, "evaluated network"):
        network = make_trunk(work.model, CLASSES).classifier
    network = in_evaluation_layout(network.to(work.device), None)
    return [counts_row(work, network)]


def counts_of(row: dict) -> tuple[int, ...]:
    return tuple(row[name] for name in COUNTS)


def counts_row(work: Workload, network: nn.Module) -> Row:
    first, again = evaluated(work, network), evaluated(work, network)
    counts, counts_again = counts_of(first), counts_of(again)
    remedy = "scores of this device are good to a few images only; evaluate on another one to publish a number"
    return judged(
        EVALUATION, "images, top-1 and top-5 counts of two evaluations", counts == counts_again,
        f"{counts}; {counts_again}", "equal", remedy,
        {"first": list(counts), "second": list(counts_again), "loss_difference": again["loss"] - first["loss"]},
    )  # fmt: skip


def evaluated(work: Workload, network: nn.Module) -> dict:
    normalize = Normalizer((0.4, 0.4, 0.4), (0.2, 0.2, 0.2), work.device)
    views = ResizedViews(normalize, (work.pixels,))
    length = BATCHES * work.few_images - 1  # so that the last batch has another size
    [row] = evaluate(network, crops_and_labels(work, length), views, length, work.alone)
    return row


def crops_and_labels(work: Workload, length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Made crops (B, 1, 3, S, S) uint8, and classes (B,)."""
    for numbers in share_of_rank(length, work.alone, work.few_images):
        images, _ = made_batch(len(numbers), work.pixels, torch.device("cpu"), 2, numbers[0])
        yield images[:, None], torch.tensor(numbers) % CLASSES
