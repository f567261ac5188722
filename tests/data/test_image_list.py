"""Lists of image names: what is read, what is used, and what is refused with the names that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data.folder import ImageFolder, check_labels
from data.image_list import ImageList, read_image_list
from tests.support.helpers import data_set, image_folder
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, pretrain, small_run
from utils.errors import UserError


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "train"
    image_folder(root, ["ant", "bee"], per_class=4, size=(8, 8))
    for name in ("ant/deep/ant_7.png", "bee/bee_7.png", "bee/größe 1.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    return str(root)


def made_names(*classes: str, images: int) -> list[str]:
    """ant/0.png, ant/1.png, …"""
    names = []
    for name in classes:
        names += [f"{name}/{number}.png" for number in range(images)]
    return names


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def used(train: str, path: str, **more) -> list[str]:
    folder = ImageFolder(train, train_list=path, **more)
    return [os.path.relpath(folder.path(index), train) for index in range(len(folder))]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"ant/1.png\nbee/0.png\n", ["ant/1.png", "bee/0.png"]),
        (b"bee/0.png\nant/1.png", ["ant/1.png", "bee/0.png"]),  # the order of the folder, not of the list
        (b"ant_7.png\nbee_7.png\n", ["ant/deep/ant_7.png", "bee/bee_7.png"]),  # as SimCLR's lists
        (b"\xef\xbb\xbfant/1.png\r\n\r\nbee/0.png\r\n  \r\n", ["ant/1.png", "bee/0.png"]),
        (b" ant/1.png \n./bee//0.png\n", ["ant/1.png", "bee/0.png"]),
        ("ant/1.png\ngröße 1.png\n".encode(), ["ant/1.png", "bee/größe 1.png"]),
    ],
)
def test_what_a_list_names_is_used_in_the_order_of_the_folder(train, tmp_path, content, names):
    path = write(tmp_path / "names.txt", content)
    assert used(train, path) == names
    folder = ImageFolder(train, train_list=path)
    classes = [folder.classes[label] for label in folder.labels]
    assert classes == [name.split("/")[0] for name in names]


def test_a_list_of_all_images_is_no_other_data_set(train, tmp_path):
    whole = ImageFolder(train)
    names = [os.path.relpath(whole.path(index), train) for index in range(len(whole))]
    path = write(tmp_path / "names.txt", "\n".join(reversed(names)).encode())
    assert ImageFolder(train, train_list=path).fingerprint() == whole.fingerprint()


def test_doubled_names_are_used_once_and_counted(train, tmp_path):
    path = write(tmp_path / "names.txt", b"ant/1.png\nbee/0.png\nant/1.png\n./ant/1.png\n")
    assert used(train, path) == ["ant/1.png", "bee/0.png"]
    line = ImageFolder(train, train_list=path).part_line()
    assert line.endswith(f"2 of 11 images, 1 a class, data.train_list = {path} (2 lines repeat a name)")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"cannot be read \(No such file"),
        (b"", "names no image; give a text file with the name of one image a line"),
        (b"\r\n  \n", "names no image"),
        (b"ant/1.png\n\xff\xfe.png\n", r"is not text in UTF-8 \(byte 10\)"),
        (b"ant/1.png\nant/9.png\ncow_1.png\n", "2 of its 3 names are no image in .*: ant/9.png, cow_1.png; is it"),
        (b"/etc/passwd\n../val/ant/1.png\n", "2 of its 2 names are no image"),
        (
            b"".join(b"%04d.png\n" % n for n in range(1500, 3000)),
            "1,500 of its 1,500 .*: 1500.png, 1501.png, 1502.png;",
        ),
        (b"1.png\n", r"1\.png is the name of several images in .*; write it with its folder"),
        (b"bee_7.png\nbee/bee_7.png\n", "names an image with and without its folder"),
        (b"a\x1b[2J\n", r"names are no image in .*: a\\x1b\[2J;"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_the_cause(train, tmp_path, content, complaint):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        ImageFolder(train, train_list=str(path))
    assert str(caught.value).startswith(f"data.train_list = {path}: ")


def test_a_folder_in_place_of_a_list_is_refused(train, tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_image_list(str(tmp_path), train)


def test_hold_out_and_share_work_on_what_is_listed(tmp_path):
    root = str(image_folder(tmp_path / "train", ["ant", "bee"], per_class=60, size=(8, 8)))
    names = made_names("ant", "bee", images=40)
    path = write(tmp_path / "names.txt", "\n".join(names).encode())
    tenth = used(root, path, label_fraction=0.1)
    assert len(tenth) == 8 and set(tenth) <= set(names)
    assert set(tenth) <= set(used(root, path, label_fraction=0.3))
    held_out = ImageFolder(root, holdout_fraction=0.2, held_out=True)
    held_out_names = {os.path.relpath(held_out.path(index), root) for index in range(len(held_out))}
    assert set(used(root, path, holdout_fraction=0.2)) == set(names) - held_out_names
    assert used(root, path, holdout_fraction=0.2, label_fraction=0.1) == tenth


def test_a_class_that_is_not_listed_is_refused_where_there_are_labels_to_learn(train, tmp_path):
    path = write(tmp_path / "names.txt", b"ant/1.png\nant/2.png\n")
    folder = ImageFolder(train, train_list=path)
    assert len(folder) == 2
    with pytest.raises(UserError, match=r"1 of its 2 classes have no image in the list \(bee\)"):
        check_labels(folder)


@pytest.mark.process
def test_both_entries_train_on_what_is_listed(tmp_path, capsys):
    images = data_set(tmp_path / "images")
    names = made_names("ant", "bee", "cat", images=4)
    path = write(tmp_path / "names.txt", "\r\n".join(names).encode())
    for entry, run in ((PRETRAIN, pretrain), (FINETUNE, finetune)):
        words = small_run(entry, images, tmp_path / run.__name__, f"data.train_list={path}")
        assert run(words) == 0
        printed = in_one_line(capsys.readouterr().out)
        assert "12 of 27 images, 4 a class, data.train_list = " in printed and "images train 12" in printed


def test_a_long_list_is_chosen_from_a_long_listing():
    """Names alone: 128,000 of which every tenth is listed."""
    names_of_class = []
    for label in range(100):
        names = [f"n{label:08d}/n{label:08d}_{number}.JPEG" for number in range(1280)]
        names_of_class.append("\0".join(names).encode())
    listed = set()
    for label in range(100):
        listed |= {f"n{label:08d}_{number}.JPEG".encode() for number in range(0, 1280, 10)}
    chosen = ImageList("names.txt", "imagenet", listed, 0).choose(names_of_class)
    counts = np.array([names.count(b"\0") + 1 for names in chosen])
    assert counts.min() == counts.max() == 128
    assert len(chosen) == 100 and chosen[99].split(b"\0")[1] == b"n00000099/n00000099_10.JPEG"
