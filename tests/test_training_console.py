"""What a training leaves of its evaluations, stopped and resumed or not, and what it shows on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from losses.classification import ClassificationLoss
from tests.support.comparing import log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, finetune, overriding, small_run
from tests.support.terminal import Screen, run_on_terminal
from utils.process import EXIT_REQUEUE
from utils.run.log_file import is_evaluation_line

pytestmark = pytest.mark.process
SIZES = (32, 36)
STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return data_set(tmp_path_factory.mktemp("images"))


def words_of(images: Path, output: Path, *more: str) -> list[str]:
    """Two epochs, with an evaluation after each: of the model and of its average, at two sizes."""
    evaluation = ["run.evaluate_every_epochs=1", "optimizer.ema_decay=0.9", "checkpoint.every_steps=2"]
    sizes = f"data.val_resize_size=[{SIZES[0]},{SIZES[1]}]"
    words = small_run(FINETUNE, images, output, *evaluation, sizes, "schedule.epochs=2", "checkpoint.keep=9")
    return [*words, *more]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert finetune(words_of(images, output)) == 0
    return output


def val_curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point that TensorBoard has of each score on val."""
    events = EventAccumulator(str(output), size_guidance={"scalars": 0}).Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith("val/"):
            curves[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return curves


def test_each_evaluation_is_in_the_log_in_tensorboard_and_in_the_result(whole):
    lines = [line for line in log_lines(whole) if is_evaluation_line(line)]
    assert [(line["step"], line["epoch"], line["weights"], line["val_resize_size"]) for line in lines] == [
        (3, 0, "model", 32), (3, 0, "model", 36), (3, 0, "ema", 32), (3, 0, "ema", 36),
        (6, 1, "model", 32), (6, 1, "model", 36), (6, 1, "ema", 32), (6, 1, "ema", 36),
    ]  # fmt: skip
    curves = val_curves(whole)
    assert len(curves) == 3 * 2 * len(SIZES)
    for line in lines:
        for score in ("top1", "top5", "loss"):
            points = dict(curves[f"val/{score}_{line['weights']}_at_{line['val_resize_size']}"])
            assert points[line["step"]] == pytest.approx(line[score])
    results = json.loads((whole / "result.json").read_text())["results"]
    for line, row in zip(lines[4:], results, strict=True):
        assert line.items() - row.items() == {("step", 6), ("epoch", 1), ("split", "val")}


def test_an_evaluation_before_which_a_run_was_stopped_is_made_up_for_once(whole, images, tmp_path, monkeypatch, capsys):
    real, calls = ClassificationLoss.__call__, iter(range(1000))

    def signalled(*arguments):
        if next(calls) == 2 * STEPS_PER_EPOCH - 1:  # the last of two micro-batches in the last step of an epoch
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    monkeypatch.setattr(ClassificationLoss, "__call__", signalled)
    assert finetune(words_of(images, tmp_path)) == EXIT_REQUEUE
    assert not any(is_evaluation_line(line) for line in log_lines(tmp_path))
    capsys.readouterr()
    assert finetune(words_of(images, tmp_path, "--resume", "auto")) == 0
    assert mathematics(tmp_path) == mathematics(whole)
    assert val_curves(tmp_path) == val_curves(whole)
    printed = capsys.readouterr().out.splitlines()
    assert "  goes on    in epoch 2, after step 3" in printed
    assert sum(line.startswith("epoch 1/2  step 3/6  val model at 32  top-1 ") for line in printed) == 1


@pytest.mark.parametrize("step", [2, 3, 4])
def test_evaluations_are_there_once_wherever_a_run_is_resumed(step, whole, images, tmp_path):
    """From a checkpoint before, at and after the first evaluation, with the log of all that came later."""
    output = tmp_path / "again"
    shutil.copytree(whole, output)
    (output / "result.json").unlink()
    resume = str(whole / f"checkpoints/step_{step:08}.pt")
    assert finetune(words_of(images, output, "--resume", resume)) == 0
    assert mathematics(output) == mathematics(whole)
    assert val_curves(output) == val_curves(whole)


# On a terminal.


def shown_on_terminal(entry: str, words: list[str], images: Path, folder: Path) -> tuple[int, str]:
    """Exit code of a small run, and all that it writes on a terminal of 80 columns. Its paths are short."""
    (folder / "images").symlink_to(images)
    words = small_run(words, Path("images"), Path("run"), "schedule.epochs=2")
    return run_on_terminal([sys.executable, str(ROOT / entry), *words], folder, columns=80)


@pytest.mark.parametrize(("entry", "words"), [("pretrain.py", PRETRAIN), ("finetune.py", FINETUNE)])
def test_on_a_terminal_lines_fit_and_the_bar_is_gone_in_the_end(entry, words, images, tmp_path):
    pytest.importorskip("tqdm")
    code, output = shown_on_terminal(entry, words, images, tmp_path)
    screen = Screen.showing(output)
    assert code == 0, output
    assert 40 < screen.widest <= 80
    assert output.count("| step ") >= 6 and "100%|" in output  # the bar was there
    lines = screen.text()
    assert not any("%|" in line for line in lines), lines
    steps = [line for line in lines if line.startswith("epoch ") and " lr " in line]
    assert len(steps) == 6 and all("img/s" not in line for line in steps)  # the bar has that
    assert lines[-1] == "" and lines[-2] != ""  # where the shell goes on
    facts = [line.split()[0] for line in lines if line.startswith("  ")]
    assert facts == ["model", "images", "sizes", "epochs", "batch", "precision", "weights", "output"]


def test_an_error_on_a_terminal_takes_the_place_of_the_bar(images, tmp_path):
    pytest.importorskip("tqdm")
    words = overriding(PRETRAIN, "optimizer.learning_rate=1e36")
    code, output = shown_on_terminal("pretrain.py", words, images, tmp_path)
    screen = Screen.showing(output)
    assert code == 2 and "| step " in output and screen.widest <= 80
    lines = screen.text()
    assert any(line.startswith("error: loss or gradient is not finite") for line in lines)
    assert not any("%|" in line for line in lines)
