"""Masks of each image's own, against full spectra in numpy."""

import numpy as np
import pytest
import torch

from models.spectral_masks import MagnitudeFilter, RandomRadiusFilter
from tests.support import reference

SIZES = [(8, 8), (7, 9), (9, 6), (12, 11)]
UNIFORM = torch.tensor([0.02, 0.29, 0.3, 0.5, 0.999], dtype=torch.float64)  # two below 0.3


def random_images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


def full(half, width):
    """(B, U, V) bool of a half spectrum -> (B, H, W): each bin and its mirror image."""
    height = half.shape[-2]
    rows, columns = np.mgrid[0:height, 0:width]
    mirrored = columns > width // 2
    rows, columns = np.where(mirrored, -rows % height, rows), np.where(mirrored, width - columns, columns)
    return half.numpy()[:, rows, columns]


# A radius for each image.


@pytest.mark.parametrize("outer_radius", [None, 4.5])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_image_is_filtered_with_its_own_radius(height, width, outer_radius):
    images = random_images(5, 2, height, width)
    random_filter = RandomRadiusFilter((1.5, 3.5), outer_radius, low_pass_probability=0.3)
    filtered, removed = random_filter.corrupt(images, UNIFORM)
    keep_low = [True, True, False, False, False]
    places = [0.02 / 0.3, 0.29 / 0.3, 0.0, 0.2 / 0.7, 0.699 / 0.7]
    assert random_filter.keep_low(UNIFORM).tolist() == keep_low
    for number, place in enumerate(places):
        radius = 1.5 + 2 * place
        assert random_filter.radius(UNIFORM)[number].item() == pytest.approx(radius)
        one, coin = images[number : number + 1].numpy(), [keep_low[number]]
        expected = reference.filter_images(one, coin, radius, outer_radius)
        np.testing.assert_allclose(filtered[number : number + 1], expected, atol=1e-12)
        counted = reference.counted_bins((1, 2, height, width), coin, radius, outer_radius)
        np.testing.assert_array_equal(full(removed, width)[number], counted[0])


def test_coin_and_radius_are_independent_and_uniform():
    random_filter = RandomRadiusFilter((4.0, 8.0), None, low_pass_probability=0.3)
    uniform = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    radius, low = random_filter.radius(uniform), random_filter.is_kind("low_pass", uniform)
    assert low.double().mean().item() == pytest.approx(0.3, abs=1e-4)
    for side in (low, ~low):
        assert radius[side].min() == pytest.approx(4, abs=1e-3) and radius[side].max() == pytest.approx(8, abs=1e-3)
        assert radius[side].mean() == pytest.approx(6, abs=1e-3)


@pytest.mark.parametrize(("probability", "kinds"), [(0, ("high_pass",)), (1, ("low_pass",)), (0.4, None)])
def test_examples_are_of_their_kind_and_have_the_middle_radius(probability, kinds):
    random_filter = RandomRadiusFilter((4.0, 8.0), None, low_pass_probability=probability)
    assert random_filter.kinds == (kinds or ("low_pass", "high_pass"))
    for kind in random_filter.kinds:
        example = torch.tensor([random_filter.example(kind)], dtype=torch.float64)
        assert random_filter.is_kind(kind, example).all()
        assert random_filter.radius(example).item() == pytest.approx(6)


# The largest frequencies of each image.


def largest_of_full_spectrum(image, share):
    """(C, H, W) -> (H, W) bool: bins in order of their size, a bin and its mirror image together, until enough."""
    power = (np.abs(np.fft.fft2(image)) ** 2).mean(0)
    height, width = power.shape
    taken = np.zeros((height, width), dtype=bool)
    for flat in np.argsort(-power, axis=None):
        if taken.sum() >= round(share * height * width):
            break
        row, column = np.unravel_index(flat, power.shape)
        taken[row, column] = taken[-row % height, -column % width] = True
    return taken


@pytest.mark.parametrize("share", [0.02, 0.25, 0.9])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_largest_bins_are_kept_or_removed(height, width, share):
    images = random_images(4, 3, height, width)
    keep_low = torch.tensor([True, False, True, False])
    filtered, removed = MagnitudeFilter(share, low_pass_probability=0.5).corrupt(images, keep_low)
    for number in range(4):
        largest = largest_of_full_spectrum(images[number].numpy(), share)
        assert round(share * height * width) <= largest.sum() <= round(share * height * width) + 1
        kept = largest if keep_low[number] else ~largest
        np.testing.assert_array_equal(full(removed, width)[number], ~kept)
        expected = np.fft.ifft2(np.fft.fft2(images[number].numpy()) * kept)
        assert np.abs(expected.imag).max() < 1e-12  # the mask is symmetric, so the image stays real
        np.testing.assert_allclose(filtered[number], expected.real, atol=1e-12)


def test_the_mask_is_each_images_own_and_the_two_sides_are_the_image():
    images = random_images(3, 1, 16, 16)
    both = MagnitudeFilter(0.1, low_pass_probability=0.5)
    low, removed = both.corrupt(images, torch.ones(3, dtype=torch.bool))
    high, _ = both.corrupt(images, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(low + high, images)
    assert not torch.equal(removed[0], removed[1])
    assert both.largest_bins(images)[:, 0, 0].all()  # the mean is the largest frequency of positive pixels


def test_an_image_of_one_colour_has_no_side_to_split():
    images = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    low, removed = MagnitudeFilter(0.1, low_pass_probability=1).corrupt(images, torch.tensor([True]))
    torch.testing.assert_close(low, images)
    assert torch.isfinite(low).all()


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match=str(share)):
        MagnitudeFilter(share, low_pass_probability=0.5)


@pytest.mark.parametrize("share", [0.004, 0.996])
def test_a_share_of_less_than_one_bin_is_refused(share):
    with pytest.raises(ValueError, match=f"share = {share}: leaves an empty side of 64 bins"):
        MagnitudeFilter(share, low_pass_probability=0.5).corrupt(torch.rand(1, 3, 8, 8), torch.tensor([True]))
