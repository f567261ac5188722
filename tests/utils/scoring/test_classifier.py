"""What a classifier is evaluated with: the command line's sizes before the file's, these before the recipe's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from configs.schema import FinetuneConfig
from models.weights import WeightsFile
from tests.support.helpers import image_folder
from utils.config import keys_given, parse_command_line
from utils.errors import UserError
from utils.scoring.classifier import names_in, outputs_of, settle_classes, settle_sizes

SAVED = {"data": {"val_resize_size": [64], "val_crop_size": 64, "interpolation": "bilinear"}}
FILE = WeightsFile("w.pt", "a layout", {"fc.bias": torch.zeros(3)})


def settled(file, *words):
    words = ["--eval-only", "--weights", "w.pt", *words]
    config = parse_command_line(FinetuneConfig, words, "a test")
    return settle_sizes(config, file, keys_given(FinetuneConfig, words))


def test_the_files_sizes_go_before_a_recipe_and_the_command_lines_before_both(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {val_resize_size: [300], val_crop_size: 256, interpolation: bicubic}")
    words = ["--config", str(recipe)]
    own = replace(FILE, config=SAVED)
    config, line = settled(own, *words)
    data = config.data
    assert (data.val_resize_size, data.val_crop_size, data.interpolation) == ((64,), 64, "bilinear")
    assert line.count("the file's") == 3
    config, line = settled(own, *words, "--val-resize-size", "72", "80", "data.interpolation=bicubic")
    data = config.data
    assert (data.val_resize_size, data.val_crop_size, data.interpolation) == ((72, 80), 64, "bicubic")
    assert "val_resize_size [72, 80], the command line's; data.val_crop_size 64, the file's" in line
    config, line = settled(FILE, *words)
    assert (config.data.val_resize_size, config.data.val_crop_size) == ((300,), 256)
    assert line.count("the recipe's or the default") == 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--val-resize-size", "63"], r"val_resize_size = \[63\] \(the command line's\): must be at least .* = 64"),
        (["data.val_crop_size=65"], r"val_resize_size = \[64\] \(the file's\): must be at least .* = 65"),
        (["--frequency-sweep", "run.sweep_radii=[60]"], r"run.sweep_radii = \[60.0\] .*: all lie beyond .* 64 pixels"),
        (["--frequency-sweep", "--val-resize-size", "64", "72"], r"val_resize_size = .* takes one size"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_once_the_file_is_known(words, problem):
    with pytest.raises(UserError, match=problem):
        settled(replace(FILE, config=SAVED), *words)


def test_sizes_that_go_with_the_file_only_are_allowed():
    """64 is below the default crop of 224, but not below the file's."""
    assert settled(replace(FILE, config=SAVED), "--val-resize-size", "64")[0].data.val_crop_size == 64


def with_names(place):
    words = ["--eval-only", "--weights", "w.pt", f"data.class_names={place}"]
    return parse_command_line(FinetuneConfig, words, "a test")


def test_names_are_the_lines_of_a_file_or_the_folders_in_a_folder(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffzebra\r\n\r\n  b é \r\nant".encode())
    assert names_in(str(file)) == ["zebra", "b é", "ant"]
    image_folder(tmp_path / "train", ("zebra", "ant", "bee"), per_class=1)
    assert names_in(str(tmp_path / "train")) == ["ant", "bee", "zebra"]
    named = replace(FILE, classes=["x", "y", "z"])
    config = FinetuneConfig()
    assert settle_classes(config, named, 3) == (["x", "y", "z"], "the file's")
    assert settle_classes(config, FILE, 3)[0] is None
    assert settle_classes(with_names(file), named, 3)[0] == ["zebra", "b é", "ant"]
    with pytest.raises(UserError, match=r"w\.pt: has 4 outputs, but 3 classes are named \(data\.class_names"):
        settle_classes(with_names(file), FILE, 4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"ant\nbee\nant\n", "names ant twice"),
        (b"\xff\xfe\x00", r"cannot be read \(not UTF-8\)"),
        (None, "No such file"),
    ],
)
def test_a_list_of_names_that_cannot_be_used_is_refused(content, problem, tmp_path):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.class_names = .*names\.txt: .*{problem}"):
        names_in(str(tmp_path / "names.txt"))


@pytest.mark.parametrize("weights", [{}, {"fc.bias": torch.zeros(3, 2)}, {"fc.bias": torch.zeros(0)}])
def test_a_file_without_a_head_is_no_classifier(weights):
    assert outputs_of(FILE, "resnet18") == 3
    with pytest.raises(UserError, match=r"w\.pt: holds no classifier(.|\n)*Finetune from it with --weights first"):
        outputs_of(replace(FILE, weights=weights), "resnet18")
