"""What a classifier answers: its outputs, and their names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from configs.schema import FinetuneConfig
from models.weights import WeightsFile
from tests.support.helpers import image_folder
from utils.config import parse_command_line
from utils.errors import UserError
from utils.scoring.classifier import names_in, outputs_of, settle_classes

FILE = WeightsFile("w.pt", "a layout", {"fc.bias": torch.zeros(3)})


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
