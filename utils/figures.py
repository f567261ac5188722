"""Figures from numbers and pixels, by matplotlib: pure functions that know no run, file or model."""

import base64
import io
import math
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from utils.pictures import short

# Okabe and Ito's colours, told apart by the colour-blind; line styles besides, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
matplotlib.rcParams.update({
    "text.parse_math": False,  # a run's name may hold a $
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "legend.frameon": False, "figure.constrained_layout.use": True,
})  # fmt: skip
warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names of any alphabet; the fonts are the machine's


def subplots(rows: int, columns: int, width: float, height: float, **more):
    """A figure of so many inches, and its axes as an array (rows, columns)."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def save(figure: Figure, path: Path) -> None:
    """In the format of the path's suffix: PNG, PDF, SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def data_uri(figure: Figure) -> str:
    """The figure as a PNG within a URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def look(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def legend(figure: Figure, axis) -> None:
    """Below all panels, where no line runs; names shortened, with a space before them, since `_x` would be left out."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, [" " + short(name.strip(), 60) for name in names], loc="outside lower left")


def grid(rows: list[tuple[str, list[np.ndarray], list[str]]], titles: list[str], note: str) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: a label, its pictures (H, W, 3) uint8, and a line of text below each.
        titles: of the columns.
        note: a line below all.
    """
    figure, axes = subplots(len(rows), len(titles), 1.5 * len(titles) + 0.3, 1.68 * len(rows) + 0.6)
    for line, (label, pictures, texts) in zip(axes, rows, strict=True):
        for axis, picture, text in zip(line, pictures, texts, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=8, labelpad=2)
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(short(label, 22), fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.supxlabel(note, fontsize=8)
    return figure


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` neighbours, of fewer at the ends, so that nothing is shifted."""
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def curves_figure(series: dict[str, tuple[list, list]], xlabel: str, ylabel: str, width: int) -> Figure:
    """A line each: name -> (x, y), smoothed over `width` points, with the raw one pale behind."""
    figure, ((axis,),) = subplots(1, 1, 6.4, 3.6 + 0.17 * len(series))
    for number, (name, (x, y)) in enumerate(series.items()):
        y = np.array(y, float)  # None, as of a loss that was not finite, becomes NaN
        if width > 1:
            axis.plot(x, y, color=look(number)["color"], alpha=0.25, linewidth=1)
        axis.plot(x, smooth(y, width), marker="." if len(x) < 5 else None, label=" " + name, **look(number))
    axis.set(xlabel=xlabel, ylabel=ylabel + (f" (mean over {width} points)" if width > 1 else ""))
    legend(figure, axis)
    return figure


def interval_figure(arms: dict[str, dict[int, tuple[np.ndarray, list[float] | None]]], xlabel, ylabel) -> Figure:
    """For each arm the mean over units with its 95 % interval, and every unit as a dot.

    Args:
        arms: name -> x -> the units' values, and the interval; None, as of one unit: none is drawn.
    """
    figure, ((axis,),) = subplots(1, 1, 6.4, 3.6 + 0.17 * len(arms))
    for number, (name, points) in enumerate(arms.items()):
        x, means = sorted(points), [np.mean(points[at][0]) for at in sorted(points)]
        ends = [points[at][1] or [mean, mean] for at, mean in zip(x, means, strict=True)]
        units = max(len(values) for values, _ in points.values())
        told = f"{name} ({units} units, 95 %)" if units > 1 else f"{name} (1 unit: no interval)"
        axis.errorbar(x, means, np.abs(np.array(ends).T - means), capsize=3, label=" " + told, **look(number))
        for at, (values, _) in points.items():
            axis.plot([at] * len(values), values, "o", color=look(number)["color"], markersize=3)
    axis.set(xlabel=xlabel, ylabel=ylabel, xticks=sorted({x for points in arms.values() for x in points}))
    legend(figure, axis)
    return figure


def sweep_figure(models: dict[str, list[dict]]) -> Figure:
    """Top-1 against the cutoff, low- and high-passed apart: name -> rows of frequency_sweep.json.

    Bands: 95 % of a binomial count (normal approximation), of the images alone.
    """
    figure, axes = subplots(1, 2, 7.4, 3.4 + 0.17 * len(models), sharey=True)
    kinds = {"low_pass": "keeps below the cutoff", "high_pass": "keeps the cutoff and above"}
    for axis, (kind, keeps) in zip(axes[0], kinds.items(), strict=True):
        for number, (name, rows) in enumerate(models.items()):
            points = sorted((r["radius"], r["top1"] / 100, r["images"]) for r in rows if r["kind"] == kind)
            x, p, n = np.array(points).T
            half = 1.96 * np.sqrt(p * (1 - p) / n)
            axis.plot(x, 100 * p, marker="o", label=" " + name, markersize=3, **look(number))
            axis.fill_between(x, 100 * (p - half), 100 * (p + half), color=look(number)["color"], alpha=0.15, lw=0)
            whole = next(row["top1"] for row in rows if row["kind"] == "all")
            axis.axhline(whole, linewidth=0.8, **look(number))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=f"{kind.replace('_', '-')}ed: {keeps}", xlabel="cutoff radius [bins of the crop]")
    axes[0, 0].set(ylabel="top-1 [%]; thin level lines: unfiltered", ylim=(0, 100))
    legend(figure, axes[0, 0])
    return figure


def radial_figure(history: dict[str, list], radius: float, outer_radius: float | None, ylabel: str) -> Figure:
    """Error against frequency radius, a line each time it was measured, dark to light.

    Args:
        history: "low_pass" and "high_pass" -> (step, values (R,)).
        radius, outer_radius: of the filter; what the loss asks for is shaded.
    """
    figure, axes = subplots(1, 2, 7.4, 3.4, sharey=True)
    for axis, (kind, lines) in zip(axes[0], history.items(), strict=True):
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
        for colour, (step, values) in zip(colours, lines, strict=True):
            axis.plot(np.arange(len(values)) + 0.5, values, color=colour, label=f"step {step}")
        end = len(values)
        ring = radius, min(outer_radius or end, end)
        for span in [ring] if kind == "low_pass" else [(0, radius), (ring[1], end)]:
            axis.axvspan(*span, color="0.9", zorder=0)
        axis.set(title=f"{kind.replace('_', '-')} input", xlabel="frequency radius [bins of the crop]", yscale="log")
    axes[0, 0].set(ylabel=ylabel)
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].yaxis.set_minor_formatter("")
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.supxlabel("shaded: the frequencies that were removed, which the loss asks for", fontsize=8)
    return figure


def kernels_figure(weight: torch.Tensor, name: str) -> Figure:
    """First-layer kernels (O, 3, k, k), each scaled to its own range, and their log magnitude spectra."""
    side = math.ceil(math.sqrt(len(weight)))
    magnitude = torch.fft.fft2(weight, (16, 16)).abs().mean(1, keepdim=True)
    spectra = torch.fft.fftshift(magnitude + 1e-4, (2, 3)).log10()
    kernels = make_grid(weight, side, padding=1, normalize=True, scale_each=True, pad_value=1.0)
    figure, ((left, right),) = subplots(1, 2, 7.4, 4.1)
    left.imshow(kernels.permute(1, 2, 0))
    picture = right.imshow(make_grid(spectra, side, padding=1, pad_value=math.nan)[0])
    left.set(title="kernels, each to its own range", xticks=[], yticks=[])
    right.set(title="their spectra, 0 in the middle", xticks=[], yticks=[])
    figure.colorbar(picture, ax=right, shrink=0.8, label="log10 mean |F|")
    figure.supxlabel(short(name, 60), fontsize=8)
    return figure
