"""Trainings whose length is given in steps: on a small share of the labels, evaluated, interrupted and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, pretrain, small_run

pytestmark = pytest.mark.process
EVERY_STEP = ["checkpoint.every_steps=1", "checkpoint.keep=99"]
HALF = [  # 18 of 36 images are 2 steps of 8
    "schedule.steps=5", "schedule.epochs=10", "schedule.warmup_epochs=2", "data.label_fraction=0.5",
    "run.evaluate_every_epochs=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"), train=12)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A finished finetuning of 5 steps, which are 2.5 epochs, with all its checkpoints."""
    output = tmp_path_factory.mktemp("whole")
    assert finetune(small_run(FINETUNE, images, output, *HALF, *EVERY_STEP)) == 0
    return output


def test_rates_epochs_and_evaluations_of_a_finetuning_in_steps(whole):
    lines = log_lines(whole)
    trained = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5]
    assert [line["epoch"] for line in trained] == [0, 0, 1, 1, 2]
    # The warm-up is a fifth of the schedule, so its first step; the cosine's 4 steps end at 0.
    rates = [line["learning_rate"] for line in trained]
    assert rates[0] < 1e-4 and rates[1:] == pytest.approx([1e-3, 0.8535534e-3, 0.5e-3, 0.1464466e-3], rel=1e-2)
    evaluated = [line["step"] for line in lines if "learning_rate" not in line]
    assert sorted(set(evaluated)) == [2, 4, 5]  # 4 of 10 epochs are 2 of 5 steps
    assert json.loads((whole / "result.json").read_text())["steps"] == 5


@pytest.mark.parametrize("step", [1, 2, 3])
def test_it_resumes_bit_for_bit(whole, images, step, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(whole, output, symlinks=True)
    for path in (output / "checkpoints").glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    (output / "result.json").unlink()
    words = small_run(FINETUNE, images, output, *HALF, *EVERY_STEP, "--resume", "auto")
    assert finetune(words) == 0
    assert f"in epoch {step // 2 + 1}, after step {step}" in in_one_line(capsys.readouterr().out)
    assert_same_state(whole / "checkpoints/last.pt", output / "checkpoints/last.pt")
    assert mathematics(output) == mathematics(whole)


def test_an_epoch_of_one_step(images, tmp_path, capsys):
    """12 of 36 images, of which a step takes 8."""
    words = ["schedule.steps=3", "schedule.epochs=2", "data.label_fraction=0.33", "run.evaluate_every_epochs=null"]
    assert finetune(small_run(FINETUNE, images, tmp_path, *words)) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert "epoch 3/3 step 3/3" in printed and "epochs 3 of 1 steps, 3 steps in all (schedule.steps)" in printed


def test_whole_epochs_in_steps_are_the_same_training(images, tmp_path):
    """36 images are 4 steps of 8, so 2 epochs are 8 steps."""
    outputs: dict[str, Path] = {}
    for words in (["schedule.epochs=2"], ["schedule.epochs=2", "schedule.steps=8"]):
        output = tmp_path / str(len(words))
        assert pretrain(small_run(PRETRAIN, images, output, *words, "schedule.warmup_epochs=1")) == 0
        outputs[words[-1]] = output
    one, other = outputs.values()
    assert_same_state(one / "checkpoints/last.pt", other / "checkpoints/last.pt")
    assert mathematics(one) == mathematics(other)
