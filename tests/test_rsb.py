"""The paper's finetuning as jobs: LAMB with drop path resumes exactly; its recipes learn and leave usable weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from scripts.export_weights import export_weights
from scripts.make_sample_data import BUNDLE, read_bundle, write_folders
from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, finetune, newest_result, overriding, pretrain, torchrun
from utils.run.checkpoint import read_checkpoint
from utils.run.log_file import is_training_line

pytestmark = pytest.mark.process
LAMB = ["optimizer.name=lamb", "optimizer.weight_decay_on=matrices", "model.drop_path=0.4"]
AVERAGE = [
    "optimizer.ema_decay=0.9", "optimizer.ema_every_steps=2", "optimizer.ema_buffers=averaged",
    "optimizer.ema_restart_in_warmup=true", "schedule.warmup_epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """27 training images: an epoch is 3 steps of 8."""
    return data_set(tmp_path_factory.mktemp("noise"))


@pytest.mark.parametrize(("entry", "ranks"), [("pretrain.py", 1), ("finetune.py", 1), ("finetune.py", 2)])
def test_lamb_with_drop_path_resumes_exactly_in_the_middle_of_an_epoch(entry, ranks, noise, tmp_path):
    """Bit for bit, with mixing, several micro-batches a step, and an average that is not updated at each step."""
    words = [*LAMB, *AVERAGE, "--epochs", "3", "--batch-size", "8", "train.images_per_device=2"]
    words += ["--data-path", str(noise), "checkpoint.every_steps=1", "checkpoint.keep=9"]
    base, main = PRETRAIN, pretrain
    if entry == "finetune.py":
        base, main = FINETUNE, finetune
        words += ["data.mixup_alpha=0.1", "data.cutmix_alpha=1", "--val-resize-size", "32"]
    words = overriding(base, *words)

    def run(output: Path, *more: str) -> None:
        if ranks == 1:
            assert main([*words, "--output-dir", str(output), *more]) == 0
        else:
            code, printed = torchrun(ranks, entry, *words, "--output-dir", str(output), *more)
            assert code == 0, printed

    whole, part = tmp_path / "whole", tmp_path / "part"
    run(whole)
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/step_00000004.pt", part / "checkpoints")  # one step into the second epoch
    shutil.copy(whole / "log.jsonl", part)
    run(part, "--resume", "auto")
    assert_same_state(whole / "checkpoints/last.pt", part / "checkpoints/last.pt")
    assert mathematics(part) == mathematics(whole)
    state = read_checkpoint(part / "checkpoints/last.pt")["optimizer"]["state"]
    assert {int(moments["step"]) for moments in state.values()} == {9}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """Part of the bundled sample: ten classes of 40 images to train on and 20 of val."""
    root = tmp_path_factory.mktemp("sample")
    splits = read_bundle(BUNDLE)
    small = {"train": [images[:40] for images in splits["train"]], "val": [images[:20] for images in splits["val"]]}
    write_folders(small, root / "images")
    return root / "images"


@pytest.mark.parametrize("recipe", ["finetune_resnet50_rsb_a3", "finetune_resnet50_rsb_a2"])
def test_a_recipe_learns_and_leaves_weights_to_evaluate_and_export(recipe, sample, tmp_path):
    """Two epochs of a ResNet-18 at 32 pixels, from scratch; chance is 10 %."""
    words = ["--config", str(ROOT / f"configs/{recipe}.yaml"), "model.name=resnet18", "--data-path", str(sample)]
    words += ["data.train_crop_size=32", "data.val_crop_size=32", "--val-resize-size", "36", "data.workers=0"]
    words += ["--output-dir", str(tmp_path), "train.precision=float32"]
    training = ["--epochs", "2", "schedule.warmup_epochs=0", "schedule.interval=step", "--batch-size", "20"]
    training += ["train.images_per_device=10", "logging.every_steps=5", "run.evaluate_every_epochs=null"]
    assert finetune([*words, *training]) == 0
    losses = [line["loss"] for line in log_lines(tmp_path) if is_training_line(line)]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    [row] = json.loads((tmp_path / "result.json").read_text())["results"]
    assert row["top1"] > 15 and row["images"] == 200  # chance is 10, give or take 2.1

    weights = ["--weights", str(tmp_path / "checkpoints/last.pt")]
    assert finetune([*words, *weights, "--eval-only"]) == 0
    assert newest_result(tmp_path)["results"] == [row]
    assert finetune([*words, *weights, "--eval-only", "--frequency-sweep", "run.sweep_radii=[4]"]) == 0
    whole = newest_result(tmp_path, "frequency_sweep")["results"][0]
    assert whole["top1_count"] == row["top1_count"]
    message = export_weights(weights[1], tmp_path / "resnet18.pth", layout="timm")  # compares outputs with timm's
    assert "loads back strictly into timm's resnet18" in message
    saved = read_checkpoint(weights[1])["model"]
    exported = torch.load(tmp_path / "resnet18.pth", weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in exported.items())
