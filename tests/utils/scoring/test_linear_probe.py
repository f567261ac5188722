"""The linear probe against slow float64 descent written from the formula, and what C may and may not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.folder import ImageFolder, is_held_out
from tests.support.helpers import image_folder
from utils.scoring import linear_probe
from utils.scoring.features import Features
from utils.scoring.linear_probe import (
    HELD_OUT,
    choose_strength,
    fit,
    held_out_part,
    linear_row,
    loss_and_gradient,
    scores_of,
    standardised,
)

CPU = torch.device("cpu")


def features(images: int, seed: int, width: int = 5, num_classes: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (images,), generator=generator)
    vectors = 3 + 2 * torch.randn(images, width, generator=generator) + 2 * torch.eye(num_classes, width)[labels]
    return Features(vectors, labels)


def held_out_of(images: int, every: int = 4) -> torch.Tensor:
    return torch.arange(images) % every == 0


def reference_theta(x: np.ndarray, labels: np.ndarray, num_classes: int, strength: float) -> np.ndarray:
    """(K, D + 1): Newton's method on Σ CE + ‖W‖² / (2 C), with the Hessian written out."""
    images, width = x.shape
    extended = np.hstack([x, np.ones((images, 1))])
    truth = np.eye(num_classes)[labels]
    theta = np.zeros((num_classes, width + 1))
    penalty = np.tile(np.append(np.ones(width), 0) / strength, num_classes)
    for _ in range(100):
        logits = extended @ theta.T
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        gradient = ((probabilities - truth).T @ extended).ravel() + penalty * theta.ravel()
        hessian = np.diag(penalty)
        for row, p in zip(extended, probabilities, strict=True):
            hessian = hessian + np.kron(np.diag(p) - np.outer(p, p), np.outer(row, row))
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]  # the biases have one direction too many
        theta -= step.reshape(theta.shape)
    return theta


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_a_fit_is_the_minimum_of_the_formula(strength):
    train = features(60, seed=1)
    data = standardised(train, torch.arange(60), CPU)
    fitted = fit(data, torch.zeros(4, 6, dtype=torch.float64), strength, lambda: None)
    vectors = train.vectors.double().numpy()
    x = (vectors - vectors.mean(0)) / vectors.std(0)
    expected = reference_theta(x, train.labels.numpy(), 4, strength)
    assert fitted.converged
    assert np.abs(fitted.theta[:, :-1].numpy() - expected[:, :-1]).max() < 1e-4 * max(1, np.abs(expected).max())
    assert np.array_equal((x @ expected[:, :-1].T + expected[:, -1]).argmax(1),
                          (x @ fitted.theta[:, :-1].numpy().T + fitted.theta[:, -1].numpy()).argmax(1))  # fmt: skip


def test_loss_and_gradient_are_those_of_the_formula_in_any_chunks(monkeypatch):
    train = features(40, seed=2)
    data = standardised(train, torch.arange(40), CPU)
    theta = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.cat([vectors for vectors, _ in data.chunks()])
    logits = x @ theta[:, :-1].T + theta[:, -1]
    entropy = -logits.log_softmax(1)[torch.arange(40), train.labels].sum()
    expected = (entropy + theta[:, :-1].square().sum() / (2 * 0.3)) / 40
    expected.backward()
    for chunk in (40, 7, 1):
        monkeypatch.setattr(linear_probe, "CHUNK", chunk)
        loss, gradient = loss_and_gradient(data, theta.detach(), 0.3)
        assert torch.allclose(loss, expected.detach(), rtol=1e-13)
        assert torch.allclose(gradient, theta.grad, rtol=1e-11, atol=1e-14)


