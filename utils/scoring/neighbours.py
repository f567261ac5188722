"""The weighted vote of the nearest neighbours (Wu et al., arXiv 1805.01978), the same for any order of anything.

The similarity s of two images is the cosine of their features. Each of the k most similar training images votes for its
class with weight exp(s / T). Features of length 1 are rounded to multiples of 2⁻²⁴, so in float64 every sum of products
is exact, whatever its order: chunks, threads and devices cannot change a similarity, and equal ones are equal.

Ties have no order either. Training images that tie for the last of the k places share the places that are left. Of
classes with equal votes the one with the lower number comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.scoring.features import Features

GRID = 2.0**24  # of features of length 1: float32 has every multiple of 2⁻²⁴ up to 1
VOTE_GRID = 2.0**44  # of votes, so that sums of up to 500 are exact too
CHUNK = 2048  # images of val, and of train, that are compared at once


@dataclass(frozen=True)
class Vote:
    """How many neighbours vote, and how fast their weight falls with the distance."""

    k: int
    temperature: float


HEADLINE = Vote(20, 0.07)  # fixed beforehand
VOTES = (Vote(10, 0.07), HEADLINE, Vote(100, 0.07), Vote(200, 0.07), Vote(200, 0.1))


@dataclass(frozen=True)
class Nearest:
    """Of each query the most similar training images, the most similar first; those that tie for the last place in any
    order.

    Args:
        similarities: (Q, k) float64, exact.
        labels: (Q, k) their class numbers.
    """

    similarities: torch.Tensor
    labels: torch.Tensor


def neighbour_rows(
    train: Features, val: Features, votes: tuple[Vote, ...], num_classes: int, device: torch.device,
    still_working: Callable[[], None] = lambda: None, chunk: int = CHUNK,
) -> list[dict]:  # fmt: skip
    """The score of each vote: k, temperature, images, top1_count, top5_count, top1 and top5 in percent.

    A class without a vote is no prediction, so it is never among the top 5. With fewer than k images all of them vote.

    Args:
        still_working: is called at least every few seconds.
    """
    queries = unit_vectors(val.vectors)
    most = max(vote.k for vote in votes) + 1  # one more, to see who ties for the last place
    nearest = find_nearest(queries, train, most, device, still_working, chunk)
    right = torch.zeros(len(votes), 2, dtype=torch.int64)
    for rows in slices(len(queries), chunk):
        labels = val.labels[rows].to(device)
        part = Nearest(nearest.similarities[rows], nearest.labels[rows])
        for k in sorted({vote.k for vote in votes}):
            tied = tied_classes(queries[rows], train, part, k, num_classes, device, chunk)
            for number, vote in enumerate(votes):
                if vote.k == k:
                    right[number] += right_of(votes_of(part, vote, tied, num_classes), labels)
            still_working()
    lines = []
    for vote, (top1, top5) in zip(votes, right.tolist(), strict=True):
        lines.append({
            "k": vote.k, "temperature": vote.temperature, "images": len(val), "top1_count": top1, "top5_count": top5,
            "top1": 100 * top1 / len(val), "top5": 100 * top5 / len(val),
        })  # fmt: skip
    return lines


def slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """(N, D) of length 1, or 0 where they are 0, as float32 multiples of 2⁻²⁴."""
    units = torch.empty(vectors.shape, dtype=torch.float32)
    for rows in slices(len(vectors), CHUNK):
        exact = vectors[rows].double()
        length = exact.square().sum(1, keepdim=True).sqrt()
        exact /= length.where(length > 0, 1)
        units[rows] = (exact * GRID).round() / GRID
    return units


def find_nearest(
    queries: torch.Tensor, train: Features, k: int, device: torch.device, still_working: Callable[[], None], chunk: int
) -> Nearest:
    """The k most similar training images of each of the queries (Q, D); all of them if there are fewer."""
    similarities = torch.full((len(queries), k), -torch.inf, dtype=torch.float64, device=device)
    labels = torch.zeros(len(queries), k, dtype=torch.int64, device=device)
    for train_rows in slices(len(train), chunk):
        images = unit_vectors(train.vectors[train_rows]).to(device).double()
        image_labels = train.labels[train_rows].to(device)
        for rows in slices(len(queries), chunk):
            compared = queries[rows].to(device).double() @ images.T
            candidates = torch.cat([similarities[rows], compared], 1)
            candidate_labels = torch.cat([labels[rows], image_labels.expand(len(compared), -1)], 1)
            best = candidates.topk(k, dim=1)
            similarities[rows] = best.values
            labels[rows] = candidate_labels.gather(1, best.indices)
        still_working()
    found = min(k, len(train))
    return Nearest(similarities[:, :found], labels[:, :found])


def tied_classes(
    queries: torch.Tensor, train: Features, nearest: Nearest, k: int, num_classes: int, device: torch.device, chunk: int
) -> torch.Tensor:
    """(Q, K) float64: of each class the images that tie for the last of k places, where more tie than have a place.

    Rows without such a tie are 0.
    """
    counts = torch.zeros(len(queries), num_classes, dtype=torch.float64, device=device)
    if nearest.similarities.shape[1] <= k:
        return counts
    last = nearest.similarities[:, k - 1]
    tied = (nearest.similarities[:, k] == last).nonzero()[:, 0]
    if len(tied) == 0:
        return counts
    compared = queries[tied.cpu()].to(device).double()
    counts_of_tied = counts[tied]
    for rows in slices(len(train), chunk):
        images = unit_vectors(train.vectors[rows]).to(device).double()
        is_equal = (compared @ images.T == last[tied, None]).double()
        classes = torch.nn.functional.one_hot(train.labels[rows].to(device), num_classes).double()
        counts_of_tied += is_equal @ classes
    counts[tied] = counts_of_tied
    return counts


def votes_of(nearest: Nearest, vote: Vote, tied: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(Q, K) float64: the sum of exp((s − s of the nearest) / T) over the k nearest of each class."""
    similarities = nearest.similarities[:, : vote.k]
    labels = nearest.labels[:, : vote.k]
    weights = ((similarities - similarities[:, :1]) / vote.temperature).exp()
    weights = (weights * VOTE_GRID).round() / VOTE_GRID
    last_weight = weights[:, -1:]
    ties = tied.sum(1, keepdim=True)  # 0: those in the last places have them
    has_sure_place = (similarities > similarities[:, -1:]) | (ties == 0)
    votes = torch.zeros(len(similarities), num_classes, dtype=torch.float64, device=similarities.device)
    votes.scatter_add_(1, labels, weights * has_sure_place)
    places_left = similarities.shape[1] - has_sure_place.sum(1, keepdim=True)
    return votes + last_weight * places_left / ties.clamp_min(1) * tied


def places_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The place, from 0 on, of the true class among the scores (Q, K); of equal scores the lower class comes first."""
    own = scores.gather(1, labels[:, None])
    is_before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & is_before)).sum(1)


def right_of(votes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Counts of (top-1, top-5) right, int64 on the CPU."""
    places = places_of(votes, labels)
    has_vote = votes.gather(1, labels[:, None])[:, 0] > 0
    return torch.stack([((places < most) & has_vote).sum() for most in (1, 5)]).cpu()
