"""FGSM and PGD against their formulas in float64, written out for a small classifier of waves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.attacks import AttackedViews, fgsm, pgd
from models.normalize import Normalizer
from utils.distributed import World

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIDE, CLASSES, IMAGES = 4, 5, 6
EPSILON, STEP, STEPS = 1 / 255, 0.5 / 255, 5
CPU = torch.device("cpu")
WAVES = 150.0  # so that within ε of an image the loss has maxima, and the start decides which of them is reached


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(WAVES * x)


@pytest.fixture
def network() -> nn.Sequential:
    """In training mode, with a BatchNorm, which must take its running statistics, 0 and 1, all the same."""
    torch.manual_seed(0)
    linear = nn.Linear(3 * SIDE * SIDE, CLASSES)
    return nn.Sequential(nn.Flatten(), Sine(), linear, nn.BatchNorm1d(CLASSES)).train()


@pytest.fixture
def crops() -> torch.Tensor:
    """uint8, with pixels at both ends of the range, where clipping shows."""
    images = torch.randint(0, 256, (IMAGES, 1, 3, SIDE, SIDE), dtype=torch.uint8)
    images[:, :, 0, 0], images[:, :, 1, 1] = 0, 255
    return images


def reference_gradient(network, pixels: np.ndarray, label: int) -> np.ndarray:
    """Of the cross-entropy of one image, in float64: (softmax − one-hot) through the layers back to the pixels."""
    weight = network[2].weight.detach().double().numpy() / np.sqrt(1 + network[3].eps)
    bias = network[2].bias.detach().double().numpy() / np.sqrt(1 + network[3].eps)
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    normalised = (pixels - mean) / std
    logits = weight @ np.sin(WAVES * normalised).reshape(-1) + bias
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    shares[label] -= 1
    return (weight.T @ shares).reshape(pixels.shape) * WAVES * np.cos(WAVES * normalised) / std


def reference_fgsm(network, pixels, label):
    return np.clip(pixels + EPSILON * np.sign(reference_gradient(network, pixels, label)), 0, 1)


def reference_pgd(network, pixels, label, start):
    attacked = np.clip(pixels + start, 0, 1)
    for _ in range(STEPS):
        attacked = attacked + STEP * np.sign(reference_gradient(network, attacked, label))
        attacked = np.clip(np.clip(attacked, pixels - EPSILON, pixels + EPSILON), 0, 1)
    return attacked


def test_both_attacks_follow_their_formulas(network, crops):
    network.double()  # else a sign could differ where a gradient is nearly 0
    images, labels = crops[:, 0].double() / 255, torch.arange(IMAGES) % CLASSES
    start = (2 * torch.rand(images.shape, dtype=torch.float64) - 1) * EPSILON
    normalize = Normalizer(MEAN, STD)
    normalize.mean, normalize.std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    by_fgsm, by_pgd = fgsm(network, normalize, images, labels), pgd(network, normalize, images, labels, start)
    for number in range(IMAGES):
        pixels, label = images[number].numpy(), int(labels[number])
        expected = reference_fgsm(network, pixels, label)
        np.testing.assert_allclose(by_fgsm[number].numpy(), expected, atol=1e-6)
        expected = reference_pgd(network, pixels, label, start[number].numpy())
        np.testing.assert_allclose(by_pgd[number].numpy(), expected, atol=1e-6)
    for attacked in (by_fgsm, by_pgd):
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert (attacked - images).abs().max() <= EPSILON + 1e-7
    assert (by_pgd - by_fgsm).abs().mean() > EPSILON / 10  # they are two attacks
    assert network.training and network[3].num_batches_tracked == 0


def attacked_views(network, labels, world, batches, seed=0) -> list[torch.Tensor]:
    """The images of each view, over batches, as an evaluation calls it."""
    views = AttackedViews(network, Normalizer(MEAN, STD), labels, world, seed)
    with torch.inference_mode():  # as evaluate() is; a loader without workers makes its batches inside
        made = [list(views(batch.clone())) for batch in batches]
    assert [list(name.values()) for name in views.names] == [["none"], ["fgsm"], ["pgd"]]
    return [torch.cat(view) for view in zip(*made, strict=True)]


def test_views_depend_on_no_batch_size_and_on_no_number_of_ranks(network, crops):
    labels = (np.arange(IMAGES) % CLASSES).astype(np.int32)
    whole = attacked_views(network, labels, World(0, 1, 1, CPU), [crops])
    parts = attacked_views(network, labels, World(0, 1, 1, CPU), crops.split(4))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for rank in range(2):
        of_rank = attacked_views(network, labels, World(rank, 2, 2, CPU), crops[rank::2].split(2))
        for one, other in zip(whole, of_rank, strict=True):
            torch.testing.assert_close(one[rank::2], other, atol=1e-6, rtol=1e-6)
    other_seed = attacked_views(network, labels, World(0, 1, 1, CPU), [crops], seed=1)
    assert torch.equal(other_seed[1], whole[1]) and not torch.equal(other_seed[2], whole[2])
    clean = Normalizer(MEAN, STD)(crops[:, 0].float() / 255)
    assert torch.equal(whole[0], clean)
    start = AttackedViews(network, Normalizer(MEAN, STD), labels, World(0, 1, 1, CPU), 0).starts(np.arange(50), (3, 9))
    assert start.abs().max() <= EPSILON and start.abs().max() > 0.99 * EPSILON and abs(start.mean()) < EPSILON / 10
