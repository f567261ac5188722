"""Scores over a part of the classes: which outputs count, and that the others are ruled out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.classifier import ChosenOutputs
from tests.support.helpers import image_folder
from utils.errors import UserError
from utils.scoring.classes import present_classes, sorted_as_text

NAMES = ["zebra", "ant", "bee", "cat"]  # of the outputs, not sorted


def test_folders_are_found_by_name_in_the_order_of_the_outputs(tmp_path):
    image_folder(tmp_path, ("ant", "cat", "zebra"), per_class=1)
    present = present_classes(str(tmp_path), "w.pt", NAMES, outputs=4)
    assert present.folders == ["zebra", "ant", "cat"] and present.outputs == [0, 1, 3]
    assert "3 of 4 classes (by name)" in present.line("val", 4)


@pytest.mark.parametrize("names", [None, NAMES * 3])
def test_folders_that_are_numbers_are_outputs_as_in_imagenet_v2(names, tmp_path):
    image_folder(tmp_path, ("0", "10", "2"), per_class=1)
    present = present_classes(str(tmp_path), "w.pt", names, outputs=12)
    assert present.folders == ["0", "2", "10"] and present.outputs == [0, 2, 10]
    assert "folders are numbers of outputs" in present.line("val", 12)


def test_classes_that_are_called_by_numbers_are_found_by_name(tmp_path):
    image_folder(tmp_path, ("10", "2"), per_class=1)
    present = present_classes(str(tmp_path), "w.pt", ["1", "10", "2"], outputs=3)
    assert present.folders == ["10", "2"] and present.outputs == [1, 2]


def test_numbers_and_names_are_not_mixed(tmp_path):
    """Classes 1 to 10, and folders that somebody has counted from 0."""
    image_folder(tmp_path, ("0", "1", "2"), per_class=1)
    names = sorted(str(number) for number in range(1, 11))
    with pytest.raises(UserError, match=r"1 of its 3 class folders are no classes of w\.pt: 0"):
        present_classes(str(tmp_path), "w.pt", names, outputs=10)


@pytest.mark.parametrize(("folder", "names"), [("ant", NAMES), ("0", NAMES), ("0", None)])
def test_one_class_is_no_set_to_score(folder, names, tmp_path):
    image_folder(tmp_path, (folder,), per_class=1)
    with pytest.raises(UserError, match=f"has the one class folder {folder}; .*two or more"):
        present_classes(str(tmp_path), "w.pt", names, outputs=4)


@pytest.mark.parametrize("folders", [("ant", "owl"), ("0", "ant"), ("0", "4"), ("00", "01")])
def test_folders_of_no_class_are_refused(folders, tmp_path):
    image_folder(tmp_path, folders, per_class=1)
    with pytest.raises(UserError, match=r"class folders are no classes of w\.pt"):
        present_classes(str(tmp_path), "w.pt", NAMES, outputs=4)


def test_without_names_a_part_cannot_be_found_and_the_whole_is_sorted(tmp_path):
    image_folder(tmp_path, ("ant", "bee"), per_class=1)
    with pytest.raises(UserError, match=r"w\.pt: names no classes(.|\n)*data\.class_names"):
        present_classes(str(tmp_path), "w.pt", None, outputs=4)
    present = present_classes(str(tmp_path), "w.pt", None, outputs=2)
    assert present.outputs == [0, 1] and "2 of 2 classes (in sorted order)" in present.line("val", 2)


def test_the_best_of_the_present_outputs_is_that_of_masked_logits():
    torch.manual_seed(0)
    network, outputs = nn.Linear(8, 12), [7, 2, 11]
    images = torch.randn(200, 8)
    masked = torch.full((200, 12), -torch.inf)
    masked[:, outputs] = network(images)[:, outputs]
    chosen = ChosenOutputs(network, outputs)(images)
    assert chosen.shape == (200, 3)
    assert torch.equal(torch.tensor(outputs)[chosen.argmax(1)], masked.argmax(1))
    torch.testing.assert_close(chosen.log_softmax(1), masked.log_softmax(1)[:, outputs])
    assert not torch.equal(masked.argmax(1), network(images).argmax(1))  # else the test could not fail


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("0", "1", "10", "2"), True),
        (("0", "1", "2"), False),
        (("0", "10", "2", "a"), False),
        (("0", "10", "2", "99"), False),
    ],
)
def test_numbers_whose_text_sorts_otherwise_are_seen(folders, expected, tmp_path):
    image_folder(tmp_path, folders, per_class=1)
    assert sorted_as_text(str(tmp_path), outputs=12) == expected
