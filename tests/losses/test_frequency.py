from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import frequency
from losses.frequency import FocalWeight, MaskedFrequencyLoss, grayscale
from models.frequency_filter import FrequencyFilter
from tests.support import reference

QUARTERS = st.integers(1, 60).map(lambda n: n / 4)  # a quarter is never a rounded square root
GAMMAS, REDUCTIONS, SCOPES = [0.5, 1.0, 2.0], ["image", "batch"], ["removed", "all"]
KNOBS = [{"gamma": g, "reduction": r, "scope": s} for g, r, s in product(GAMMAS, REDUCTIONS, SCOPES)]
MIXED = torch.tensor([True, False, False])


class DiskLoss:
    """The loss as the task takes it behind a filter of one radius: what the filter removed counts."""

    def __init__(self, radius, outer_radius=None, **knobs):
        self.filter, self.loss = FrequencyFilter(radius, outer_radius), MaskedFrequencyLoss(**knobs)

    def removed(self, predicted, keep_low):
        return self.filter.removed(keep_low, *predicted.shape[-2:])

    def __call__(self, predicted, target, keep_low):
        return self.loss(predicted, target, self.removed(predicted, keep_low))

    def per_image(self, predicted, target, keep_low):
        return self.loss.per_image(predicted, target, self.removed(predicted, keep_low))


def random_pair(*shape, seed=0):
    predicted, target = np.random.default_rng(seed).normal(size=(2, *shape))
    return torch.from_numpy(predicted), torch.from_numpy(target)


def assert_close_to_1e_5(single, expected):
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5 * expected.std())


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize(("height", "width", "radius", "outer_radius"), reference.SPECTRA)
def test_value_and_gradient_agree_with_reference(height, width, radius, outer_radius, knobs):
    predicted, target = random_pair(3, 2, height, width)
    arguments = (predicted.numpy(), target.numpy(), MIXED, radius, outer_radius)
    value, gradient = reference.loss(*arguments, **knobs), reference.loss_gradient(*arguments, **knobs)
    criterion = DiskLoss(radius, outer_radius, **knobs)
    for dtype, rtol in [(torch.float64, 1e-10), (torch.float32, 2e-5)]:
        leaf = predicted.to(dtype, copy=True).requires_grad_()
        loss = criterion(leaf, target.to(dtype), MIXED)
        assert loss.dtype == dtype and loss.shape == ()
        assert loss.item() == pytest.approx(value, rel=rtol)
        (found,) = torch.autograd.grad(loss, leaf)
        np.testing.assert_allclose(found, gradient, rtol=rtol, atol=rtol * np.abs(gradient).max())
    images = criterion.per_image(predicted, target, MIXED)[0]
    assert images.shape == (3,)
    expected = reference.per_image(*arguments, gamma=knobs["gamma"], scope=knobs["scope"])
    np.testing.assert_allclose(images, expected, rtol=1e-10)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize(("height", "width", "outer_radius"), [(6, 5, None), (5, 6, 2.5)])
