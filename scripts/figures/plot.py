"""Figures of one or several runs: curves, resize sizes, errors by frequency, first-layer kernels, frequency sweep.

python scripts/figures/plot.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch
python scripts/figures/plot.py runs/* --output figures --format pdf --smooth 25

It draws what the runs hold, and says so. Runs of one recipe are seeds of one arm in the resize-size figure, as in
summarize.py, whose intervals it shows.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models.weights import weights_of
from scripts.study.read_runs import read_results
from scripts.study.statistics_of_runs import describe, unit_means
from utils import figures
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import UnitScores
from utils.run.checkpoint import read_checkpoint
from utils.run.reading import RunFolder, read_run
from utils.tensor_checks import refuse_unusable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {"error": "mean |error|", "relative": "mean |error| / mean |target|"}  # of the errors by frequency
MOST_STEPS = 6  # of a figure of errors by frequency
LONGEST_NAME = 200  # bytes of a file's name; 255 are allowed, with the suffix

Runs = dict[str, RunFolder]  # by a name that is theirs alone


@dataclass(frozen=True)
class NamedFigure:
    """A figure, what its file is called, and what it shows in words."""

    name: str
    figure: Figure
    description: str


def named(runs: list[RunFolder]) -> Runs:
    """By the folder's name, or by the whole path where two have the same name."""
    names = [run.folder.resolve().name for run in runs]
    by_name = {}
    for name, run in zip(names, runs, strict=True):
        unique = name if names.count(name) == 1 else str(run.folder)
        by_name[unique] = run
    return by_name


def all_figures(runs: Runs, width: int) -> list[NamedFigure]:
    """Every figure that these runs have data for.

    Args:
        width: points of the log that a smoothed value is the mean of.
    """
    drawn = [
        loss_figure(runs, "pretraining", width),
        loss_figure(runs, "finetuning", width),
        evaluations_figure(runs, "finetuning"),
        evaluations_figure(runs, "pretraining"),
        resize_size_figure(runs),
        sweep_figure(runs),
    ]
    for name, run in runs.items():
        if run.kind == "pretraining":
            drawn += radial_figures(name, run)
            drawn.append(kernels_figure(name, run))
    return [figure for figure in drawn if figure is not None]


def loss_figure(runs: Runs, kind: str, width: int) -> NamedFigure | None:
    """The loss of all runs of a kind against the step."""
    series, ends = {}, []
    for name, run in runs.items():
        if run.kind == kind and run.log:
            losses = [line["loss"] for line in run.log]
            series[name] = [line["step"] for line in run.log], losses
            if losses[-1] is not None:  # as of a loss that was not finite
                ends.append(f"{name} ends at {losses[-1]:.4g}")
    if not series:
        return None
    figure = figures.curves_figure(series, "optimizer step", f"{kind} loss", width)
    return NamedFigure(f"loss_{kind}", figure, f"Loss of {kind} against the step: {'; '.join(ends)}.")


def evaluations_figure(runs: Runs, kind: str) -> NamedFigure | None:
    """Top-1 on val against the epoch; runs of this kind that were evaluated once have no line.

    A finetuning's is that of its first resize size, a pretraining's that of the nearest neighbours of its features.
    """
    name, what = "evaluations", "top-1 on val"
    if kind == "pretraining":
        name, what = "neighbours", "kNN top-1 on val"
    series, ends = {}, []
    for run_name, run in runs.items():
        if run.kind != kind:
            continue
        for weights, top1_at in top1_by_epoch(run).items():
            if len(top1_at) < 2:
                continue
            curve = run_name if weights == "model" else f"{run_name}, {weights}"
            series[curve] = list(top1_at), list(top1_at.values())
            ends.append(f"{curve} ends at {series[curve][1][-1]:.2f} %")
    if not series:
        return None
    figure = figures.curves_figure(series, "epochs", f"{what} [%]", width=1)
    return NamedFigure(name, figure, f"Evaluations against the epoch, {what}: {'; '.join(ends)}.")


def top1_by_epoch(run: RunFolder) -> dict[str, dict[int, float]]:
    """Weights (model, ema) -> completed epochs -> top-1 in percent at the first resize size."""
    scores: dict[str, dict[int, float]] = {}
    for line in run.evaluations:
        of_weights = scores.setdefault(line["weights"], {})
        of_weights.setdefault(line["epoch"] + 1, line["top1"])  # an evaluation is made at the end of its epoch
    return scores


def scores_by_size(runs: Runs) -> dict[str, dict[int, UnitScores]]:
    """As summarize.py has them: arm, at its share of the labels -> resize size -> scores of its units.

    Where runs selected a size there are none.

    Raises: UserError on two results of one run.
    """
    results = read_results([run.folder for run in runs.values() if "results" in run.result])
    scores: dict[str, dict[int, UnitScores]] = {}
    for measure, arms in results.items():
        share = "" if measure.labels == 1 else f", {100 * measure.labels:g} % of labels"
        for name, arm in arms.items():
            for size in filter(str.isdecimal, arm.scores):
                units = arm.units(size)
                interval = describe(units, arm.pretrained)["interval"]
                scores.setdefault(name + share, {})[int(size)] = UnitScores(unit_means(units), interval)
    return scores


