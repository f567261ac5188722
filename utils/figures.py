"""Everything that draws, with matplotlib: functions from numbers and pixels to figures. They know no run or model.

Training runs without matplotlib, so it is imported when a figure is made. pyplot is not used: it would keep all alive.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.utils import make_grid

from utils.pictures import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart. Line styles differ too, for print in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MOST_CLASSES_WITH_COUNTS = 20  # of a confusion matrix; the cells of more are too small for a number
MOST_CLASSES_WITH_LABELS = 40  # of more classes, every tenth has a label


@dataclass
class PictureRow:
    """A row of `grid`: pictures (H, W, 3) uint8, and a line of text below each."""

    label: str
    pictures: list[np.ndarray]
    captions: list[str]


@dataclass
class UnitScores:
    """The scores of an arm's independent units, and the 95 % interval of their mean (None for a single unit)."""

    values: np.ndarray
    interval: list[float] | None

    def error_bar(self) -> list[float]:
        """How far the ends of the interval lie below and above the mean."""
        if self.interval is None:
            return [0.0, 0.0]
        return [abs(end - self.values.mean()) for end in self.interval]


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure, in inches, with the settings of all figures. Raises: ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rc("font", size=9)
    matplotlib.rc("text", parse_math=False)  # a run's name may hold a $
    matplotlib.rc("axes", grid=True)
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("grid", alpha=0.3)
    matplotlib.rc("legend", frameon=False)
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a font has not the letters of every alphabet
    return Figure(figsize=(width, height), layout=layout)


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix: PNG, PDF, SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def data_uri(figure: Figure) -> str:
    """The figure as a PNG within a URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def line_look(number: int) -> dict[str, str]:
    """Colour and style of line `number` of a panel."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def legend_name(name: str) -> str:
    """A name as matplotlib takes it into a legend: it leaves out those that begin with an underscore."""
    return " " + shorten(name, 60)


