"""Plots: what there is to draw, seeds of one arm, measurements that a resumed run repeats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from configs.schema import FinetuneConfig, PretrainConfig
from scripts.figures import plot
from utils.config import to_dict, to_yaml
from utils.errors import UserError
from utils.run.reading import RunFolder, read_run


@pytest.mark.process
def test_plot_writes_what_there_is(runs, tmp_path, capsys):
    plot.main([*map(str, runs.folders), "--output", str(tmp_path), "--format", "svg"])
    assert len(list(tmp_path.glob("*.svg"))) == capsys.readouterr().out.count("wrote ") == 7


@pytest.mark.process
def test_seeds_of_one_recipe_are_an_arm_with_an_interval(runs):
    finetuning, second_seed = read_run(runs.finetuning), read_run(runs.second_seed)
    (by_size,) = plot.scores_by_size(plot.named([finetuning, second_seed])).values()
    (scores,) = by_size.values()
    assert len(scores.values) == 2 and scores.interval[0] <= scores.values.mean() <= scores.interval[1]
    (by_size,) = plot.scores_by_size(plot.named([finetuning])).values()
    (scores,) = by_size.values()
    assert scores.interval is None  # of one run


def evaluated_run(folder: Path, lines: list[dict], config: object = FinetuneConfig()) -> RunFolder:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(to_dict(config)))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


def evaluation(epoch: int, size: int, top1: float, weights: str = "model") -> dict:
    scores = {"top1": top1, "top5": 99.0, "loss": 1.0}
    return {"step": 4 * epoch + 4, "epoch": epoch, "split": "val", "weights": weights, "val_resize_size": size} | scores


def test_runs_that_evaluated_several_times_have_a_curve_at_their_first_size(tmp_path):
    lines: list[dict] = []
    for epoch, top1 in ((0, 10.0), (4, 30.0)):
        lines.append({"step": 4 * epoch + 4, "epoch": epoch, "loss": 1.0, "images_per_second": 5.0})
        for weights, more in (("model", 0.0), ("ema", 5.0)):
            for size, less in ((235, 0.0), (256, 9.0)):
                lines.append(evaluation(epoch, size, top1 + more - less, weights))
    several = evaluated_run(tmp_path / "several", lines)
    once = evaluated_run(tmp_path / "once", [evaluation(0, 235, 50.0)])
    assert plot.top1_by_epoch(several) == {"model": {1: 10.0, 5: 30.0}, "ema": {1: 15.0, 5: 35.0}}
    assert [line["step"] for line in several.log] == [4, 20]
    figure = plot.evaluations_figure(plot.named([several, once]), "finetuning")
    (axis,) = figure.figure.axes
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.lines]
    assert drawn == [([1, 5], [10.0, 30.0]), ([1, 5], [15.0, 35.0])]
    assert figure.description.endswith("several ends at 30.00 %; several, ema ends at 35.00 %.")
    assert plot.evaluations_figure(plot.named([once]), "finetuning") is None
    drawn = [figure.name for figure in plot.all_figures(plot.named([several, once]), width=1)]
    assert "evaluations" in drawn and "neighbours" not in drawn


def test_neighbours_of_a_pretraining_are_not_drawn_as_top1_of_a_classifier(tmp_path):
    lines = [evaluation(epoch, 37, top1) | {"method": "knn", "k": 20} for epoch, top1 in ((9, 30.0), (19, 40.0))]
    probed = evaluated_run(tmp_path / "probed", lines, PretrainConfig())
    runs = plot.named([probed])
    assert plot.evaluations_figure(runs, "finetuning") is None
    figure = plot.evaluations_figure(runs, "pretraining")
    assert figure.description == "Evaluations against the epoch, kNN top-1 on val: probed ends at 40.00 %."
    assert figure.figure.axes[0].get_ylabel() == "kNN top-1 on val [%]"


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no run .it has no config.yaml"):
        plot.main([str(tmp_path)])


def write_errors(folder: Path, order: int, first_step: int, errors: dict[int, float]) -> None:
    """An attempt's events: step -> error, in the file that is read as number `order`."""
    writer = SummaryWriter(str(folder / "new"), purge_step=first_step)
    for step, error in errors.items():
        for kind in ("low_pass", "high_pass"):
            writer.add_tensor(f"radial_error/error/{kind}", torch.tensor([error]), step)
    writer.close()
    (file,) = (folder / "new").iterdir()
    file.rename(folder / f"events.out.tfevents.{order}")


def test_measurements_that_a_resumed_run_repeats_count_once(tmp_path):
    write_errors(tmp_path, order=1, first_step=1, errors={1: 1.0, 2: 2.0, 3: 3.0})
    write_errors(tmp_path, order=2, first_step=2, errors={2: 12.0, 4: 14.0})
    (tmp_path / "new").rmdir()
    history = plot.radial_history(tmp_path)
    errors = {step: values.item() for step, values in history["error"]["low_pass"].items()}
    assert errors == {1: 1.0, 2: 12.0, 4: 14.0}


def test_a_long_history_is_cut_to_a_few_steps_with_the_first_and_the_last(tmp_path):
    write_errors(tmp_path, order=1, first_step=1, errors={step: 1.0 for step in range(1, 31)})
    (tmp_path / "new").rmdir()
    steps = list(plot.radial_history(tmp_path)["error"]["high_pass"])
    assert len(steps) == 6 and (steps[0], steps[-1]) == (1, 30)


def test_names_become_names_of_files():
    assert plot.file_name("radial_a/b\0c") == "radial_a_b_c"
    assert len(plot.file_name("雪" * 255).encode()) <= 200