def resize_size_figure(runs: Runs) -> NamedFigure | None:
    """Top-1 against the size that images are resized to, an arm a line."""
    try:
        scores = scores_by_size(runs)
    except UserError as error:
        say(f"warning: no figure of resize sizes: {error}", to_stderr=True)
        return None
    if not scores:
        return None
    ranges = []
    for name, by_size in scores.items():
        values = np.concatenate([units.values for units in by_size.values()])
        ranges.append(f"{name}: {values.min():.2f} to {values.max():.2f} %")
    figure = figures.interval_figure(scores, "val resize size [pixels]", "top-1 [%]")
    description = f"Top-1 against the size that images are resized to: {'; '.join(ranges)}."
    return NamedFigure("resize_size", figure, description)


def sweep_figure(runs: Runs) -> NamedFigure | None:
    """Top-1 on low- and high-passed images, a run a line."""
    sweeps = {name: run.sweep["results"] for name, run in runs.items() if run.sweep}
    if not sweeps:
        return None
    unfiltered = [f"{name}: {rows[0]['top1']:.1f} % unfiltered" for name, rows in sweeps.items()]
    description = f"Top-1 on low- and high-passed images. {'; '.join(unfiltered)}."
    return NamedFigure("frequency_sweep", figures.sweep_figure(sweeps), description)


def radial_history(folder: Path) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """From TensorBoard: kind of error -> kind of filter -> step -> errors by radius (R,), at most MOST_STEPS steps.

    Steps that a resumed run took again are there twice; the later ones count.
    """
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    history: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for tag in events.Tags()["tensors"]:
        if not tag.startswith("radial_error/"):
            continue
        _, error, kind = tag.split("/")
        measured: list = []
        for event in events.Tensors(tag):
            while measured and measured[-1].step >= event.step:
                measured.pop()
            measured.append(event)
        evenly_spread = np.linspace(0, len(measured) - 1, MOST_STEPS).round()
        steps = {}
        for number in sorted(set(evenly_spread.astype(int))):
            steps[measured[number].step] = make_ndarray(measured[number].tensor_proto)
        history.setdefault(error, {})[kind] = steps
    return history


def radial_figures(name: str, run: RunFolder) -> list[NamedFigure]:
    """The errors of the prediction against frequency radius, absolute and relative."""
    drawn = []
    for error, history in radial_history(run.folder).items():
        radius = shaded_radius(run)
        figure = figures.radial_figure(history, radius, run.config["filter.outer_radius"], ylabel=LABELS[error])
        description = f"{name}: {LABELS[error]} of the prediction against frequency radius, by step."
        drawn.append(NamedFigure(f"radial_{error}_{name}", figure, description))
    return drawn


def shaded_radius(run: RunFolder) -> float | None:
    """The one radius that divided the frequencies of every image; None where there was no such radius."""
    one_disk = (run.config["corruption.name"], run.config["filter.mask"]) == ("frequency", "disk")
    radius = run.config["filter.radius"]
    if one_disk and not isinstance(radius, list):
        return radius
    return None


def kernels_figure(name: str, run: RunFolder) -> NamedFigure | None:
    """The first layer's kernels, if there is a checkpoint and the trunk has a first convolution `conv1`."""
    if not run.last_checkpoint.exists():
        return None
    path = str(run.last_checkpoint)
    _, weights = weights_of(read_checkpoint(path), path)
    weight = weights.get("conv1.weight")
    if weight is None or weight.dim() != 4:
        return None
    refuse_unusable(path, "conv1.weight", weight, torch.empty(0))
    description = f"{name}: the {len(weight)} kernels of the first layer and their spectra."
    return NamedFigure(f"kernels_{name}", figures.kernels_figure(weight, name), description)


def file_name(name: str) -> str:
    """A name that file systems take."""
    safe = re.sub(r"[/\0]", "_", name)
    return safe.encode()[:LONGEST_NAME].decode(errors="ignore")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Figures of one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder for the figures")
    parser.add_argument("--format", default="png", choices=("png", "pdf", "svg"))
    parser.add_argument("--smooth", type=int, default=5, help="points of the log that a curve's value is the mean of")
    arguments = parser.parse_args(argv)
    runs = named([read_run(folder) for folder in arguments.runs])
    drawn = all_figures(runs, max(1, arguments.smooth))
    if not drawn:
        raise UserError("these runs hold nothing to draw yet: no log line, no result, no checkpoint")
    for figure in drawn:
        path = arguments.output / f"{file_name(figure.name)}.{arguments.format}"
        figures.save(figure.figure, path)
        say(f"wrote {path}: {figure.description}")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
