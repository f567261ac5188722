"""Neighbours against a slow float64 vote written from the formula, ties included, in any order and chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.scoring.features import Features
from utils.scoring.neighbours import HEADLINE, VOTES, Vote, neighbour_rows, places_of, unit_vectors

CPU = torch.device("cpu")


def reference_votes(train: Features, query: np.ndarray, vote: Vote, num_classes: int) -> np.ndarray:
    """Image by image: those more similar than the k-th vote whole, those as similar as it share the places left."""
    units = unit_vectors(train.vectors).double().numpy()
    similarities = units @ query
    k = min(vote.k, len(similarities))
    last = np.sort(similarities)[::-1][k - 1]
    places_left = k - int((similarities > last).sum())
    ties = int((similarities == last).sum())
    votes = np.zeros(num_classes)
    for similarity, label in zip(similarities, train.labels.tolist(), strict=True):
        weight = np.exp(similarity / vote.temperature)
        if similarity > last:
            votes[label] += weight
        elif similarity == last:
            votes[label] += weight * places_left / ties
    return votes


def reference_counts(train: Features, val: Features, vote: Vote, num_classes: int) -> tuple[int, int]:
    top1 = top5 = 0
    for query, label in zip(unit_vectors(val.vectors).double().numpy(), val.labels.tolist(), strict=True):
        votes = reference_votes(train, query, vote, num_classes)
        votes = np.round(votes / votes.max(), 9)  # ties of votes up to rounding
        place = sum(votes[other] > votes[label] or (votes[other] == votes[label] and other < label)
                    for other in range(num_classes))  # fmt: skip
        top1 += place == 0 and votes[label] > 0
        top5 += place < 5 and votes[label] > 0
    return top1, top5


def features(images: int, width: int, num_classes: int, seed: int, levels: int | None = None) -> Features:
    """Of random images that lean towards their class; with few levels many similarities are equal."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (images,), generator=generator)
    vectors = torch.randn(images, width, generator=generator) + 1.5 * torch.eye(num_classes, width)[labels]
    if levels is not None:
        vectors = (vectors.sign() + 1) * levels
    return Features(vectors, labels)


def counts(rows: list[dict]) -> list[tuple[int, int]]:
    return [(row["top1_count"], row["top5_count"]) for row in rows]


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("images", [15, 260])  # fewer than k, and more
def test_counts_are_those_of_the_formula(images, levels):
    train, val = features(images, 6, 9, seed=1, levels=levels), features(80, 6, 9, seed=2, levels=levels)
    rows = neighbour_rows(train, val, VOTES, 9, CPU)
    assert counts(rows) == [reference_counts(train, val, vote, 9) for vote in VOTES]
    assert [(row["k"], row["temperature"], row["images"]) for row in rows] == [
        (10, 0.07, 80), (20, 0.07, 80), (100, 0.07, 80), (200, 0.07, 80), (200, 0.1, 80)
    ]  # fmt: skip
    assert rows[0]["top1"] == 100 * rows[0]["top1_count"] / 80
    assert 0 < rows[0]["top1_count"] < rows[0]["top5_count"] <= 80


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_neither_chunks_nor_the_order_of_images_change_a_count(chunk, levels):
    train, val = features(150, 5, 7, seed=3, levels=levels), features(40, 5, 7, seed=4, levels=levels)
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(5))
    other = Features(train.vectors[shuffled], train.labels[shuffled])
    expected = counts(neighbour_rows(train, val, VOTES, 7, CPU))
    assert counts(neighbour_rows(train, val, VOTES, 7, CPU, chunk=chunk)) == expected
    assert counts(neighbour_rows(other, val, VOTES, 7, CPU, chunk=chunk)) == expected


def test_similarities_are_exact_in_any_order_of_the_sum():
    units = unit_vectors(torch.randn(50, 2048, generator=torch.Generator().manual_seed(0))).double()
    order = torch.randperm(2048, generator=torch.Generator().manual_seed(1))
    assert torch.equal(units @ units.T, units[:, order] @ units[:, order].T)
    assert torch.allclose(units.norm(dim=1), torch.ones(50, dtype=torch.float64), atol=1e-6)


def test_scale_does_not_matter_and_a_vector_of_zeros_has_no_direction():
    vectors = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit_vectors(vectors), unit_vectors(vectors * 8))
    assert torch.equal(unit_vectors(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_float16_features_are_scored_as_their_float32_copies():
    train, val = features(90, 5, 4, seed=6), features(30, 5, 4, seed=7)
    half = [Features(one.vectors.half(), one.labels) for one in (train, val)]
    same = [Features(one.vectors.float(), one.labels) for one in half]
    assert neighbour_rows(*half, VOTES, 4, CPU) == neighbour_rows(*same, VOTES, 4, CPU)


def test_one_hot_features_of_the_classes_score_everything():
    labels = torch.arange(60) % 6
    one_hot = Features(torch.eye(6)[labels], labels)
    assert counts(neighbour_rows(one_hot, one_hot, (HEADLINE,), 6, CPU)) == [(60, 60)]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_score_the_largest_class(value):
    train_labels = torch.tensor([0] * 40 + [1] * 41 + [2] * 39)  # the images in the first places are no answer
    val_labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 7)
    train = Features(torch.full((120, 4), value), train_labels)
    rows = neighbour_rows(train, Features(torch.full((15, 4), value), val_labels), VOTES, 3, CPU)
    assert [row["top1_count"] for row in rows] == [3] * len(VOTES)


def test_of_equal_votes_the_lower_class_comes_first_and_no_vote_is_no_prediction():
    train = Features(torch.eye(4), torch.tensor([2, 1, 0, 3]))
    val = Features(torch.tensor([[1.0, 1, 0, 0], [1.0, 1, 0, 0], [0, 0, 1.0, 0]]), torch.tensor([1, 2, 3]))
    (row,) = neighbour_rows(train, val, (Vote(2, 0.07),), 9, CPU)
    assert (row["top1_count"], row["top5_count"]) == (1, 3)  # the third: 1, 2 and 3 share the second place
    (row,) = neighbour_rows(train, val, (Vote(1, 0.07),), 9, CPU)
    assert (row["top1_count"], row["top5_count"]) == (1, 2)


def test_places():
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.2]]).expand(4, -1)
    assert places_of(scores, torch.arange(4)).tolist() == [3, 0, 1, 2]
