"""Finetuning with repeated augmentation: resumed exactly, and the same on one rank and on two."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, finetune, overriding, torchrun
from utils.run.checkpoint import read_checkpoint
from utils.run.log_file import is_training_line

pytestmark = pytest.mark.process
# 36 images make 2 steps of 16, of 4 micro-batches each. The first ends in the middle of an image's repeats.
# SGD, since AdamW would make a whole step of a rounding error near 0.
REPEATS = [
    "data.augmentation_repeats=3", "data.rand_augment_ops=2", "data.rand_augment_style=timm", "data.random_erasing=0.5",
    "optimizer.name=sgd", "optimizer.learning_rate=1e-4", "checkpoint.every_steps=1", "--val-resize-size", "32",
    "--batch-size", "16", "train.images_per_device=4", "--epochs", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"), train=12, val=1)


def run_on(ranks: int, images: Path, output: Path, *more: str) -> None:
    words = [*overriding(FINETUNE, *REPEATS), "--data-path", str(images), "--output-dir", str(output)]
    words = overriding(words, *more)
    if ranks == 1:
        assert finetune(words) == 0
    else:
        code, printed = torchrun(ranks, "finetune.py", *words)
        assert code == 0, printed


@pytest.fixture(scope="module")
def whole_runs(images, tmp_path_factory) -> dict[int, Path]:
    """Number of ranks -> folder of a run that nothing disturbed."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = tmp_path_factory.mktemp("whole")
        run_on(ranks, images, folders[ranks])
    return folders


@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_in_the_middle_of_an_epoch_and_of_an_images_repeats_is_exact(ranks, whole_runs, images, tmp_path):
    whole = whole_runs[ranks]
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(whole / "checkpoints/step_00000001.pt", tmp_path / "checkpoints")
    lines = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text(lines[0])
    run_on(ranks, images, tmp_path, "--resume", "auto", "data.workers=2")
    assert_same_state(whole / "checkpoints/last.pt", tmp_path / "checkpoints/last.pt")
    assert mathematics(tmp_path) == mathematics(whole)


def weights_at(output: Path, step: int) -> torch.Tensor:
    """All parameters in one vector; running statistics, which are rank 0's, left out."""
    model = read_checkpoint(output / f"checkpoints/step_{step:08}.pt")["model"]
    return torch.cat([tensor.flatten() for name, tensor in model.items() if re.search("weight|bias", name)])


def test_four_micro_batches_on_one_rank_are_two_on_each_of_two_ranks(whole_runs, images, tmp_path):
    """Only the order of sums differs."""
    run_on(1, images, tmp_path, "data.augmentation_repeats=1")
    first, last = weights_at(whole_runs[1], 1), weights_at(whole_runs[1], 2)
    moved = (last - first).norm()
    assert (weights_at(whole_runs[2], 2) - last).norm() < 0.01 * moved
    assert (weights_at(tmp_path, 2) - last).norm() > 0.2 * moved  # without repeats it sees other images
    losses = {}
    for ranks, output in whole_runs.items():
        losses[ranks] = [line["loss"] for line in log_lines(output) if is_training_line(line)]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)
