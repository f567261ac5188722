"""Plots: what there is to draw, seeds of one arm, measurements that a resumed run repeats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from scripts.figures import plot
from utils.errors import UserError
from utils.run.reading import read_run


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
