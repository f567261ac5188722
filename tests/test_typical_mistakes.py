"""Ten typical mistakes print what the table in tests/README.md says, in at most three lines of 100 characters."""

from __future__ import annotations

import re
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
MISTAKES = {  # what was done, as in the table -> (entry, words)
    "`python pretrain.py`": (pretrain, []),
    "`pretrain.py --lr 0.1`": (pretrain, ["--lr", "0.1"]),
    "`pretrain.py --config configs/finetune_resnet50_bce.yaml`": (
        pretrain, ["--config", str(ROOT / "configs/finetune_resnet50_bce.yaml")]),
    "`--data-path imagnet`": (pretrain, [*PRETRAIN, "--data-path", "imagnet"]),
    "a class of train is missing in val": (finetune, [*FINETUNE, "--data-path", "lacking", *SIZE[2:], *OUT]),
    "a batch larger than the data": (
        pretrain, overriding([*PRETRAIN, "--data-path", "images", *OUT], "train.batch_size=64")),
    "`data.mean=[123.7, 116.3, 103.5]`": (finetune, [*FINETUNE, *SIZE, *OUT, "data.mean=[123.7, 116.3, 103.5]"]),
    "a pretrained network evaluated": (finetune, ["--eval-only", "--weights", "pretrained.pt", *SIZE[:2]]),
    "the folder of an earlier run used again": (pretrain, [*PRETRAIN, *SIZE, "--output-dir", "runs/old"]),
    "resumed with another learning rate": (
        pretrain, [*PRETRAIN, *SIZE, "--output-dir", "runs/new", "--resume", "runs/old/checkpoints/step_00000002.pt"]),
}  # fmt: skip


def table() -> dict[str, str]:
    """What was done -> what is printed, as tests/README.md says."""
    section = (ROOT / "tests/README.md").read_text(encoding="utf-8").partition("## Ten typical mistakes")[2]
    rows = {}
    for line in section.partition("\n## ")[0].splitlines():
        if line.startswith("|"):
            done, printed = line.strip("|").split("|")
            rows[done.strip()] = printed.strip(" `")
    assert rows.pop("what was done") == "what is printed"
    del rows["---"]
    return rows


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


def test_the_table_has_these_mistakes():
    assert list(table()) == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_typical_mistake_is_told_in_three_short_lines_as_the_table_says(mistake, place, monkeypatch):
    monkeypatch.chdir(place)
    entry, words = MISTAKES[mistake]
    lines = shown(entry, words)
    printed = in_one_line(" ".join(lines)).replace(f"{ROOT}/", "")
    expected = ".*".join(re.escape(part) for part in table()[mistake].split("…"))
    assert re.fullmatch(expected, printed), printed
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
