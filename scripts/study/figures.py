"""Figures of a study: top-1 against the share of the labels, and against the epochs of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.study.arms import FINETUNING, KNN_CURVE, Arm, Results
from scripts.study.statistics_of_runs import describe, unit_means
from utils import figures
from utils.console import say
from utils.figures import UnitScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APART = 1.05  # factor between neighbouring arms' points of one share, so that their intervals do not overlap

Lines = dict[str, dict[float, UnitScores]]  # arm -> x -> scores


@dataclass
class Panel:
    """The lines of one figure, and what its file is called."""

    name: str
    lines: Lines


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write every figure that there are scores for. Returns: where."""
    paths = []
    for panel in label_panels(results):
        path = folder / f"{panel.name}.png"
        figures.save(labels_figure(panel.lines), path)
        paths.append(path)
    for panel in curve_panels(results):
        path = folder / f"{panel.name}.png"
        ylabel = "top-1 by 20 neighbours [%]"
        figures.save(figures.interval_figure(panel.lines, "epochs of pretraining", ylabel), path)
        paths.append(path)
    for path in paths:
        say(f"wrote {path}", to_stderr=True)  # since the tables may go into a file
    return paths


def label_panels(results: Results) -> list[Panel]:
    """For each size and moment of finetunings: lines over shares of the labels in percent, if there are several."""
    panels: dict[tuple, Panel] = {}
    for measure, arms in sorted(results.items(), key=lambda item: item[0].labels):
        if measure.score != FINETUNING:
            continue
        for name, arm in arms.items():
            for size in arm.scores:
                end = "" if measure.after is None else f"_after_{measure.after}_steps"
                panel = panels.setdefault((size, measure.after), Panel(f"labels_at_{size}{end}", {}))
                panel.lines.setdefault(name, {})[100 * measure.labels] = unit_scores(arm, size)
    return [panel for panel in panels.values() if len(positions(panel.lines)) > 1]


def curve_panels(results: Results) -> list[Panel]:
    """For each size of probes: lines over epochs of the pretraining."""
    panels: dict[str, Panel] = {}
    for measure, arms in results.items():
        if measure.score != KNN_CURVE:
            continue
        for name, arm in arms.items():
            for size in arm.scores:
                panel = panels.setdefault(size, Panel(f"knn_at_{size}", {}))
                panel.lines.setdefault(name, {})[measure.after] = unit_scores(arm, size)
    return list(panels.values())


def unit_scores(arm: Arm, size: str) -> UnitScores:
    """As in the tables."""
    units = arm.units(size)
    return UnitScores(unit_means(units), describe(units, arm.pretrained)["interval"])


def positions(lines: Lines) -> list[float]:
    return sorted(set().union(*lines.values()))


def labels_figure(lines: Lines) -> Figure:
    """Top-1 with 95 % intervals against the share of the labels in percent, on a logarithmic axis, an arm a line."""
    shares = positions(lines)
    apart: Lines = {}
    for number, (name, line) in enumerate(lines.items()):
        factor = APART ** (number - (len(lines) - 1) / 2)
        apart[name] = {share * factor: scores for share, scores in line.items()}
    figure = figures.interval_figure(apart, "labels [%]", "top-1 [%]")
    axis = figure.axes[0]
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:g}" for share in shares])
    axis.minorticks_off()
    return figure
