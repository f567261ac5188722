"""Figures of one or several runs: curves, resize sizes, errors by frequency, first-layer kernels, frequency sweep.

python scripts/plot.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch --output figures
python scripts/plot.py runs/* --output figures --format pdf --smooth 25

It draws what the runs hold, and says so. Runs whose configs differ in run.seed alone (and in `seed0`, `seed1` … within
run.weights) are seeds of one group in the resize-size figure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configs.schema import FREE_TO_CHANGE
from scripts import figures
from scripts.config_diff import resolved
from utils.checkpoint import read_checkpoint
from utils.distributed import run_entry
from utils.errors import UserError

Figures = dict[str, tuple[figures.FIGURE, str]]  # name -> the figure, and what it shows in words


@dataclass
class RunFolder:
    """What a run's folder holds, read once."""

    folder: Path
    config: dict  # "section.key" -> value
    lines: list[dict]  # of log.jsonl
    result: dict  # of result.json, or empty
    sweep: dict  # of frequency_sweep.json, or empty

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def pretraining(self) -> bool:
        return "filter.radius" in self.config

    def rows(self) -> list[dict]:
        return [] if self.pretraining else self.result.get("results", [])


def read_run(folder: Path) -> RunFolder:
    """Raises: UserError if it is no run's folder."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run (it has no config.yaml); give folders that pretrain.py or finetune.py wrote")

    def content(name):
        return json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}

    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    lines = [line for line in lines if "loss" in line]
    return RunFolder(folder, resolved(str(folder)), lines, content("result.json"), content("frequency_sweep.json"))


def named(runs: list[RunFolder]) -> dict[str, RunFolder]:
    """By folder name, or by the whole path where two have the same name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.folder): run for run in runs}


def groups(runs: dict[str, RunFolder]) -> dict[str, dict[int, list[float]]]:
    """Finetunings by recipe: name of the first -> resize size -> top-1 of the weights `model` for each seed."""
    found: dict[tuple, tuple[str, dict]] = {}
    for name, run in runs.items():
        recipe = {key: str(value) for key, value in run.config.items() if key not in FREE_TO_CHANGE | {"run.seed"}}
        weights = re.sub(r"seed[-_]?\d+", "seed", str(run.config.get("run.weights")))
        _, points = found.setdefault((*recipe.items(), weights), (name, {}))
        for row in run.rows():
            if row["weights"] == "model":
                points.setdefault(row["val_resize_size"], []).append(row["top1"])
    return {name: points for name, points in found.values() if points}


def radial_history(folder: Path, kind: str, most: int = 6) -> dict[str, list[tuple[int, np.ndarray]]]:
    """By "low_pass" and "high_pass": (step, errors by radius), at most `most`, from TensorBoard's events."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    found = {}
    for name in ("low_pass", "high_pass"):
        tag = f"radial_error/{kind}/{name}"
        every = events.Tensors(tag) if tag in events.Tags()["tensors"] else []
        chosen = sorted({round(i) for i in np.linspace(0, len(every) - 1, most)}) if every else []
        found[name] = [(every[i].step, make_ndarray(every[i].tensor_proto)) for i in chosen]
    return found if all(found.values()) else {}


def figures_of(runs: list[RunFolder], width: int) -> Figures:
    """Every figure that these runs have data for.

    Args:
        width: points of the log that a smoothed value is the mean of.
    """
    found: Figures = {}
    by_name = named(runs)
    for kind, chosen in (("pretraining", True), ("finetuning", False)):
        of_kind = {name: run for name, run in by_name.items() if run.pretraining == chosen and run.lines}
        series = {
            name: ([line["step"] for line in run.lines], [line["loss"] for line in run.lines])
            for name, run in of_kind.items()
        }
        if series:
            figure = figures.curves_figure(series, "optimizer step", f"{kind} loss", width)
            ends = "; ".join(f"{name} ends at {y[-1]:.4g}" for name, (_, y) in series.items() if y[-1] is not None)
            found[f"loss_{kind}"] = figure, f"Loss of {kind} against the step: {ends}."
    sizes = groups(by_name)
    if sizes:
        figure = figures.interval_figure(sizes, "val resize size [pixels]", "top-1 [%]")
        best = "; ".join(
            f"{n}: {min(map(min, p.values())):.2f} to {max(map(max, p.values())):.2f} %" for n, p in sizes.items()
        )
        found["resize_size"] = figure, f"Top-1 against the size that images are resized to: {best}."
    sweeps = {name: run.sweep["results"] for name, run in by_name.items() if run.sweep}
    if sweeps:
        told = "; ".join(f"{n}: {rows[0]['top1']:.1f} % unfiltered" for n, rows in sweeps.items())
        found["frequency_sweep"] = figures.sweep_figure(sweeps), f"Top-1 on low- and high-passed images. {told}."
    for name, run in by_name.items():
        if run.pretraining:
            found |= pretraining_figures(name, run)
    return found


def pretraining_figures(name: str, run: RunFolder) -> Figures:
    found: Figures = {}
    a_step = run.config["schedule.epochs"] / run.result["steps"] if "steps" in run.result else 1
    for kind, label in (("error", "mean |error|"), ("relative", "mean |error| / mean |target|")):
        history = radial_history(run.folder, kind)
        if history:
            lines = {task: [(step * a_step, values) for step, values in of] for task, of in history.items()}
            figure = figures.radial_figure(lines, run.config["filter.radius"], label)
            found[f"radial_{kind}_{name}"] = (
                figure,
                f"{name}: {label} of the prediction against frequency radius, by epoch.",
            )
    checkpoint = run.folder / "checkpoints/last.pt"
    if checkpoint.exists():
        weight = read_checkpoint(str(checkpoint))["model"]["conv1.weight"].numpy()
        told = f"{name}: the {len(weight)} kernels of the first layer and their spectra."
        found[f"kernels_{name}"] = figures.kernels_figure(weight, name), told
    return found


def main(argv: list[str]) -> int:
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
        path = arguments.output / f"{name}.{arguments.format}"
        figures.save(figure, path)
        print(f"wrote {path}: {told}")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
