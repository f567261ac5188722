"""Ranks of one job, started by hand as on two machines, that do not have the same data, config or checkpoint."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, endings, finetune, in_one_line, small_run, start
from utils.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.process
SIZES = ["data.val_resize_size=[36]", "run.evaluate_every_epochs=null", "run.timeout_minutes=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    """A checkpoint of one epoch."""
    output = tmp_path_factory.mktemp("trained")
    assert finetune(small_run(FINETUNE, images, output, *SIZES)) == 0
    return output / "checkpoints/last.pt"


def job_of(first: list[str], second: list[str], entry: str = "finetune.py") -> list[tuple[int, str]]:
    """Exit code and output of two ranks of one job, each the first of its machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    processes = []
    for rank, words in enumerate((first, second)):
        command = [sys.executable, entry, *words]
        processes.append(start(command, RANK=str(rank), MASTER_PORT=port, **job))
    return endings(processes)


def assert_refused(results: list[tuple[int, str]], difference: str) -> None:
    for code, printed in results:
        assert printed.count("error: ") == 1
        line = in_one_line(printed)
        assert code == 2, printed
        assert f"rank 1 on host {socket.gethostname()} is not like rank 0 on host {socket.gethostname()}: " in line
        assert difference in line
        assert "step 1/" not in printed


def lack_a_training_image(root: Path) -> None:
    (root / "train/ant/3.png").unlink()


def lack_a_validation_image(root: Path) -> None:
    (root / "val/ant/1.png").unlink()


def have_another_class(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "ant").rename(root / part / "zebra")


def have_other_pixels(root: Path) -> None:
    shutil.copy(root / "train/bee/1.png", root / "train/ant/0.png")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lack_a_training_image, "train.images: 26, rank 0 has 27"),
        (lack_a_validation_image, "val.images: 8, rank 0 has 9"),
        (have_another_class, "train.classes: number 0 is bee, rank 0 has ant"),
        (have_other_pixels, "train.sampled_files: number 0 is "),
    ],
)
def test_another_copy_of_the_data_is_refused(change, difference, images, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    change(copy)
    words = [small_run(FINETUNE, root, tmp_path / "out", *SIZES) for root in (images, copy)]
    assert_refused(job_of(*words), difference)
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate: 0.1, rank 0 has 0.001"),
        ("logging.every_steps=2", "logging.every_steps: 2, rank 0 has 1"),  # else one would wait for the other
    ],
)
def test_another_config_is_refused(word, difference, images, tmp_path):
    words = [small_run(FINETUNE, images, tmp_path / "out", *SIZES, *more) for more in ([], [word])]
    assert_refused(job_of(*words), difference)


def test_another_checkpoint_to_evaluate_is_refused(images, trained, tmp_path):
    saved = read_checkpoint(trained)
    saved["model"]["fc.bias"] += 1
    torch.save(saved, tmp_path / "stale.pt")
    jobs = []
    for weights in (trained, tmp_path / "stale.pt"):
        words = small_run(FINETUNE, images, tmp_path / "out", *SIZES, "--eval-only", "--weights", str(weights))
        jobs.append(words)
    assert_refused(job_of(*jobs), "run.weights: ")
    assert not list((tmp_path / "out").glob("evaluation*"))


@pytest.mark.parametrize("what", ["checkpoint", "set"])
def test_another_checkpoint_or_set_to_score_is_refused(what, images, trained, tmp_path):
    checkpoint, root = trained, images
    difference = "set 1.images: 8, rank 0 has 9"
    if what == "checkpoint":
        saved = read_checkpoint(trained)
        saved["model"]["fc.bias"] += 1
        checkpoint = tmp_path / "stale.pt"
        torch.save(saved, checkpoint)
        difference = "run.weights: "
    else:
        root = tmp_path / "images"
        shutil.copytree(images, root)
        lack_a_validation_image(root)
    more = ["data.workers=0", "run.timeout_minutes=1", f"run.output_dir={tmp_path / 'out'}"]
    first = [str(trained), "--sets", str(images / "val"), *more]
    second = [str(checkpoint), "--sets", str(root / "val"), *more]
    assert_refused(job_of(first, second, "scripts/robustness.py"), difference)
    assert not (tmp_path / "out").exists()


def test_what_belongs_to_a_machine_may_differ(images, trained, tmp_path):
    """Places, workers and intervals of rank 0's writing; the weights are two copies of one file."""
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    shutil.copy(trained, tmp_path / "weights.pt")
    first = small_run(FINETUNE, images, tmp_path / "first", *SIZES, "--weights", str(trained))
    more = ["data.workers=1", "checkpoint.every_steps=1", "data.val_batch_size=2", "run.device=cpu"]
    second = small_run(FINETUNE, copy, tmp_path / "second", *SIZES, *more, "--weights", str(tmp_path / "weights.pt"))
    for code, printed in job_of(first, second):
        assert code == 0, printed
    assert (tmp_path / "first/result.json").exists() and not (tmp_path / "second").exists()
