"""The figure of scripts/robustness.py: sets and attacks as bars, corruptions as one point a severity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from utils.figures import COLOURS, new_figure
from utils.pictures import shorten
from utils.scoring.corruptions import SEVERITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 28


def robustness_figure(results: dict) -> Figure:
    """A panel for each kind of result that there is: top-1 of sets and attacks, top-1 error of corruptions."""
    panels = [kind for kind in ("sets", "attacks", "corruptions") if results[kind]]
    lines = {"sets": len(results["sets"]), "attacks": len(results["attacks"])}
    lines["corruptions"] = len({row["corruption"] for row in results["corruptions"]})
    heights = [0.5 + 0.24 * lines[kind] for kind in panels]
    figure = new_figure(6.4, 1.0 + sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, kind in zip(axes, panels, strict=True):
        if kind == "corruptions":
            corruption_points(axis, results)
            figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(SEVERITIES))
        else:
            top1_bars(axis, results[kind])
    return figure


def top1_bars(axis: Axes, rows: list[dict]) -> None:
    """A bar for each row, with its number."""
    names, top1 = [], []
    for row in rows:
        name = shorten(row["set"], LONGEST_NAME)
        names.append(f"{name}: {row['attack']}" if "attack" in row else name)
        top1.append(row["top1"])
    bars = axis.barh(np.arange(len(rows)), top1, color=COLOURS[0], height=0.7)
    axis.bar_label(bars, labels=[f"{value:.1f}" for value in top1], padding=3, fontsize=8)
    set_names(axis, names)
    axis.set(xlabel="top-1 [%]", xlim=(0, 108), xticks=range(0, 101, 20))


def corruption_points(axis: Axes, results: dict) -> None:
    """The top-1 error of each corruption at each severity, darker for a stronger one."""
    rows = results["corruptions"]
    names = list(dict.fromkeys(row["corruption"] for row in rows))
    for severity in SEVERITIES:
        chosen = [row for row in rows if row["severity"] == severity]
        if not chosen:
            continue
        errors = [100 - row["top1"] for row in chosen]
        lines = [names.index(row["corruption"]) for row in chosen]
        shade = 0.25 + 0.15 * severity
        axis.plot(
            errors, lines, "o", markersize=5, color=COLOURS[1], alpha=shade, markeredgewidth=0,
            label=f"severity {severity}",
        )  # fmt: skip
    set_names(axis, [shorten(name, LONGEST_NAME) for name in names])
    title = "" if results["mce"] is None else f"mCE {results['mce']:.1f} % (AlexNet: 100)"
    axis.set(xlabel="top-1 error [%]", xlim=(0, 108), xticks=range(0, 101, 20), title=title)


def set_names(axis: Axes, names: list[str]) -> None:
    """One name a line, the first at the top."""
    axis.set_yticks(np.arange(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
