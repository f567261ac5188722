"""One warning gives the scaled learning rate if the batch size is not the one that the recipe's rate was set for."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.schema import FinetuneConfig, PretrainConfig
from tests.support.launch import ROOT
from utils.config import parse_command_line
from utils.learning_rate_advice import unscaled_rate_warning

OWN = ["--config", str(ROOT / "configs/own_pretrain.yaml")]  # 128 images, 7.5e-5


def warning(words: list[str], config_class: type = PretrainConfig) -> str | None:
    return unscaled_rate_warning(parse_command_line(config_class, words, "a test"), words)


@pytest.mark.parametrize("words", [["--batch-size", "32"], ["train.batch_size=32"]])
def test_another_batch_size_with_the_old_rate_is_told_with_the_scaled_one(words):
    expected = f"warning: train.batch_size = 32: {OWN[1]} has 128, for which its learning rate 7.5e-05 was set; "
    assert warning([*OWN, *words]) == expected + "scaled linearly that is optimizer.learning_rate=1.875e-05"


def test_the_recipe_of_a_base_and_of_a_default_counts(tmp_path: Path):
    derived = tmp_path / "mine.yaml"
    derived.write_text(f"base: {ROOT}/configs/finetune_resnet50_bce.yaml\ndata:\n  workers: 2\n")
    words = ["--config", str(derived), "--val-resize-size", "235", "--batch-size", "512"]
    assert "has 2048" in warning(words, FinetuneConfig)
    derived.write_text("optimizer:\n  learning_rate: 0.001\n")
    assert warning(["--config", str(derived), "--batch-size", "4096"]).endswith("optimizer.learning_rate=0.002")


@pytest.mark.parametrize(
    "words",
    [
        OWN,
        [*OWN, "--batch-size", "128"],
        [*OWN, "--batch-size", "32", "optimizer.learning_rate=1.875e-5"],
        [*OWN, "--batch-size", "32", "optimizer.learning_rate=7.5e-5"],  # on purpose
        ["--batch-size", "32"],  # no recipe
    ],
)
def test_all_else_is_not_told(words):
    assert warning(words) is None
