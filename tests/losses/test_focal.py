"""The authors' loss knobs against full spectra in numpy float64, value and gradient."""

from itertools import product

import numpy as np
import pytest
import torch

from losses import frequency
from losses.frequency import FocalWeight, MaskedFrequencyLoss
from tests.support import reference

KEEP_LOW = [True, False, False]
FOCAL = [
    FocalWeight(a, log, maximum) for a, log, maximum in product([0.5, 1.0, 2.0], [False, True], ["image", "batch"])
]


def random_pair(*shape, seed=0):
    predicted, target = np.random.default_rng(seed).normal(size=(2, *shape))
    return torch.from_numpy(predicted), torch.from_numpy(target)


def removed_bins(shape, radius):
    counted = reference.counted_bins(shape, KEEP_LOW, radius)
    return torch.from_numpy(counted[..., : shape[-1] // 2 + 1]), counted


def focal_weight(distance, focal):
    """(B, C, H, W) distances -> their weights, as arXiv 2012.12821 has them."""
    weight = distance**focal.alpha
    if focal.log:
        weight = np.log(weight + 1)
    largest = weight.max() if focal.maximum == "batch" else weight.max((-2, -1), keepdims=True)
    return np.clip(np.nan_to_num(weight / largest), 0, 1)


def loss_and_gradient(predicted, target, counted, focal, gamma=1.0, eps=1e-7, reduction="image"):
    """With no gradient through the weight; one sum over the full spectrum."""
    difference = reference.dft2(predicted) - reference.dft2(target)
    weight = focal_weight(np.abs(difference), focal)
    counted = np.broadcast_to(counted[:, None], difference.shape)
    if reduction == "image":
        share = counted / counted.sum((1, 2, 3), keepdims=True) / len(counted)
    else:
        share = counted / counted.sum()
    squared = np.abs(difference) ** 2 + eps
    value = (share * weight * squared ** (gamma / 2)).sum()
    return value, reference.idft2(share * weight * gamma * squared ** (gamma / 2 - 1) * difference).real


@pytest.mark.parametrize("focal", FOCAL, ids=str)
@pytest.mark.parametrize(("height", "width", "gamma", "reduction"), [(8, 8, 1.0, "image"), (7, 9, 2.0, "batch")])
def test_focal_weight_agrees_with_reference(height, width, gamma, reduction, focal):
    predicted, target = random_pair(3, 2, height, width)
    removed, counted = removed_bins(predicted.shape, 2.5)
    value, gradient = loss_and_gradient(predicted.numpy(), target.numpy(), counted, focal, gamma, reduction=reduction)
    loss = MaskedFrequencyLoss(gamma=gamma, reduction=reduction, focal=focal)(
        predicted.requires_grad_(), target, removed
    )
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(predicted.grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("maximum", ["image", "batch"])
def test_focal_weight_does_not_depend_on_how_many_images_are_transformed_at_once(maximum, monkeypatch):
    predicted, target = random_pair(3, 2, 8, 9)
    removed, _ = removed_bins(predicted.shape, 2.5)
    criterion = MaskedFrequencyLoss(focal=FocalWeight(1.0, maximum=maximum))

    def value_and_gradient():
        leaf = predicted.clone().requires_grad_()
        criterion(leaf, target, removed).backward()
        return criterion(leaf, target, removed).detach(), leaf.grad

    at_once = value_and_gradient()
    monkeypatch.setattr(frequency, "VALUES_AT_ONCE_ON_CPU", 1)
    one_by_one = value_and_gradient()
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-12, atol=0)


@pytest.mark.parametrize("maximum", ["image", "batch"])
def test_a_perfect_prediction_has_focal_loss_0_and_no_gradient(maximum):
    target = random_pair(3, 2, 8, 8)[0]
    removed, _ = removed_bins(target.shape, 2.5)
    predicted = target.clone().requires_grad_()
    loss = MaskedFrequencyLoss(focal=FocalWeight(1.0, maximum=maximum))(predicted, target, removed)
    loss.backward()
    assert loss.item() == 0 and not predicted.grad.any()


@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("average", [False, True])
def test_tiles_and_average_spectra_agree_with_reference(factor, average, reduction):
    predicted, target = random_pair(3, 2, 8, 12)
    tiles = []
    for row, column in np.ndindex(factor, factor):
        rows = slice(row * 8 // factor, (row + 1) * 8 // factor)
        columns = slice(column * 12 // factor, (column + 1) * 12 // factor)
        difference = reference.dft2(predicted[..., rows, columns]) - reference.dft2(target[..., rows, columns])
        if average:
            difference = difference.mean(0, keepdims=True)
        tiles.append(np.sqrt(np.abs(difference) ** 2 + 1e-12))
    criterion = MaskedFrequencyLoss(
        eps=1e-12, reduction=reduction, scope="all", patch_factor=factor, average_spectrum=average
    )
    loss = criterion(predicted.requires_grad_(), target, None)
    assert loss.item() == pytest.approx(np.mean(tiles), rel=1e-10)
    errors, count = criterion.per_image(predicted, target, None)
    assert errors.shape == count.shape == (3,) and count.tolist() == [8 * 12] * 3
    leaf = predicted.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, target, None), leaf, atol=1e-7)


def test_tiles_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="patch_factor = 3: does not divide images of 8×12"):
        MaskedFrequencyLoss(scope="all", patch_factor=3)(*random_pair(1, 1, 8, 12), None)


@pytest.mark.parametrize(("scope", "reduction"), list(product(["removed", "all"], ["image", "batch"])))
@pytest.mark.parametrize(("height", "width"), [(12, 12), (11, 14)])
def test_bins_beyond_the_outer_radius_do_not_count(height, width, scope, reduction):
    predicted, target = random_pair(3, 2, height, width)
    removed, counted = removed_bins(predicted.shape, 2.5)
    distance = np.hypot(*np.meshgrid(reference.frequencies(height), reference.frequencies(width), indexing="ij"))
    if scope == "all":
        counted = np.ones_like(counted)
    counted = counted & (distance < 4)
    spectrum = reference.dft2(predicted) - reference.dft2(target)
    terms = [np.sqrt(np.abs(one[:, mask]) ** 2 + 1e-7) for one, mask in zip(spectrum, counted, strict=True)]
    expected = np.mean([one.mean() for one in terms]) if reduction == "image" else np.concatenate(terms, 1).mean()
    criterion = MaskedFrequencyLoss(scope=scope, reduction=reduction, outer_radius=4)
    assert criterion(predicted, target, removed).item() == pytest.approx(expected, rel=1e-10)
    leaf = predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: criterion(x, target, removed), leaf, atol=1e-7)


def test_an_image_of_which_no_bin_counts_has_distance_0():
    predicted, target = random_pair(3, 1, 8, 8)
    removed, _ = removed_bins(predicted.shape, 2.5)
    removed[1] = False
    for reduction in ("image", "batch"):
        errors, count = MaskedFrequencyLoss(reduction=reduction).per_image(predicted, target, removed)
        assert errors[1] == 0 and count[1] == 0 and errors.isfinite().all()


def test_a_mask_is_asked_for_where_only_removed_bins_count():
    with pytest.raises(ValueError, match="scope = 'all'"):
        MaskedFrequencyLoss()(*random_pair(1, 1, 8, 8), None)
