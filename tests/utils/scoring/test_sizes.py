"""What weights are scored at: the command line's sizes before the file's, these before the recipe's."""

import pytest

from configs.schema import FinetuneConfig
from utils.config import keys_given, parse_command_line
from utils.errors import UserError
from utils.scoring.sizes import settle_sizes

SAVED = {"data": {"val_resize_size": [64], "val_crop_size": 64, "interpolation": "bilinear"}}
PRETRAINING = {"filter": {}, "data": {"train_crop_size": 64, "interpolation": "bilinear"}}


def settled(file_config, *words, task="--eval-only"):
    words = [task, "--weights", "w.pt", *words]
    config = parse_command_line(FinetuneConfig, words, "a test")
    return settle_sizes(config, file_config, keys_given(FinetuneConfig, words))


def test_the_files_sizes_go_before_a_recipe_and_the_command_lines_before_both(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {val_resize_size: [300], val_crop_size: 256, interpolation: bicubic}")
    words = ["--config", str(recipe)]
    config, line = settled(SAVED, *words)
    data = config.data
    assert (data.val_resize_size, data.val_crop_size, data.interpolation) == ((64,), 64, "bilinear")
    assert line.count("the file's") == 3
    config, line = settled(SAVED, *words, "--val-resize-size", "72", "80", "data.interpolation=bicubic")
    data = config.data
    assert (data.val_resize_size, data.val_crop_size, data.interpolation) == ((72, 80), 64, "bicubic")
    assert "val_resize_size [72, 80], the command line's; data.val_crop_size 64, the file's" in line
    config, line = settled(None, *words)
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
        settled(SAVED, *words)


def test_sizes_that_go_with_the_file_only_are_allowed():
    """64 is below the default crop of 224, but not below the file's."""
    assert settled(SAVED, "--val-resize-size", "64")[0].data.val_crop_size == 64


def test_a_probe_sees_images_as_the_pretraining_did(tmp_path):
    config, line = settled(PRETRAINING, task="--probe")
    data = config.data
    assert (data.val_resize_size, data.val_crop_size, data.interpolation) == ((73,), 64, "bilinear")
    assert line.count("the file's") == 3
    config, _ = settled(PRETRAINING, "--val-resize-size", "64", task="--probe")
    assert config.data.val_resize_size == (64,)


def test_a_probe_takes_the_first_size_of_a_finetuning_and_refuses_two_that_are_asked_for():
    of_two_sizes = {"data": SAVED["data"] | {"val_resize_size": [80, 72]}}
    assert settled(of_two_sizes, task="--probe")[0].data.val_resize_size == (80,)
    assert settled(of_two_sizes)[0].data.val_resize_size == (80, 72)
    with pytest.raises(UserError, match=r"val_resize_size = \[64, 72\] .*run.probe takes one size"):
        settled(of_two_sizes, "--val-resize-size", "64", "72", task="--probe")
