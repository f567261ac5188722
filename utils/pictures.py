"""Tensors made ready for pictures, and the numbers beside them. What draws with matplotlib is in utils/figures.py.

Axes: B images, C channels, H W pixels, U V frequencies of the half spectrum, R rings of the spectrum.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.utils import make_grid

from utils.precision import full_precision
from utils.spectrum import column_weight

DECADES = 4  # from black to white in a picture of a spectrum
SMALLEST_WIDTH = 128  # pixels: a narrower image is too small to look at
GAP = 4  # pixels between the images of a sheet


@dataclass(frozen=True)
class Reconstruction:
    """Predictions for images that were corrupted in one way, as pictures, and how far off they are."""

    # "original", "filtered", "prediction", and "combined" if bins were removed: (B, 3 or 1, H, W) in [0, 1] or beyond
    pictures: dict[str, torch.Tensor]
    radial_error: dict[str, torch.Tensor]  # of the prediction, as `radial_error` gives it
    removed: torch.Tensor | None  # (B, U, V) bool, the bins that the network did not see


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [0, 1] -> (B, 3, H, W) uint8. Values outside are clipped; one channel becomes three."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def combined(target: torch.Tensor, predicted: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The frequencies that the network saw from the target, all others from the prediction: (B, C, H, W) float.

    The loss asks for the removed frequencies only. At the others a bare prediction may hold anything.

    Args:
        target, predicted: (B, C, H, W).
        kept: (B, U, V) bool, the bins that the network saw.
    """
    difference = torch.fft.rfft2(full_precision(target) - full_precision(predicted), norm="ortho")
    return predicted + torch.fft.irfft2(difference * kept[:, None], s=target.shape[-2:], norm="ortho")


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, inf if equal: (B, C, H, W) uint8 twice -> (B,) float64."""
    squared_error = (images.double() - reference.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / squared_error)


def log_magnitude(images: torch.Tensor) -> torch.Tensor:
    """Pictures of spectra, frequency 0 in the middle: (B, C, H, W) in [0, 1] -> (B, 3, H, W) uint8.

    Grey is log10 of the magnitude of an orthonormal DFT, averaged over channels. White is a magnitude of 10, black is
    DECADES below. The scale is the same for all images, so that pictures can be compared.
    """
    magnitude = torch.fft.fft2(full_precision(images), norm="ortho").abs().mean(1, keepdim=True)
    decades = (torch.fft.fftshift(magnitude, (-2, -1)).clamp(min=1e-9).log10() - 1) / DECADES + 1
    return eight_bit(decades)


def radial_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over each ring k ≤ √(u² + v²) < k + 1 of the full spectrum, and over images and channels.

    Args:
        values: (…, U, V), one number for each bin of the half spectrum of images of an even width.

    Returns: (R,) float64 on the CPU.
    """
    height, half = values.shape[-2:]
    width = 2 * half - 2  # even, as the width of every training crop is
    u = np.minimum(np.arange(height), height - np.arange(height))
    rings = torch.from_numpy(np.sqrt(u[:, None] ** 2 + np.arange(half) ** 2).astype(np.int64)).flatten()
    weight = column_weight(width, torch.device("cpu")).expand(height, half).flatten()
    mean_of_bin = values.double().cpu().reshape(-1, height * half).mean(0)
    return torch.bincount(rings, mean_of_bin * weight) / torch.bincount(rings, weight)


def radial_error(predicted: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The error of a prediction by frequency: (B, C, H, W) twice -> {"error": (R,), "relative": (R,)} float64.

    `error` is the mean |F(predicted) − F(target)| over a ring, images and channels; F is the orthonormal DFT.
    `relative` is `error` divided by the mean |F(target)|. A prediction of zeros has 1.
    """
    target = full_precision(target)
    error = radial_mean(torch.fft.rfft2(full_precision(predicted) - target, norm="ortho").abs())
    level = radial_mean(torch.fft.rfft2(target, norm="ortho").abs())
    return {"error": error, "relative": error / level}


def sheet(columns: list[torch.Tensor]) -> torch.Tensor:
    """A contact sheet with white gaps, a row for each image: columns of (B, 3, H, W) uint8 -> (3, h, w) uint8.

    Images narrower than SMALLEST_WIDTH are enlarged by a whole factor.
    """
    tiles = torch.stack(columns, dim=1).flatten(0, 1)  # the first image of every column, then the second ones, ...
    factor = math.ceil(SMALLEST_WIDTH / tiles.shape[-1])
    tiles = tiles.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return make_grid(tiles, nrow=len(columns), padding=GAP, pad_value=255)


def shorten(name: str, length: int) -> str:
    """A name on one line of at most `length` characters, in UTF-8. A longer one loses its middle."""
    name = name.encode("utf-8", "replace").decode().replace("\n", " ")
    if len(name) <= length:
        return name
    half = (length - 2) // 2
    return f"{name[:half]}..{name[-half:]}"
