"""TensorBoard: nothing that fails there ends a training, and nothing is shown by other ranks."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.schema import FinetuneConfig
from utils.config import parse_command_line
from utils.figures import radial_curves
from utils.run.board import Board, compared_settings


def board_in(folder, active=True):
    warnings = []
    return Board(folder, first_step=0, active=active, say=warnings.append), warnings


def missing():
    raise ModuleNotFoundError("No module named 'matplotlib'")


def test_a_missing_matplotlib_is_said_once_and_the_rest_is_shown(tmp_path):
    board, warnings = board_in(tmp_path)
    for step in (1, 2):
        board.add_drawing("curves", missing, step)
        board.add_drawing("matrix", missing, step)
        board.add("scalar", "loss", 0.5, step)
    board.close()
    assert warnings == [
        "warning: TensorBoard shows no curves and no matrices (No module named 'matplotlib'); pip install matplotlib"
    ]
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [1, 2]


def test_a_drawing_is_an_image(tmp_path):
    board, warnings = board_in(tmp_path)
    board.add_drawing("curves", lambda: radial_curves({"one": torch.tensor([1.0, 0.5])}, "title", (1.0,)), 3)
    board.close()
    assert warnings == []
    (event,) = EventAccumulator(str(tmp_path)).Reload().Images("curves")
    assert event.step == 3 and event.width > 100


def test_an_error_inside_the_guard_is_a_warning(tmp_path):
    board, warnings = board_in(tmp_path)
    with board.guard(7):
        raise RuntimeError("CUDA out of memory\nmore")
    assert warnings == ["warning: step 7: no pictures (RuntimeError: CUDA out of memory)"]


def test_a_stop_is_not_swallowed(tmp_path):
    board, _ = board_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), board.guard(1):
        raise KeyboardInterrupt


def test_other_ranks_draw_and_write_nothing(tmp_path):
    board, warnings = board_in(tmp_path, active=False)
    board.add_drawing("curves", missing, 1)
    board.add("scalar", "loss", 0.5, 1)
    board.add_hparams(FinetuneConfig(), {"final/top1": 1.0}, 1)
    board.close()
    assert warnings == [] and list(tmp_path.iterdir()) == []


def test_hparams_are_the_knobs_marked_so_and_those_that_a_run_has_changed():
    marked = {
        "run.seed", "run.weights", "model.name", "data.train_crop_size", "data.label_fraction", "loss.name",
        "optimizer.name", "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.layer_decay",
        "schedule.epochs", "schedule.steps", "train.batch_size", "train.precision",
    }  # fmt: skip
    assert compared_settings(FinetuneConfig()).keys() == marked
    words = ["optimizer.learning_rate=0.5", "loss.name=ce", "optimizer.clip_grad_norm=1", "data.mean=[0.5,0.5,0.5]"]
    words += ["data.val_resize_size=[235,256]", "run.output_dir=elsewhere", "data.workers=3"]  # the last two: nothing
    settings = compared_settings(parse_command_line(FinetuneConfig, words, ""))
    assert settings.keys() == marked | {"optimizer.clip_grad_norm", "data.mean", "data.val_resize_size"}
    assert (settings["optimizer.learning_rate"], settings["loss.name"], settings["run.weights"]) == (0.5, "ce", "-")
    assert (settings["optimizer.clip_grad_norm"], settings["data.val_resize_size"]) == (1.0, "[235, 256]")
