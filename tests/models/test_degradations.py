"""Super-resolution, blur and noise, against slow float64 references written from their formulas."""

import math

import numpy as np
import pytest
import torch

from models.degradations import Blur, Noise, SuperResolution
from utils.seeding import keyed_torch


def random_images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


def no_choice(count):
    return torch.zeros(count, dtype=torch.int64)


# Super-resolution.


def cubic(x, a=-0.75):
    """Keys' kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def resized(line, size):
    """A line of pixels resampled without antialiasing: pixel centres at k + 1/2, the border repeated."""
    result = np.zeros(size)
    for k in range(size):
        centre = (k + 0.5) * len(line) / size - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            result[k] += cubic(centre - tap) * line[min(max(tap, 0), len(line) - 1)]
    return result


def resized_image(image, height, width):
    rows = np.stack([resized(row, width) for row in image])
    return np.clip(np.stack([resized(column, height) for column in rows.T]).T, 0, 1)


@pytest.mark.parametrize(("height", "width", "factor"), [(16, 24, 8), (17, 23, 4), (9, 9, 2)])
def test_super_resolution_agrees_with_the_formula(height, width, factor):
    images = random_images(2, 3, height, width).round()  # black and white: the clamps matter
    degraded, removed = SuperResolution(factor).corrupt(images, no_choice(2))
    assert removed is None and degraded.dtype == torch.float64
    for b, c in np.ndindex(2, 3):
        small = resized_image(images[b, c].numpy(), height // factor, width // factor)
        np.testing.assert_allclose(degraded[b, c], resized_image(small, height, width), atol=1e-12)
    single, _ = SuperResolution(factor).corrupt(images.float(), no_choice(2))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), degraded, atol=1e-5, rtol=0)


def test_super_resolution_leaves_a_constant_image_alone():
    images = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)[None, :, None, None].expand(2, 3, 32, 40)
    torch.testing.assert_close(SuperResolution(8).corrupt(images, no_choice(2))[0], images)


def test_super_resolution_of_nothing_is_refused():
    with pytest.raises(ValueError, match="downscale = 33: leaves nothing of 32×64"):
        SuperResolution(33).corrupt(torch.zeros(1, 3, 32, 64), no_choice(1))


# Blur.


def blurred(image, side, sigma):
    """One sum over side × side pixels for each pixel; the border is mirrored about the outermost pixel."""
    height, width = image.shape
    half = side // 2
    squared = np.arange(-half, half + 1) ** 2
    kernel = np.exp(-(squared[:, None] + squared) / (2 * sigma**2))
    kernel /= kernel.sum()
    result = np.zeros_like(image)
    for y, x in np.ndindex(height, width):
        for i, j in np.ndindex(side, side):
            row, column = abs(y + i - half), abs(x + j - half)
            row, column = min(row, 2 * (height - 1) - row), min(column, 2 * (width - 1) - column)
            result[y, x] += kernel[i, j] * image[row, column]
    return result


def test_blur_agrees_with_the_formula_for_every_side():
    blur = Blur(3, 9, sigma=2.0)
    images = random_images(4, 2, 8, 11)
    degraded, removed = blur.corrupt(images, torch.arange(4))
    assert removed is None
    for number, side in enumerate((3, 5, 7, 9)):
        for channel in range(2):
            expected = blurred(images[number, channel].numpy(), side, 2.0)
            np.testing.assert_allclose(degraded[number, channel], expected, atol=1e-12)
    single, _ = blur.corrupt(images.float(), torch.arange(4))
    torch.testing.assert_close(single.double(), degraded, atol=1e-6, rtol=0)


def test_each_odd_side_is_drawn_equally_often():
    blur = Blur(7, 21, sigma=5.0)
    assert blur.sides == (7, 9, 11, 13, 15, 17, 19, 21)
    choices = [blur.choose(uniform) for uniform in np.linspace(0, 1, 8000, endpoint=False)]
    assert np.bincount(choices).tolist() == [1000] * 8
    assert blur.choose(np.nextafter(1, 0)) == 7


def test_blur_keeps_the_mean_away_from_borders():
    images = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    images[0, 0, 24:40, 24:40] = random_images(16, 16)
    degraded, _ = Blur(7, 21, sigma=5.0).corrupt(images, torch.tensor([7]))
    torch.testing.assert_close(degraded.mean(), images.mean(), rtol=1e-12, atol=0)
    assert degraded.std() < images.std()


@pytest.mark.parametrize(("arguments", "named"), [((6, 21, 5.0), "6"), ((9, 7, 5.0), "9"), ((7, 21, 0.0), "0.0")])
def test_a_blur_that_is_none_is_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        Blur(*arguments)


def test_a_blur_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="21 pixels needs images of more than 10"):
        Blur(7, 21, 5.0).corrupt(torch.zeros(1, 3, 10, 32), torch.tensor([0]))


# Noise.


def test_noise_has_its_variance_and_is_a_function_of_the_key():
    images = random_images(4, 3, 64, 64)
    noise = Noise(75 / 255)

    def of_key(step):
        with keyed_torch(5, "mixing", step, 0):
            return noise.corrupt(images, no_choice(4))[0]

    added = of_key(0) - images
    values = added.numel()
    assert abs(added.mean()) < 4 * 75 / 255 / math.sqrt(values)
    assert added.std().item() == pytest.approx(75 / 255, rel=4 / math.sqrt(2 * values))
    assert torch.equal(of_key(0), of_key(0)) and not torch.equal(of_key(0), of_key(1))
    channels = added.movedim(1, 0).flatten(1)
    correlation = torch.corrcoef(channels) - torch.eye(3, dtype=torch.float64)
    assert correlation.abs().max() < 4 / math.sqrt(values / 3)
    assert of_key(0).min() < 0 and of_key(0).max() > 1  # not clamped
