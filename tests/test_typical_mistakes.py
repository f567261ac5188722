"""Ten typical mistakes, and what is printed of each: the table in tests/README.md. All fit three lines of 100."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import FinetuneConfig, PretrainConfig
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, finetune, in_one_line, overriding, pretrain
from tests.support.weights import classifier
from utils.config import parse_command_line, to_dict
from utils.console import WIDTH, fitted
from utils.distributed import explain
from utils.errors import UserError

pytestmark = pytest.mark.process

SIZE = ["--data-path", "images", "--batch-size", "8", "train.images_per_device=8", "schedule.epochs=1"]
OUT = ["--output-dir", "runs/first"]
MISTAKES = {  # what was done -> (entry, words, what is printed)
    "no argument": (
        pretrain, [], "error: nothing given to do; --help lists every knob, configs/ holds recipes usage: "),
    "another project's flag": (pretrain, ["--lr", "0.1"], "--lr: unknown; write optimizer.learning_rate=0.1"),
    "the other entry's recipe": (
        pretrain, ["--config", str(ROOT / "configs/finetune_resnet50_bce.yaml")], "this is a config of finetune.py"),
    "no such folder": (
        pretrain, [*PRETRAIN, "--data-path", "imagnet"], "imagnet/train: no such image folder (No such file"),
    "val without a class": (
        finetune, [*FINETUNE, "--data-path", "lacking", *SIZE[2:], *OUT],
        "lacking/val: its class folders are not those of the training set"),
    "a batch larger than the data": (
        pretrain, overriding([*PRETRAIN, "--data-path", "images", *OUT], "train.batch_size=64"),
        "train.batch_size = 64: more than the 27 training images; lower it"),
    "a mean of 0 to 255": (
        finetune, [*FINETUNE, *SIZE, *OUT, "data.mean=[123.7, 116.3, 103.5]"],
        "must lie in [0, 1], as images do; divide a mean"),
    "a pretrained network evaluated": (
        finetune, ["--eval-only", "--weights", "pretrained.pt", *SIZE[:2]],
        "pretrained.pt: not a finetuned checkpoint"),
    "a folder of a run used again": (
        pretrain, [*PRETRAIN, *SIZE, "--output-dir", "runs/old"],
        "runs/old: holds checkpoints of an earlier run (step_00000002.pt); continue it with --resume auto"),
    "resumed with another learning rate": (
        pretrain, [*PRETRAIN, *SIZE, "--output-dir", "runs/new", "--resume", "runs/old/checkpoints/step_00000002.pt"],
        "was trained with another config (optimizer.learning_rate: 0.5 -> 0.001"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a data set, one whose val lacks a class, a pretrained checkpoint, and an earlier run."""
    root = tmp_path_factory.mktemp("place")
    data_set(root / "images")
    data_set(root / "lacking")
    (root / "lacking/val/cat").rename(root / "lacking/val/dog")
    weights = classifier("resnet18", 3).state_dict()
    config = to_dict(parse_command_line(PretrainConfig, [*PRETRAIN, *SIZE, *OUT], "a test"))
    torch.save({"model": weights, "config": config, "step": 2}, root / "pretrained.pt")
    (root / "runs/old/checkpoints").mkdir(parents=True)
    config["optimizer"]["learning_rate"] = 0.5
    content = {"model": weights, "optimizer": {}, "config": config, "step": 2, "images": 27}
    torch.save(content, root / "runs/old/checkpoints/step_00000002.pt")
    return root


def shown(entry, words: list[str]) -> list[str]:
    """The lines of the error that a program ends with."""
    with pytest.raises(UserError) as raised:
        entry(words)
    return fitted(explain(raised.value), label="error: ").splitlines()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_typical_mistake_is_told_in_three_short_lines(mistake, place, monkeypatch):
    monkeypatch.chdir(place)
    entry, words, message = MISTAKES[mistake]
    lines = shown(entry, words)
    assert message in in_one_line(" ".join(lines))
    assert len(lines) <= 3
    assert all(len(line) <= WIDTH or str(ROOT) in line for line in lines), lines


def test_one_wrong_value_of_any_knob_is_told_in_three_short_lines():
    for config_class in (PretrainConfig, FinetuneConfig):
        for section, keys in to_dict(config_class()).items():
            for key in keys:
                try:
                    parse_command_line(config_class, [f"{section}.{key}=[-1, x]"], "a test")
                except UserError as error:
                    lines = fitted(str(error), label="error: ").splitlines()
                    assert len(lines) <= 3 and all(len(line) <= WIDTH for line in lines), lines
