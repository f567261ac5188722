"""Mixup and cutmix: what is mixed with what, in which share, and that the targets say so."""

import numpy as np
import pytest
import torch

from models.mixing import Mixing
from utils.seeding import keyed_torch

BATCH, CLASSES, SIZE = 5, 7, 16
LABELS = torch.tensor([4, 0, 2, 6, 3])
PREVIOUS = LABELS.roll(1)


def images():
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def mixed(mixing, number=0, seed=0):
    with keyed_torch(seed, "mixing", number):
        return mixing(images(), LABELS)


def own_share(targets):
    """The share of each image itself, from targets that hold nothing but it and the image before it."""
    own, other = targets[range(BATCH), LABELS], targets[range(BATCH), PREVIOUS]
    torch.testing.assert_close(own + other, torch.ones(BATCH))
    assert targets.count_nonzero(1).max() <= 2
    assert (own == own[0]).all()
    return float(own[0])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.1, 0), (0, 1.0), (0.1, 1.0), (0, 0)])
def test_targets_sum_to_one(mixup, cutmix):
    for number in range(20):
        pixels, targets = mixed(Mixing(mixup, cutmix, CLASSES), number)
        assert (targets.shape, targets.dtype) == ((BATCH, CLASSES), torch.float32)
        assert (pixels.shape, pixels.dtype) == ((BATCH, 3, SIZE, SIZE), torch.float32)
        torch.testing.assert_close(targets.sum(1), torch.ones(BATCH))
        assert targets.min() >= 0


def test_without_mixing_targets_are_one_hot():
    pixels, targets = mixed(Mixing(0, 0, CLASSES))
    assert torch.equal(pixels, images())
    assert torch.equal(targets, torch.eye(CLASSES)[LABELS])


def test_mixup_is_linear_in_the_previous_image():
    for number in range(20):
        pixels, targets = mixed(Mixing(1.0, 0, CLASSES), number)
        share = own_share(targets)
        torch.testing.assert_close(pixels, share * images() + (1 - share) * images().roll(1, 0))


def test_cutmix_box_has_the_targets_share():
    areas = []
    for number in range(40):
        pixels, targets = mixed(Mixing(0, 1.0, CLASSES), number)
        share = own_share(targets)
        kept = (pixels == images()).all(1)
        assert torch.equal(~kept, (pixels == images().roll(1, 0)).all(1))
        assert (kept == kept[0]).all()  # one box for the batch
        box = ~kept[0]
        assert int(box.sum()) == int(box.any(0).sum() * box.any(1).sum())  # a rectangle
        assert abs(float(box.float().mean()) - (1 - share)) < 1e-6
        areas.append(float(box.float().mean()))
    assert min(areas) < 0.1 and max(areas) > 0.5


def is_cutmix(pixels):
    same, previous = pixels == images(), pixels == images().roll(1, 0)
    return bool((same | previous).all())


def test_each_of_the_two_about_half_the_time():
    drawn = [is_cutmix(mixed(Mixing(1.0, 1.0, CLASSES), number)[0]) for number in range(300)]
    assert 120 < sum(drawn) < 180


@pytest.mark.parametrize(("alpha", "least", "most"), [(0.1, 0.3, 0.6), (1.0, 0.01, 0.15), (50.0, 0.0, 0.0)])
@pytest.mark.parametrize("other", [0, 0.5])
@pytest.mark.parametrize("cut", [False, True])
def test_each_draws_its_share_by_its_own_alpha(cut, other, alpha, least, most):
    """How often an image stays nearly whole: half the time for small alphas, never for large ones."""
    mixing = Mixing(other, alpha, CLASSES) if cut else Mixing(alpha, other, CLASSES)
    results = [mixed(mixing, number) for number in range(300)]
    shares = np.array([own_share(targets) for pixels, targets in results if is_cutmix(pixels) == cut])
    assert least <= np.mean(shares > 0.97) <= most


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0), (0, 1.0), (1.0, 1.0)])
def test_a_function_of_the_key(mixup, cutmix):
    first = mixed(Mixing(mixup, cutmix, CLASSES), 3)
    torch.rand(3)
    again = mixed(Mixing(mixup, cutmix, CLASSES), 3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (mixed(Mixing(mixup, cutmix, CLASSES), 4), mixed(Mixing(mixup, cutmix, CLASSES), 3, seed=1)):
        assert not torch.equal(first[1], other[1])
