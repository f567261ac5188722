"""The numbers behind the pictures, against slow loops over the full spectrum, and the sheet that holds pictures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.normalize import Normalizer, unit_float
from utils.pictures import combined, eight_bit, log_magnitude, psnr, radial_error, radial_mean, sheet, shorten
from utils.spectrum import kept_when_low

HOSTILE = ["<script>alert(1)", "a'b\"c", "x" * 255, "雪 Ёлка مرحبا", "$x_1^$ |b|\n*c*", "_hidden", "\udcff"]


def distances(side: int) -> np.ndarray:
    """√(u² + v²) of each bin of a full spectrum in natural order, by its signed frequencies."""
    signed = np.fft.fftfreq(side, 1 / side)
    return np.sqrt(signed[:, None] ** 2 + signed[None, :] ** 2)


@pytest.mark.parametrize("side", [8, 32])
def test_radial_error_is_the_mean_over_rings_of_the_full_spectrum(side):
    torch.manual_seed(0)
    predicted, target = torch.rand(2, 3, side, side), torch.rand(2, 3, side, side)
    errors = radial_error(predicted, target)
    error = np.abs(np.fft.fft2(predicted.double().numpy() - target.double().numpy(), norm="ortho"))
    level = np.abs(np.fft.fft2(target.double().numpy(), norm="ortho"))
    ring = np.floor(distances(side))
    assert len(errors["error"]) == ring.max() + 1
    for radius in range(int(ring.max()) + 1):
        mean, of_target = (spectrum[..., ring == radius].mean() for spectrum in (error, level))
        assert errors["error"][radius].item() == pytest.approx(mean, rel=1e-5)
        assert errors["relative"][radius].item() == pytest.approx(mean / of_target, rel=1e-5)


def test_a_wave_is_in_the_ring_of_its_radius_and_nowhere_else():
    x = torch.arange(32).double()
    wave = torch.cos(2 * math.pi * (3 * x[:, None] + 4 * x[None, :]) / 32)[None, None]  # at (3, 4): radius 5
    rings = radial_mean(torch.fft.rfft2(wave, norm="ortho").abs())
    bins = (np.floor(distances(32)) == 5).sum()
    assert rings[5].item() == pytest.approx(2 * 16 / bins)  # of the two bins ±(3, 4), each 32 / 2
    assert rings[torch.arange(len(rings)) != 5].abs().max() < 1e-12


def test_predicting_nothing_has_relative_error_1_and_all_of_it_0():
    target = torch.rand(2, 3, 32, 32)
    assert torch.allclose(radial_error(torch.zeros_like(target), target)["relative"], torch.ones(23).double())
    assert radial_error(target, target)["error"].abs().max() == 0


@pytest.mark.parametrize("outer", [None, 11.5])
def test_combined_is_the_original_when_the_prediction_is_perfect_where_frequencies_were_removed(outer):
    torch.manual_seed(1)
    target, predicted = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    low = kept_when_low(32, 32, 4.5, outer, torch.device("cpu")).expand(2, -1, -1)
    torch.testing.assert_close(combined(target, target, low), target)
    torch.testing.assert_close(combined(target, predicted, torch.ones_like(low)), target)
    torch.testing.assert_close(combined(target, predicted, torch.zeros_like(low)), predicted)
    # What it takes from each, bin by bin of the full spectrum.
    away = distances(32)
    kept = (away < 4.5) if outer is None else (away < 4.5) | (away >= outer)
    one, other = (np.fft.fft2(x.double().numpy()) for x in (target, predicted))
    expected = np.fft.ifft2(np.where(kept, one, other)).real
    torch.testing.assert_close(combined(target, predicted, low).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_colours_come_back_whatever_the_normalisation(mean, std):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    normalize = Normalizer(mean, std)
    assert torch.equal(eight_bit(normalize.undo(normalize(unit_float(images)))), images)


def test_eight_bit_clips_and_makes_grey_of_one_channel():
    levels = eight_bit(torch.tensor([-1.0, 0, 0.5, 1, 2]).reshape(1, 1, 1, 5))
    assert levels[0].tolist() == [[[0, 0, 128, 255, 255]]] * 3


def test_psnr_of_known_differences():
    black = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    other = torch.stack([black[0], black[0] + 255, black[0] + 51])
    assert psnr(other, black).tolist() == [math.inf, 0, pytest.approx(20 * math.log10(5))]


def test_log_magnitude_is_centred_and_has_fixed_decades():
    flat = torch.full((1, 3, 32, 32), 1 / 3.2)  # frequency 0 is 32 / 3.2 = 10: white
    spectrum = log_magnitude(flat)[0, 0]
    assert spectrum[16, 16] == 255 and spectrum.sum() == 255
    assert log_magnitude(flat / 100)[0, 0, 16, 16] == 128  # two of four decades below


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_tensor():
    left, right = torch.randint(0, 255, (2, 2, 3, 48, 50), dtype=torch.uint8)
    picture = sheet([left, right])
    height, width, gap = 3 * 48, 3 * 50, 4  # 3 is the smallest factor that makes 50 pixels at least 128
    assert picture.shape == (3, 2 * height + 3 * gap, 2 * width + 3 * gap) and picture.dtype == torch.uint8
    white = torch.full_like(picture, 255)
    for row, top in enumerate((gap, height + 2 * gap)):
        for images, start in ((left, gap), (right, width + 2 * gap)):
            tile = picture[:, top : top + height, start : start + width]
            assert torch.equal(tile, images[row][:, torch.arange(height) // 3][:, :, torch.arange(width) // 3])
            white[:, top : top + height, start : start + width] = tile
    assert torch.equal(picture, white)  # the gaps


@pytest.mark.parametrize("width, drawn", [(127, 254), (128, 128), (200, 200)])
def test_a_sheet_enlarges_only_images_narrower_than_128_pixels(width, drawn):
    images = torch.zeros(1, 3, 8, width, dtype=torch.uint8)
    assert sheet([images, images]).shape[2] == 2 * drawn + 3 * 4


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shortened_to_what_can_be_drawn(name):
    short = shorten(name, 12)
    assert 1 <= len(short) <= 12 and "\n" not in short
    short.encode("utf-8")  # no lone surrogate is left
    assert shorten("abcdefghijkl", 12) == "abcdefghijkl" and shorten("abcdefghijklmnop", 8) == "abc..nop"