def test_gradcheck(height, width, outer_radius, knobs):
    predicted, target = random_pair(2, 1, height, width)
    criterion = DiskLoss(1.5, outer_radius, eps=1e-3, **knobs)
    keep_low = torch.tensor([True, False])
    assert torch.autograd.gradcheck(lambda x: criterion(x, target, keep_low), predicted.requires_grad_(), atol=1e-8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(3, 20), st.integers(3, 20)), QUARTERS, st.none() | QUARTERS,
    st.sampled_from(KNOBS), st.lists(st.booleans(), min_size=1, max_size=4),
)  # fmt: skip
def test_any_size_and_radius_agrees_or_is_refused(size, radius, band, knobs, keep_low):
    outer_radius = None if band is None else radius + band
    predicted, target = random_pair(len(keep_low), 2, *size)
    criterion = DiskLoss(radius, outer_radius, eps=1e-2, **knobs)
    if not reference.has_both_sides(*size, radius, outer_radius):
        with pytest.raises(ValueError, match=str(radius)):
            criterion(predicted, target, torch.tensor(keep_low))
        return
    arguments = (predicted.numpy(), target.numpy(), keep_low, radius, outer_radius)
    value, gradient = (f(*arguments, eps=1e-2, **knobs) for f in (reference.loss, reference.loss_gradient))
    loss = criterion(predicted.requires_grad_(), target, torch.tensor(keep_low))
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(predicted.grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("outer_radius", [None, 4.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_only_counted_frequencies_matter(scope, reduction, outer_radius):
    predicted, target = random_pair(3, 2, 10, 11)
    noise = np.random.default_rng(5).normal(size=predicted.shape)
    kept = torch.from_numpy(reference.filter_images(noise, MIXED, 3, outer_radius))
    removed = torch.from_numpy(reference.filter_images(noise, ~MIXED, 3, outer_radius))
    criterion = DiskLoss(3, outer_radius, scope=scope, reduction=reduction)
    before = criterion.per_image(predicted, target, MIXED)[0]
    loss, keeping = criterion(predicted, target, MIXED), criterion(predicted + kept, target, MIXED)
    assert torch.allclose(keeping, loss, rtol=1e-10) == (scope == "removed")
    for change, counts in [(kept, scope == "all"), (removed, True)]:
        moved = (criterion.per_image(predicted + change, target, MIXED)[0] - before).abs()
        assert (moved > 1e-3).all() if counts else (moved < 1e-10).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("gamma", "eps"), list(product(GAMMAS, [1e-7, 1e-12])))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_perfect_prediction_has_the_floor_value_and_zero_gradient(reduction, gamma, eps, dtype):
    target = random_pair(3, 2, 9, 10)[0].to(dtype)
    predicted = target.clone().requires_grad_()
    criterion = DiskLoss(3, gamma=gamma, eps=eps, reduction=reduction)
    loss = criterion(predicted, target, MIXED)
    loss.backward()
    assert loss.item() == pytest.approx(eps ** (gamma / 2), rel=1e-5, abs=0)
    assert torch.equal(predicted.grad, torch.zeros_like(target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_permuted_batch_permutes_per_image_and_leaves_loss(reduction):
    (predicted, target), keep_low = random_pair(5, 2, 9, 10), torch.tensor([1, 0, 0, 1, 0]).bool()
    criterion, order = DiskLoss(2.5, reduction=reduction), [3, 1, 4, 0, 2]
    permuted = (predicted[order], target[order], keep_low[order])
    torch.testing.assert_close(
        criterion.per_image(*permuted)[0], criterion.per_image(predicted, target, keep_low)[0][order]
    )
    torch.testing.assert_close(criterion(*permuted), criterion(predicted, target, keep_low))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype, autocast):
    predicted, target = (100 * x for x in random_pair(3, 3, 10, 9))  # squares beyond the range of float16
    predicted, target = predicted.to(dtype).requires_grad_(), target.float()
    criterion = DiskLoss(3, gamma=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss, images = criterion(predicted, target, MIXED), criterion.per_image(predicted, target, MIXED)[0]
    loss.backward()
    single = predicted.detach().float()
    assert loss.dtype == images.dtype == torch.float32
    assert torch.equal(loss, criterion(single, target, MIXED))
    assert torch.equal(images, criterion.per_image(single, target, MIXED)[0])
    assert predicted.grad.dtype == dtype and predicted.grad.isfinite().all() and predicted.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_grayscale_is_computed_in_float32(dtype):
    images = random_pair(3, 3, 10, 9)[0].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grey = grayscale(images)
    assert grey.dtype == torch.float32 and torch.equal(grey, grayscale(images.float()))


def test_one_loss_serves_changing_sizes_and_gradient_modes():
    criterion = DiskLoss(2.5)
    for height, width in [(8, 8), (8, 9), (9, 8), (9, 9), (6, 12), (12, 6), (4, 18), (8, 8)]:
        predicted, target = random_pair(3, 2, height, width)
        expected = reference.loss(predicted.numpy(), target.numpy(), MIXED, 2.5)
        with torch.inference_mode():  # validation may see a size first; training must still be able to go backward
            assert criterion(predicted.float(), target.float(), MIXED).item() == pytest.approx(expected, rel=1e-5)
        loss = criterion(predicted.requires_grad_(), target, MIXED)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_grayscale_weights():
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [2, -1, 0.5]], dtype=torch.float64).reshape(4, 3, 1, 1)
    grey = grayscale(images.expand(4, 3, 5, 6))
    assert grey.shape == (4, 1, 5, 6) and grey.dtype == torch.float64
    np.testing.assert_allclose(grey[:, 0, 2, 3], [0.299, 0.587, 0.114, 0.068], rtol=1e-12)


BAD = [
    ({"gamma": -1.5}, "-1.5"), ({"gamma": 0}, "0"), ({"eps": -0.25}, "-0.25"), ({"outer_radius": 0}, "0"),
    ({"reduction": "sum"}, "sum"), ({"scope": "kept"}, "kept"), ({"patch_factor": 2}, "scope = 'all'"),
    ({"average_spectrum": True}, "scope = 'all'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        MaskedFrequencyLoss(**arguments)


@pytest.mark.parametrize(("alpha", "maximum", "named"), [(0, "image", "0"), (-1, "image", "-1"), (1, "row", "'row'")])
def test_bad_focal_weights_are_named(alpha, maximum, named):
    with pytest.raises(ValueError, match=named):
        FocalWeight(alpha, maximum=maximum)


@pytest.mark.parametrize("call", ["__call__", "per_image"])
@pytest.mark.parametrize(
    ("predicted", "target", "batch"),
    [((3, 1, 8, 8), (3, 3, 8, 8), 3), ((3, 2, 8, 8), (1, 2, 8, 8), 3), ((3, 2, 8, 8), (3, 2, 8, 8), 1),
     ((3, 2, 8, 8), (3, 2, 8, 8), 2), ((3, 8, 8), (3, 8, 8), 3)],
)  # fmt: skip
def test_unlike_shapes_are_refused(predicted, target, batch, call):
    with pytest.raises(ValueError, match=r"\d"):
        removed = torch.ones(batch, 8, 5, dtype=torch.bool)
        getattr(MaskedFrequencyLoss(), call)(torch.zeros(predicted), torch.zeros(target), removed)


def test_coincheung_recipe_magnitude_of_normalised_image_and_grey_target():
    rng = np.random.default_rng(1)
    images, predicted = rng.uniform(size=(4, 3, 224, 224)), rng.normal(size=(4, 1, 224, 224))
    keep_low = np.array([True, False, False, True])
    normalised = (images - 0.4) / 0.2
    grey = 0.299 * normalised[:, 0:1] + 0.587 * normalised[:, 1:2] + 0.114 * normalised[:, 2:3]
    rows, columns = np.mgrid[-112:112, -112:112]
    disc = rows**2 + columns**2 < 16**2
    kept = np.where(keep_low[:, None, None, None], disc, ~disc)
    spectrum = np.fft.fftshift(np.fft.fft2(normalised), axes=(-2, -1))
    network_input = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum * kept, axes=(-2, -1))))
    error = np.fft.fftshift(np.fft.fft2(predicted, norm="ortho") - np.fft.fft2(grey, norm="ortho"), axes=(-2, -1))
    distance = np.sqrt(error.real**2 + error.imag**2 + 1e-7)
    expected = np.mean([distance[i, 0][~disc if keep_low[i] else disc].mean() for i in range(4)])

    keep_low, images = torch.from_numpy(keep_low), (torch.from_numpy(images).float() - 0.4) / 0.2
    assert_close_to_1e_5(FrequencyFilter(16, output="abs")(images, keep_low), network_input)
    assert_close_to_1e_5(grayscale(images), grey)
    loss = DiskLoss(16)(torch.from_numpy(predicted).float(), grayscale(images), keep_low)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


def test_authors_recipe_clamped_before_normalisation_and_pooled_colour_target():
    rng = np.random.default_rng(2)
    images, predicted = rng.uniform(size=(4, 3, 224, 224)), rng.normal(size=(4, 3, 224, 224))
    keep_low = np.array([False, True, False, False])
    mean, std = np.array([[[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]]])
    target = (images - mean) / std
    rows, columns = np.mgrid[-112:112, -112:112]
    disc = rows**2 + columns**2 < 16**2
    kept = np.where(keep_low[:, None, None, None], disc, ~disc)
    spectrum = np.fft.fftshift(np.fft.fft2(images), axes=(-2, -1))
    filtered = np.fft.ifft2(np.fft.ifftshift(spectrum * kept, axes=(-2, -1))).real
    network_input = (np.clip(filtered, 0, 1) - mean) / std
    error = np.fft.fftshift(np.fft.fft2(predicted, norm="ortho") - np.fft.fft2(target, norm="ortho"), axes=(-2, -1))
    distance = np.sqrt(error.real**2 + error.imag**2 + 1e-12)
    expected = (distance * ~kept).sum() / (3 * (~kept).sum())

    images, predicted, target, mean, std = (torch.tensor(x).float() for x in (images, predicted, target, mean, std))
    keep_low = torch.from_numpy(keep_low)
    assert_close_to_1e_5((FrequencyFilter(16, clamp=(0, 1))(images, keep_low) - mean) / std, network_input)
    loss = DiskLoss(16, eps=1e-12, reduction="batch")(predicted, target, keep_low)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_a_few_images_at_a_time_give_what_all_at_once_give(at_once, reduction, monkeypatch):
    predicted, target = random_pair(7, 2, 12, 10)
    keep_low = torch.arange(7) % 3 == 0
    found = []
    for images in (7, at_once):
        monkeypatch.setattr(frequency, "VALUES_AT_ONCE_ON_CPU", images * predicted[0].numel() + 5)
        leaf = predicted.clone().requires_grad_()
        loss = DiskLoss(3, reduction=reduction)(leaf, target, keep_low)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert all(torch.allclose(one, other, rtol=1e-12, atol=0) for one, other in zip(*found, strict=True))
    value = reference.loss(predicted.numpy(), target.numpy(), keep_low.numpy(), 3, reduction=reduction)
    assert found[1][0].item() == pytest.approx(value, rel=1e-10)