def legend_below(figure: Figure, axis: Axes) -> None:
    """The legend of one axis below all panels, where no line runs."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left")


def grid(rows: list[PictureRow], titles: list[str], note: str) -> Figure:
    """Pictures in rows and columns, with a title above each column and a note below all."""
    figure = new_figure(1.5 * len(titles) + 0.3, 1.68 * len(rows) + 0.6)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row_axes, row in zip(axes, rows, strict=True):
        for axis, picture, caption in zip(row_axes, row.pictures, row.captions, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(caption, fontsize=8, labelpad=2)
            axis.spines[:].set_visible(False)
        row_axes[0].set_ylabel(shorten(row.label, 22), fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.supxlabel(note, fontsize=8)
    return figure


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` neighbours. At the ends it is over fewer, so that nothing is shifted."""
    ones = np.ones(min(width, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def curves_figure(series: dict[str, tuple[list, list]], xlabel: str, ylabel: str, width: int) -> Figure:
    """Lines name -> (x, y), smoothed over `width` points, with the raw line pale behind. A y of None is a gap."""
    figure = new_figure(6.4, 3.6 + 0.17 * len(series))
    axis = figure.subplots()
    for number, (name, (x, y)) in enumerate(series.items()):
        values = np.array(y, float)  # None becomes NaN
        look = line_look(number)
        if width > 1:
            axis.plot(x, values, color=look["color"], alpha=0.25, linewidth=1)
        if len(x) < 5:
            look["marker"] = "."  # a line of one point would not be seen
        axis.plot(x, smooth(values, width), label=legend_name(name), **look)
    if width > 1:
        ylabel = f"{ylabel} (mean over {width} points)"
    axis.set(xlabel=xlabel, ylabel=ylabel)
    legend_below(figure, axis)
    return figure


def interval_figure(arms: dict[str, dict[int, UnitScores]], xlabel: str, ylabel: str) -> Figure:
    """For each arm (name -> x -> scores) the mean over units with its 95 % interval, and every unit as a dot."""
    figure = new_figure(6.4, 3.6 + 0.17 * len(arms))
    axis = figure.subplots()
    for number, (name, scores) in enumerate(arms.items()):
        look, x = line_look(number), sorted(scores)
        units = max(len(score.values) for score in scores.values())
        note = f"{units} units, 95 %" if units > 1 else "1 unit: no interval"
        means = [scores[position].values.mean() for position in x]
        bars = np.array([scores[position].error_bar() for position in x]).T
        axis.errorbar(x, means, bars, capsize=3, label=legend_name(f"{name} ({note})"), **look)
        for position, score in scores.items():
            axis.plot([position] * len(score.values), score.values, "o", color=look["color"], markersize=3)
    axis.set(xlabel=xlabel, ylabel=ylabel, xticks=sorted(set().union(*arms.values())))
    legend_below(figure, axis)
    return figure


def sweep_figure(models: dict[str, list[dict]]) -> Figure:
    """Top-1 against the cutoff, low-passed left and high-passed right: name -> rows of frequency_sweep.json.

    The bands are 95 % intervals of a binomial count (normal approximation): the spread of the images alone.
    """
    figure = new_figure(7.4, 3.4 + 0.17 * len(models))
    left, right = figure.subplots(1, 2, sharey=True)
    sweep_panel(left, models, "low_pass", "low-passed: keeps below the cutoff")
    sweep_panel(right, models, "high_pass", "high-passed: keeps the cutoff and above")
    left.set(ylabel="top-1 [%]; thin level lines: unfiltered", ylim=(0, 100))
    legend_below(figure, left)
    return figure


def sweep_panel(axis: Axes, models: dict[str, list[dict]], kind: str, title: str) -> None:
    for number, (name, rows) in enumerate(models.items()):
        look = line_look(number)
        filtered = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["radius"])
        radius = np.array([row["radius"] for row in filtered])
        top1 = np.array([row["top1"] for row in filtered])
        images = np.array([row["images"] for row in filtered])
        half = 1.96 * np.sqrt(top1 * (100 - top1) / images)  # in %, as top-1 is
        axis.plot(radius, top1, marker="o", markersize=3, label=legend_name(name), **look)
        axis.fill_between(radius, top1 - half, top1 + half, color=look["color"], alpha=0.15, linewidth=0)
        unfiltered = next(row["top1"] for row in rows if row["kind"] == "all")
        axis.axhline(unfiltered, linewidth=0.8, **look)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(title=title, xlabel="cutoff radius [bins of the crop]")


def plot_by_radius(axis: Axes, values: np.ndarray, **look) -> None:
    """A line of values (R,) by frequency radius. A value that a logarithmic axis cannot show is a gap."""
    axis.set_yscale("log")  # before the line: matplotlib finds no limits for one of gaps only otherwise
    radius = np.arange(len(values)) + 0.5  # the middle: value k stands for the ring from k to k + 1
    drawable = np.isfinite(values) & (values > 0)
    axis.plot(radius, np.where(drawable, values, np.nan), **look)


def set_radial_axis(axis: Axes, title: str) -> None:
    """Whole decades on the y axis, so that there are always ticks. To be called when all lines are drawn."""
    axis.set(title=title, xlabel="frequency radius [bins of the crop]")
    axis.margins(y=0)
    low, high = axis.get_ylim()
    axis.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def radial_curves(errors: dict[str, torch.Tensor], title: str, radii: tuple[float, ...]) -> Figure:
    """Errors by frequency, a line for each name -> (R,), with a vertical line at each radius of the filter.

    An error that is 0 or not finite is a gap in its line. Training waits for this figure: fixed margins and no minor
    ticks make it three times as fast to draw.
    """
    figure = new_figure(5.6, 3.6, layout=None)
    axis = figure.add_axes((0.13, 0.14, 0.84, 0.76))
    for number, (name, values) in enumerate(errors.items()):
        plot_by_radius(axis, values.double().cpu().numpy(), label=legend_name(name), **line_look(number))
    for radius in radii:
        axis.axvline(radius, color="0.6", linewidth=1, label=f"radius {radius:g} of the filter")
    set_radial_axis(axis, title)
    axis.minorticks_off()
    axis.legend()
    return figure


def radial_figure(
    history: dict[str, dict[int, np.ndarray]], radius: float | None, outer_radius: float | None, ylabel: str
) -> Figure:
    """Error against frequency radius, a line for each step at which it was measured, dark to light.

    Args:
        history: kind of corruption, such as "low_pass" -> step -> errors (R,).
        radius, outer_radius: of the filter. The frequencies that it removed, which the loss asks for, are shaded.
            None: a corruption without one radius, so that nothing is shaded.
    """
    from matplotlib import colormaps

    figure = new_figure(2.2 + 2.6 * len(history), 3.4)
    axes = figure.subplots(1, len(history), sharey=True, squeeze=False)[0]
    for axis, (kind, errors_at) in zip(axes, history.items(), strict=True):
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(errors_at)))
        for colour, (step, values) in zip(colours, errors_at.items(), strict=True):
            plot_by_radius(axis, values, color=colour, label=f"step {step}")
        if radius is None:
            continue
        end = max(map(len, errors_at.values()))  # of the spectrum
        outer = min(outer_radius or end, end)
        if kind == "low_pass":
            axis.axvspan(radius, outer, color="0.9", zorder=0)
        else:
            axis.axvspan(0, radius, color="0.9", zorder=0)
            axis.axvspan(outer, end, color="0.9", zorder=0)
    for axis, kind in zip(axes, history, strict=True):
        set_radial_axis(axis, f"{kind.replace('_', '-')} input")
    axes[0].set(ylabel=ylabel)
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    if radius is not None:
        figure.supxlabel("shaded: the frequencies that were removed, which the loss asks for", fontsize=8)
    return figure


