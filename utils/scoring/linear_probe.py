"""A linear probe: multinomial logistic regression on standardised features, by L-BFGS in float64.

It minimises Σ CE(W x + b, y) + ‖W‖² / (2 C), over W (K, D) and b (K,), where x has mean 0 and deviation 1 over the
images of the fit. C is chosen on a part of train that a hash of the paths sets apart; val has no say in it. Then W and
b are fitted on all of train.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from data.folder import ImageFolder, is_held_out
from utils.scoring.features import Features
from utils.scoring.neighbours import right_of

HELD_OUT = 0.2  # share of train on which C is chosen
STRENGTHS = tuple(10 ** (half / 2) for half in range(-12, 11))  # C: two values a power of ten, from 1e-6 to 1e5
PATIENCE = 4  # values of C in a row that are no better than the best, after which larger ones are not tried
MOST_ITERATIONS = 500  # of L-BFGS
MOST_EVALUATIONS = 2 * MOST_ITERATIONS  # of the loss, as its line search needs several an iteration
CHUNK = 8192  # images


@dataclass(frozen=True)
class Standardised:
    """Some images' features, brought to mean 0 and deviation 1 when they are asked for.

    Args:
        features: of all images.
        rows: numbers of those images that take part.
        mean, scale: (D,) float64; the scale of a feature that is constant is 0.
    """

    features: Features
    rows: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x (B, D) float64, class numbers (B,)) on the device."""
        for rows in self.rows.split(CHUNK):
            vectors = self.features.vectors[rows].to(self.device).double()
            yield vectors.sub_(self.mean).mul_(self.scale), self.features.labels[rows].to(self.device)

    def of(self, features: Features, rows: torch.Tensor) -> "Standardised":
        """Other images by the mean and deviation of these."""
        return Standardised(features, rows, self.mean, self.scale)


def standardised(features: Features, rows: torch.Tensor, device: torch.device) -> Standardised:
    """By the mean and deviation of the very images that take part."""
    width = features.vectors.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=device)
    one = torch.ones_like(mean)
    total = torch.zeros_like(mean)
    for vectors, _ in Standardised(features, rows, mean, one).chunks():
        total += vectors.sum(0)
    mean = total / len(rows)
    variance = torch.zeros_like(mean)
    for vectors, _ in Standardised(features, rows, mean, one).chunks():
        variance += vectors.square().sum(0)
    deviation = (variance / len(rows)).sqrt()
    varies = deviation > 1e-7 * mean.abs()  # less is the rounding of float32
    return Standardised(features, rows, mean, (1 / deviation).where(varies, 0))


@dataclass(frozen=True)
class Fit:
    """A fitted probe: theta is W and b beside each other, (K, D + 1) float64."""

    theta: torch.Tensor
    iterations: int
    evaluations: int  # of the loss and its gradient

    @property
    def converged(self) -> bool:
        return self.iterations < MOST_ITERATIONS and self.evaluations < MOST_EVALUATIONS


def logits_of(theta: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ theta[:, :-1].T + theta[:, -1]


def loss_and_gradient(data: Standardised, theta: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What is minimised, over the number of images, and its gradient (K, D + 1)."""
    loss = torch.zeros((), dtype=torch.float64, device=theta.device)
    gradient = torch.zeros_like(theta)
    for vectors, labels in data.chunks():
        logits = logits_of(theta, vectors)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        errors = logits.softmax(1)
        errors[torch.arange(len(labels), device=theta.device), labels] -= 1  # (B, K)
        gradient[:, :-1] += errors.T @ vectors
        gradient[:, -1] += errors.sum(0)
    weights = theta[:, :-1]
    loss += weights.square().sum() / (2 * strength)
    gradient[:, :-1] += weights / strength
    return loss / len(data), gradient / len(data)


def fit(data: Standardised, start: torch.Tensor, strength: float, still_working: Callable[[], None]) -> Fit:
    """The probe of that C, searched from `start` on."""
    theta = start.clone()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=MOST_ITERATIONS, max_eval=MOST_EVALUATIONS, tolerance_grad=1e-6, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def evaluate() -> torch.Tensor:
        loss, theta.grad = loss_and_gradient(data, theta, strength)
        still_working()
        return loss

    optimizer.step(evaluate)
    state = optimizer.state[theta]
    return Fit(theta.detach(), state["n_iter"], state["func_evals"])


def scores_of(theta: torch.Tensor, data: Standardised) -> dict:
    """top1_count, top5_count and mean cross-entropy of these images."""
    right = torch.zeros(2, dtype=torch.int64)
    loss = 0.0
    for vectors, labels in data.chunks():
        logits = logits_of(theta, vectors)
        right += right_of(logits.softmax(1), labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return {"top1_count": int(right[0]), "top5_count": int(right[1]), "loss": loss / len(data)}


def held_out_part(folder: ImageFolder) -> torch.Tensor:
    """(N,) bool: the images on which C is chosen, by a hash of the path inside the folder.

    The key before the path makes it another hash than that of data.holdout_fraction.
    """
    held_out = np.zeros(len(folder), dtype=bool)
    for index in range(len(folder)):
        path = os.path.relpath(folder.path(index), folder.root)
        held_out[index] = is_held_out("linear probe\n" + path, HELD_OUT)
    return torch.from_numpy(held_out)


def choose_strength(
    train: Features, held_out: torch.Tensor, num_classes: int, device: torch.device, still_working: Callable[[], None]
) -> tuple[float, list[dict]]:
    """The C with most of the held-out images right, then with the lower loss, and a line for each C that was tried."""
    fitted_on = standardised(train, (~held_out).nonzero()[:, 0], device)
    tested_on = fitted_on.of(train, held_out.nonzero()[:, 0])
    theta = torch.zeros(num_classes, train.vectors.shape[1] + 1, dtype=torch.float64, device=device)
    tried: list[dict] = []
    without_gain = 0
    lowest_loss, best = float("inf"), None
    for strength in STRENGTHS:
        fitted = fit(fitted_on, theta, strength, still_working)
        theta = fitted.theta  # from here the next one is near
        line = {"C": strength, **scores_of(theta, tested_on)}
        line |= {"iterations": fitted.iterations, "converged": fitted.converged}
        tried.append(line)
        without_gain += 1
        if best is None or (line["top1_count"], -line["loss"]) > (best["top1_count"], -best["loss"]):
            best, without_gain = line, 0
        if line["loss"] < lowest_loss:
            lowest_loss, without_gain = line["loss"], 0
        if without_gain == PATIENCE:
            break
    return best["C"], tried


def linear_row(
    train: Features, val: Features, held_out: torch.Tensor, num_classes: int, device: torch.device,
    still_working: Callable[[], None] = lambda: None,
) -> dict:  # fmt: skip
    """The probe's score on val: C, images, top1_count, top5_count, top1 and top5 in percent, how C was chosen."""
    strength, tried = choose_strength(train, held_out, num_classes, device, still_working)
    data = standardised(train, torch.arange(len(train)), device)
    theta = torch.zeros(num_classes, train.vectors.shape[1] + 1, dtype=torch.float64, device=device)
    fitted = fit(data, theta, strength, still_working)
    scores = scores_of(fitted.theta, data.of(val, torch.arange(len(val))))
    top1, top5 = scores["top1_count"], scores["top5_count"]
    return {
        "C": strength, "images": len(val), "top1_count": top1, "top5_count": top5, "top1": 100 * top1 / len(val),
        "top5": 100 * top5 / len(val), "converged": fitted.converged, "held_out_images": int(held_out.sum()),
        "held_out": tried,
    }  # fmt: skip
