"""Tensors into pictures and the numbers behind them: pure functions that know no file, model or random number.

Axes: B images, C channels, H W pixels, U V frequencies of the half spectrum, R rings of the spectrum, K classes.
"""

import functools

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils.precision import full_precision
from utils.spectrum import column_weight

BLUE, ORANGE, GREY = (0, 114, 178), (213, 94, 0), (190, 190, 190)  # Okabe and Ito's: told apart by the colour-blind
DECADES = 4  # that a picture of a spectrum spans


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [0, 1], what lies outside clipped -> (B, 3, H, W) uint8, grey thrice."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def combined(target: torch.Tensor, predicted: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The target's kept frequencies and the predicted ones of the rest, which is all that a loss asked for.

    Args:
        target, predicted: (B, C, H, W).
        kept: (U, V) bool, the bins the network saw.
    """
    difference = torch.fft.rfft2(full_precision(target) - full_precision(predicted), norm="ortho")
    return predicted + torch.fft.irfft2(difference * kept, s=target.shape[-2:], norm="ortho")


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, inf if equal: (B, C, H, W) uint8 twice -> (B,) float64."""
    squared = (images.double() - reference.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / squared)


def log_magnitude(images: torch.Tensor) -> torch.Tensor:
    """Spectra, frequency 0 in the middle: (B, C, H, W) in [0, 1] -> (B, 3, H, W) uint8.

    Grey is log10 of the mean magnitude over channels; white is 10 (of an orthonormal transform), black DECADES below,
    whatever the images, so that pictures can be compared.
    """
    magnitude = torch.fft.fft2(full_precision(images), norm="ortho").abs().mean(1, keepdim=True)
    decades = (torch.fft.fftshift(magnitude, (-2, -1)).clamp(min=1e-9).log10() - 1) / DECADES + 1
    return eight_bit(decades)


def radial_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the bins of each ring k ≤ √(u² + v²) < k + 1 of the full spectrum: (…, H, U V half) -> (R,) float64."""
    height, half = values.shape[-2:]
    width = 2 * half - 2  # of an even width, as all training crops have
    u = np.minimum(np.arange(height), height - np.arange(height))
    rings = torch.from_numpy(np.sqrt(u[:, None] ** 2 + np.arange(half) ** 2).astype(np.int64)).flatten()
    weight = column_weight(width, torch.device("cpu")).expand(height, half).flatten()
    per_bin = values.double().cpu().reshape(-1, height * half).mean(0)
    return torch.bincount(rings, per_bin * weight) / torch.bincount(rings, weight)


def radial_error(predicted: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far a prediction is off, by frequency: (B, C, H, W) twice -> {"error": (R,), "relative": (R,)} float64.

    `error` is the mean |F(predicted) − F(target)| over a ring, images and channels, F the orthonormal DFT; `relative`
    is that over the mean |F(target)|: 1 is what predicting nothing gives.
    """
    target = full_precision(target)
    error = radial_mean(torch.fft.rfft2(full_precision(predicted) - target, norm="ortho").abs())
    return {"error": error, "relative": error / radial_mean(torch.fft.rfft2(target, norm="ortho").abs())}


@functools.lru_cache(maxsize=4)
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def short(name: str, length: int) -> str:
    """What can be drawn of a name, its middle left out if it is longer."""
    name = name.encode("utf-8", "replace").decode().replace("\n", " ")
    half = (length - 2) // 2
    return name if len(name) <= length else f"{name[:half]}..{name[-half:]}"


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def sheet(columns: dict[str, torch.Tensor]) -> torch.Tensor:
    """A contact sheet on white, a column each name, a row each image: (B, 3, H, W) uint8 -> (3, ·, ·) uint8.

    Images less than 128 pixels wide are enlarged by a whole factor.
    """
    tiles = list(columns.values())
    rows, _, height, width = tiles[0].shape
    factor, gap, head = -(-128 // width), 4, 22
    step_x, step_y = width * factor + gap, height * factor + gap
    picture = Image.new("RGB", (len(tiles) * step_x - gap, head + rows * step_y - gap), "white")
    draw = ImageDraw.Draw(picture)
    for x, (name, images) in enumerate(columns.items()):
        draw.text((x * step_x + width * factor // 2, head // 2), name, "black", font(13), anchor="mm")
        for y, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
            tile = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            picture.paste(tile, (x * step_x, head + y * step_y))
    return as_tensor(picture)


def curves(lines: dict[str, torch.Tensor], title: str, marked: float) -> torch.Tensor:
    """At most two lines (R,) against frequency radius, the values on a logarithmic axis: (3, 330, 520) uint8.

    Value k stands for the ring from k to k + 1, and is drawn in its middle.

    Args:
        marked: a radius to draw a vertical line at.
    """
    left, top, right, bottom = 60, 34, 505, 280
    logs = {name: line.clamp(min=1e-9).log10() for name, line in lines.items()}
    every = torch.cat(list(logs.values())).nan_to_num(posinf=0)
    low, high = int(every.min().floor()), int(every.max().floor()) + 1
    longest = max(map(len, logs.values()))

    def at(x, y):
        return left + (right - left) * x / longest, bottom - (bottom - top) * (y - low) / (high - low)

    picture = Image.new("RGB", (520, 330), "white")
    draw = ImageDraw.Draw(picture)
    for y in range(low, high + 1):
        draw.line([at(0, y), at(longest, y)], GREY)
        draw.text((left - 6, at(0, y)[1]), f"{10.0**y:g}", "black", font(11), anchor="rm")
    for x in np.unique(np.linspace(0, longest, 7).astype(int)):
        draw.text((at(x, low)[0], bottom + 12), str(x), "black", font(11), anchor="mm")
    draw.line([at(marked, low), at(marked, high)], GREY, 2)
    for row, ((name, line), colour) in enumerate(zip(logs.items(), (BLUE, ORANGE), strict=True)):
        draw.line([at(x + 0.5, y) for x, y in enumerate(line.tolist()) if np.isfinite(y)], colour, 2)
        draw.text((right - 4, top + 10 + 16 * row), name, colour, font(12), anchor="rm")
    draw.text((left, 16), title, "black", font(14), anchor="lm")
    axis = "frequency radius [bins of the crop]; upright line: the filter's"
    draw.text(((left + right) / 2, 312), axis, "black", font(12), anchor="mm")
    return as_tensor(picture)


def confusion_picture(counts: torch.Tensor, classes: list[str]) -> torch.Tensor:
    """A confusion matrix (K, K), rows true and columns predicted, as a picture; the shade is the share of a row."""
    number, counts = len(classes), counts.cpu().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell, left, top = max(8, min(44, 800 // number)), 170, 50
    picture = Image.new("RGB", (left + cell * number + 10, top + cell * number + 10), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((6, 14), "rows: true, columns: predicted class; shade: share of the row", "black", font(13), anchor="lm")
    every = 1 if number <= 40 else 10  # the labels that have room
    for row in range(number):
        if row % every == 0:
            y, label = top + cell * (row + 0.5), short(f"{row} {classes[row]}", 22)
            draw.text((left - 6, y), label, "black", font(12), anchor="rm")
            draw.text((left + cell * (row + 0.5), top - 10), str(row), "black", font(12), anchor="mm")
        for column in range(number):
            x, y, share = left + cell * column, top + cell * row, shares[row, column]
            draw.rectangle([x, y, x + cell - 1, y + cell - 1], tuple(int(255 - (255 - c) * share) for c in BLUE))
            if cell >= 30 and counts[row, column]:
                ink = "white" if share > 0.5 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(counts[row, column]), ink, font(11), anchor="mm")
    return as_tensor(picture)