def confusion_figure(counts: torch.Tensor, class_names: list[str]) -> Figure:
    """A confusion matrix (K, K) of images, rows true and columns predicted classes, shaded by the share of the row.

    The row of a class without images is blank.
    """
    number_of_classes = len(class_names)
    table = counts.cpu().numpy()
    images = table.sum(1, keepdims=True)
    shares = np.where(images > 0, table / np.maximum(images, 1), np.nan)
    side = min(0.44 * number_of_classes, 8)
    figure = new_figure(side + 2.8, side + 1.2)
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if number_of_classes <= MOST_CLASSES_WITH_COUNTS:
        for row, column in np.argwhere(table > 0):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(table[row, column]), color=ink, fontsize=8, ha="center", va="center")
    every = 1 if number_of_classes <= MOST_CLASSES_WITH_LABELS else 10
    labelled = range(0, number_of_classes, every)
    axis.set_xticks(labelled, [str(k) for k in labelled])
    axis.set_yticks(labelled, [shorten(f"{k} {class_names[k]}", 22) for k in labelled])
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.grid(False)
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the row")
    return figure


def kernels_figure(weight: torch.Tensor, name: str) -> Figure:
    """First-layer kernels (O, 3, k, k), each scaled to its own range, and their log magnitude spectra."""
    in_a_row = math.ceil(math.sqrt(len(weight)))
    magnitude = torch.fft.fft2(weight, (16, 16)).abs().mean(1, keepdim=True)
    spectra = torch.fft.fftshift(magnitude + 1e-4, (2, 3)).log10()
    kernels = make_grid(weight, in_a_row, padding=1, normalize=True, scale_each=True, pad_value=1.0)
    figure = new_figure(7.4, 4.1)
    left, right = figure.subplots(1, 2)
    left.imshow(kernels.permute(1, 2, 0))
    picture = right.imshow(make_grid(spectra, in_a_row, padding=1, pad_value=math.nan)[0])
    left.set(title="kernels, each to its own range", xticks=[], yticks=[])
    right.set(title="their spectra, 0 in the middle", xticks=[], yticks=[])
    figure.colorbar(picture, ax=right, shrink=0.8, label="log10 mean |F|")
    figure.supxlabel(shorten(name, 60), fontsize=8)
    return figure
