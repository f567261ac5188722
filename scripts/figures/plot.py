"""Figures of one or several runs: curves, resize sizes, errors by frequency, first-layer kernels, frequency sweep.

python scripts/figures/plot.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch --output figures
python scripts/figures/plot.py runs/* --output figures --format pdf --smooth 25

It draws what the runs hold, and says so. Runs of one recipe are seeds of one arm in the resize-size figure, as in
summarize.py, whose intervals it shows.
"""

import argparse
import contextlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.config_diff import read_json, resolved
from scripts.study.statistics_of_runs import describe, unit_means
from scripts.study.summarize import read_arms
from utils import figures
from utils.distributed import run_entry
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

Figures = dict[str, tuple[figures.Figure, str]]  # name -> the figure, and what it shows in words


@dataclass
class RunFolder:
    """What a run's folder holds, read once."""

    folder: Path
    config: dict  # "section.key" -> value
    lines: list[dict]  # of log.jsonl
    result: dict  # of result.json, or empty
    sweep: dict  # of frequency_sweep.json, or empty

    @property
    def kind(self) -> str:
        return "pretraining" if "filter.radius" in self.config else "finetuning"


def read_run(folder: Path) -> RunFolder:
    """Raises: UserError if it is no run's folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run (it has no config.yaml); give folders that pretrain.py or finetune.py wrote")
    lines, log = [], folder / "log.jsonl"
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        with contextlib.suppress(ValueError):  # of a run that was cut short
            lines += [found] if "loss" in (found := json.loads(line)) else []
    result, sweep = (read_json(folder / f"{name}.json") for name in ("result", "frequency_sweep"))
    return RunFolder(folder, resolved(str(folder)), lines, result, sweep)


def named(runs: list[RunFolder]) -> dict[str, RunFolder]:
    """By folder name, or by the whole path where two have the same name."""
    names = [run.folder.resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run.folder): run for name, run in zip(names, runs, strict=True)}


def by_size(runs: dict[str, RunFolder]) -> dict[str, dict[int, tuple[np.ndarray, list[float] | None]]]:
    """As summarize.py has it: arm -> resize size -> top-1 of each unit, and the 95 % interval of their mean.

    Raises: UserError on two results of one run.
    """
    found: dict[str, dict] = {}
    for name, arm in read_arms([run.folder for run in runs.values() if "results" in run.result]).items():
        for size in filter(str.isdecimal, arm.scores):  # not where each run selected its own
            units = arm.units(size)
            found.setdefault(name, {})[int(size)] = unit_means(units), describe(units, arm.pretrained)["interval"]
    return found


def radial_history(folder: Path, most: int = 6) -> dict[str, dict[str, list[tuple[int, np.ndarray]]]]:
    """Kind of error -> "low_pass" and "high_pass" -> (step, errors by radius), at most `most`, from TensorBoard.

    Steps that a resumed run took again are there twice; the later ones count.
    """
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found: dict[str, dict] = {}
    for tag in (tag for tag in events.Tags()["tensors"] if tag.startswith("radial_error/")):
        kept: list = []
        for event in events.Tensors(tag):
            kept = [one for one in kept if one.step < event.step] + [event]
        chosen = sorted({round(i) for i in np.linspace(0, len(kept) - 1, most)})
        _, kind, name = tag.split("/")
        found.setdefault(kind, {})[name] = [(kept[i].step, make_ndarray(kept[i].tensor_proto)) for i in chosen]
    return found


def figures_of(runs: list[RunFolder], width: int) -> Figures:
    """Every figure that these runs have data for.

    Args:
        width: points of the log that a smoothed value is the mean of.
    """
    found: Figures = {}
    by_name = named(runs)
    for kind in ("pretraining", "finetuning"):
        logs = {name: run.lines for name, run in by_name.items() if run.kind == kind and run.lines}
        series = {name: [[line[key] for line in log] for key in ("step", "loss")] for name, log in logs.items()}
        if series:
            figure = figures.curves_figure(series, "optimizer step", f"{kind} loss", width)
            ends = "; ".join(f"{name} ends at {y[-1]:.4g}" for name, (_, y) in series.items() if y[-1] is not None)
            found[f"loss_{kind}"] = figure, f"Loss of {kind} against the step: {ends}."
    try:
        sizes = by_size(by_name)
    except UserError as error:
        sizes = {}
        print(f"warning: no figure of resize sizes: {error}", file=sys.stderr)
    if sizes:
        figure = figures.interval_figure(sizes, "val resize size [pixels]", "top-1 [%]")
        scores = {name: np.concatenate([values for values, _ in points.values()]) for name, points in sizes.items()}
        told = "; ".join(f"{name}: {of.min():.2f} to {of.max():.2f} %" for name, of in scores.items())
        found["resize_size"] = figure, f"Top-1 against the size that images are resized to: {told}."
    sweeps = {name: run.sweep["results"] for name, run in by_name.items() if run.sweep}
    if sweeps:
        told = "; ".join(f"{n}: {rows[0]['top1']:.1f} % unfiltered" for n, rows in sweeps.items())
        found["frequency_sweep"] = figures.sweep_figure(sweeps), f"Top-1 on low- and high-passed images. {told}."
    for name, run in by_name.items():
        if run.kind == "pretraining":
            found |= pretraining_figures(name, run)
    return found


def pretraining_figures(name: str, run: RunFolder) -> Figures:
    found: Figures = {}
    labels = {"error": "mean |error|", "relative": "mean |error| / mean |target|"}
    sides = run.config["filter.radius"], run.config["filter.outer_radius"]
    for kind, history in radial_history(run.folder).items():
        told = f"{name}: {labels[kind]} of the prediction against frequency radius, by step."
        found[f"radial_{kind}_{name}"] = figures.radial_figure(history, *sides, labels[kind]), told
    checkpoint = run.folder / "checkpoints/last.pt"
    if checkpoint.exists():
        weight = read_checkpoint(str(checkpoint))["model"]["conv1.weight"]
        told = f"{name}: the {len(weight)} kernels of the first layer and their spectra."
        found[f"kernels_{name}"] = figures.kernels_figure(weight, name), told
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Figures of one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder for the figures")
    parser.add_argument("--format", default="png", choices=("png", "pdf", "svg"))
    parser.add_argument("--smooth", type=int, default=5, help="points of the log that a curve's value is the mean of")
    arguments = parser.parse_args(argv)
    found = figures_of([read_run(folder) for folder in arguments.runs], max(1, arguments.smooth))
    if not found:
        raise UserError("these runs hold nothing to draw yet: no log line, no result, no checkpoint")
    for name, (figure, told) in found.items():
        file = re.sub(r"[/\0]", "_", name).encode()[:200].decode(errors="ignore")  # a name holds 255 bytes at most
        path = arguments.output / f"{file}.{arguments.format}"
        figures.save(figure, path)
        print(f"wrote {path}: {told}")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