def test_features_are_standardised_by_the_images_of_the_fit_alone_and_constant_ones_left_out():
    train = features(50, seed=3)
    train.vectors[:, 2] = 0.1
    rows = torch.arange(30)
    data = standardised(train, rows, CPU)
    x = torch.cat([vectors for vectors, _ in data.chunks()])
    varying = [0, 1, 3, 4]
    assert torch.allclose(x.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(x[:, varying].square().mean(0), torch.ones(4, dtype=torch.float64))
    assert data.scale[2] == 0
    others = torch.cat([vectors for vectors, _ in data.of(train, torch.arange(30, 50)).chunks()])
    assert torch.equal(others, (train.vectors[30:].double() - data.mean) * data.scale)


def test_val_has_no_say_in_c_and_held_out_images_none_in_the_fit_that_they_judge():
    train, held_out = features(120, seed=4), held_out_of(120)
    strength, tried = choose_strength(train, held_out, 4, CPU, lambda: None)
    val = features(30, seed=5)
    mislabelled = Features(val.vectors, (val.labels + 1) % 4)
    rows = [linear_row(train, images, held_out, 4, CPU) for images in (val, mislabelled)]
    assert rows[0]["top1_count"] != rows[1]["top1_count"]
    for row in rows:
        assert row["C"] == strength and row["held_out"] == tried and row["held_out_images"] == 30
    spoiled = Features(train.vectors.clone(), train.labels.clone())
    spoiled.labels[held_out] = (train.labels[held_out] + 1) % 4
    _, tried_spoiled = choose_strength(spoiled, held_out, 4, CPU, lambda: None)
    assert tried_spoiled[0]["iterations"] == tried[0]["iterations"]  # the same fit
    assert tried_spoiled[0]["loss"] != tried[0]["loss"]


def test_c_is_the_one_with_most_held_out_images_right_then_with_the_lower_loss():
    strength, tried = choose_strength(features(120, seed=7), held_out_of(120), 4, CPU, lambda: None)
    best = max(tried, key=lambda line: (line["top1_count"], -line["loss"]))
    assert strength == best["C"]
    grid = [10 ** (half / 2) for half in range(-12, len(tried) - 12)]
    assert [line["C"] for line in tried] == pytest.approx(grid)
    assert tried[-1]["C"] > strength > tried[0]["C"]


def test_the_final_fit_takes_all_of_train():
    train, held_out, val = features(80, seed=8), held_out_of(80), features(40, seed=9)
    row = linear_row(train, val, held_out, 4, CPU)
    data = standardised(train, torch.arange(80), CPU)
    fitted = fit(data, torch.zeros(4, 6, dtype=torch.float64), row["C"], lambda: None)
    assert scores_of(fitted.theta, data.of(val, torch.arange(40)))["top1_count"] == row["top1_count"]


def test_one_hot_features_score_everything_and_constant_ones_the_largest_class():
    labels = torch.arange(80) % 4
    one_hot = Features(torch.eye(4)[labels], labels)
    assert linear_row(one_hot, one_hot, held_out_of(80, 5), 4, CPU)["top1"] == 100
    labels = torch.tensor([0] * 20 + [1] * 30 + [2] * 10)
    constant = Features(torch.full((60, 4), 2.5), labels)
    val = Features(torch.full((9, 4), 2.5), torch.tensor([0] * 4 + [1] * 2 + [2] * 3))
    assert linear_row(constant, val, held_out_of(60), 3, CPU)["top1_count"] == 2


def test_the_held_out_part_is_a_hash_of_the_path_and_not_that_of_holdout_fraction(tmp_path):
    root = image_folder(tmp_path / "here", per_class=60, size=(8, 8))
    folder, elsewhere = ImageFolder(str(root)), ImageFolder(str(image_folder(tmp_path / "there", per_class=60)))
    held_out = held_out_part(folder)
    assert 0.1 < held_out.double().mean() < 0.3
    assert torch.equal(held_out, held_out_part(elsewhere))
    names = [folder.path(index).removeprefix(f"{root}/") for index in range(len(folder))]
    assert held_out.tolist() != [is_held_out(name, HELD_OUT) for name in names]
