"""Folders of any kind, as pretraining takes them: nothing is left out without a word, and the old order stays."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from data import folder as folder_module
from data.folder import ImageFolder, check_labels
from data.listing import Listing, Root
from data.parts import images_beside_train, training_root
from tests.data.test_folder import touch
from tests.support.helpers import image_folder
from tests.support.launch import PRETRAIN, in_one_line, pretrain, small_run
from utils.errors import UserError


def names_of(root: str, **more) -> list[str]:
    folder = ImageFolder(root, labelled=False, **more)
    return [os.path.relpath(folder.path(index), root) for index in range(len(folder))]


@pytest.mark.parametrize(
    "names",
    [
        ["2.png", "10.png", "a.JPG"],
        ["album/1.png", "album/deep/er/2.png", "zoo/3.png"],
        ["zz.png", "album/1.png", "album/deep/2.png"],  # beside the folders, where labels would leave it out
        ["only.png"],
        ["Meine Fotos/Größe 1.png", "日本 語/1.png", "🐝.png", " leading.png"],
    ],
    ids=["flat", "nested", "both", "one image", "Unicode"],
)
def test_every_image_of_any_folder_is_used(tmp_path, names):
    folder = ImageFolder(touch(tmp_path, *names), labelled=False)
    assert len(folder) == len(names) and folder.left_out == {}
    assert set(names_of(str(tmp_path))) == set(names)
    beside = sum("/" not in name for name in names)
    assert all("/" not in name for name in names_of(str(tmp_path))[:beside])


def test_class_folders_alone_give_the_order_that_labels_give(tmp_path):
    root = touch(tmp_path, "a/2.png", "a/10.png", "a-b/1.png", "a/x/3.png", "b/notes.txt", "b/1.png", ".hidden/1.png")
    for more in ({}, {"label_fraction": 0.5}, {"holdout_fraction": 0.1}):
        labelled, plain = ImageFolder(root, **more), ImageFolder(root, labelled=False, **more)
        assert plain.fingerprint() == labelled.fingerprint() and plain.classes == labelled.classes
        assert [plain.path(i) for i in range(len(plain))] == [labelled.path(i) for i in range(len(labelled))]
        assert plain.left_out == labelled.left_out and plain.labels.tolist() == labelled.labels.tolist()
        check_labels(plain)  # as a probe beside a pretraining asks for them


def test_where_there_are_no_labels_they_are_asked_for_in_vain(tmp_path):
    root = touch(tmp_path / "mine", "1.png", "a/1.png", "b/1.png")
    folder = ImageFolder(root, labelled=False)
    assert folder.classes == [] and folder.labels.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="mine: not all of its images lie in class folders, so they have no labels"):
        check_labels(folder)
    os.remove(f"{root}/1.png")
    os.remove(f"{root}/b/1.png")
    with pytest.raises(UserError, match=r"1 of its 2 classes have no image \(b\); add one of each"):
        check_labels(ImageFolder(root, labelled=False))


def test_what_classes_may_not_be_folders_of_images_may(tmp_path):
    """Empty ones, such that look alike, and such that are held out whole."""
    root = touch(tmp_path, "ant/1.png", "ant /2.png", "films/1.mov", "bee/3.png", "bee/4.png")
    assert set(names_of(root)) == {"ant/1.png", "ant /2.png", "bee/3.png", "bee/4.png"}
    left = [names_of(root, holdout_fraction=tenth / 10) for tenth in (3, 5, 7)]
    assert all(left) and set(left[2]) <= set(left[1]) <= set(left[0])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [([], "no such image folder"), (["notes.txt", "a/b.txt"], "neither it nor a folder in it has an image")],
)
def test_a_folder_without_images_is_refused(tmp_path, names, complaint):
    touch(tmp_path, *[f"root/{name}" for name in names])
    with pytest.raises(UserError, match=complaint):
        ImageFolder(str(tmp_path / "root"), labelled=False)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/nowhere")])
def test_what_cannot_be_read_beside_the_folders_is_refused(tmp_path, make):
    touch(tmp_path, "1.png")
    make(tmp_path / "2.png")
    with pytest.raises(UserError, match=r"2\.png: (named like an image, but a pipe|a link to /nowhere)"):
        ImageFolder(str(tmp_path), labelled=False)


def test_images_are_looked_for_in_train_if_there_is_one(tmp_path):
    root = tmp_path / "mine"
    touch(root, "1.png")
    assert training_root(str(root)) == str(root)
    touch(root, "val/1.png")
    with pytest.raises(UserError, match=r"mine: has val/ and no train/; put the images to train on into .*mine/train/"):
        training_root(str(root))
    touch(root, "train/1.png")
    assert training_root(str(root)) == f"{root}/train"
    with pytest.raises(UserError, match=r"nowhere/train: no such image folder .*scripts/split\.py makes both"):
        ImageFolder(training_root(str(tmp_path / "nowhere")), labelled=False)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["holiday/2.jpg", "3.jpg"], "beside it lie 1 image and images in holiday. Move into"),
        (["a/deep/er/2.JPG"], "beside it lie images in a. Move into"),
        (["3.jpg", "4.jpg", ".hidden/1.jpg"], "beside it lie 2 images. Move into"),
        ([f"{name}/1.jpg" for name in "abcde"], "beside it lie images in a, b, c and 2 more. Move into"),
        (["val/1.jpg", "Test/1.jpg", "labels/a.txt", "empty/deep/a.csv", "notes.txt", ".trash/1.jpg"], None),
    ],
)
def test_images_beside_train_are_told(tmp_path, names, words):
    root = touch(tmp_path / "photos", "train/1.jpg", *names)
    warning = images_beside_train(root, training_root(root))
    if words is None:
        assert warning is None
    else:
        assert warning.startswith(f"warning: {root}: only {root}/train is read; {words}")


def test_nothing_lies_beside_what_is_read_without_a_train(tmp_path):
    root = touch(tmp_path / "photos", "train/1.jpg", "2.jpg")
    assert images_beside_train(f"{root}/train", training_root(f"{root}/train")) is None
    assert images_beside_train(root, "names.txt") is None  # a list of files elsewhere
    root = touch(tmp_path / "mine", "1.jpg", "a/2.jpg")
    assert images_beside_train(root, training_root(root)) is None


def test_a_long_search_for_images_beside_train_is_not_made(tmp_path):
    root = touch(tmp_path, "train/1.jpg", *[f"annotations/{number:03}/a.xml" for number in range(40)])
    assert images_beside_train(root, training_root(root)) is None
    touch(tmp_path, "annotations/000/deep/1.jpg")
    reads = []
    real = os.scandir
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", lambda path: reads.append(path) or real(path))
        images_beside_train(root, training_root(root))
    assert len(reads) == 1 + 20  # the first one is that of the data set


def test_a_list_may_name_files_anywhere(tmp_path):
    root = touch(tmp_path / "mine", "1.png", "a/2.png")
    touch(tmp_path / "other disk", "3.png", "b/4.png")
    elsewhere = [str(tmp_path / "other disk/3.png"), "../other disk/b/4.png", str(tmp_path / "mine/a/2.png"), "1.png"]
    path = tmp_path / "names.txt"
    path.write_text("\r\n".join(elsewhere))
    folder = ImageFolder(root, train_list=str(path), labelled=False)
    found = {os.path.realpath(folder.path(index)) for index in range(len(folder))}
    assert found == {os.path.realpath(os.path.join(root, name)) for name in elsewhere} and len(folder) == 4
    assert folder.part_line().startswith(f"used of {path}: 4 of 4 images") and folder.source == str(path)
    path.write_text("\n".join([*elsewhere, "/no/5.png", str(tmp_path / "other disk/6.png")]))
    assert ImageFolder(root, labelled=False).source == root
    with pytest.raises(UserError, match=r"2 of its 6 names are no image in .*: /no/5\.png, .*/6\.png"):
        ImageFolder(root, train_list=str(path), labelled=False)
    path.write_text("\n".join([str(tmp_path / "mine/a/2.png"), "1.png"]))
    assert names_of(root, train_list=str(path)) == ["1.png", "a/2.png"]


def test_a_list_of_files_elsewhere_takes_images_alone(tmp_path):
    root = touch(tmp_path / "photos/train", "1.png")
    touch(tmp_path / "x", "a.jpg", "b.JPEG", "notes.txt", "sub/c.png", "thumbs.png/d.png", "noending")
    (tmp_path / "x/link.jpg").symlink_to("a.jpg")
    (tmp_path / "x/broken.jpg").symlink_to("nowhere")
    images = ["a.jpg", "b.JPEG", "link.jpg", "sub/c.png", "thumbs.png/d.png"]
    others = ["notes.txt", "sub", "thumbs.png", "noending", "broken.jpg"]
    path = tmp_path / "names.txt"
    path.write_text("\n".join(str(tmp_path / "x" / name) for name in images))
    assert len(ImageFolder(root, train_list=str(path), labelled=False)) == len(images)
    for name in others:
        path.write_text("\n".join(str(tmp_path / "x" / line) for line in [*images, name]))
        with pytest.raises(UserError, match=rf"1 of its 6 names are no image in .*/x/{name}; is it the list of"):
            ImageFolder(root, train_list=str(path), labelled=False)


@pytest.mark.process
def test_a_pretraining_of_a_flat_folder_says_how_it_read_it(tmp_path, capsys):
    image_folder(tmp_path / "made", ["x"], per_class=9)
    images = tmp_path / "made/x"
    (images / "notes.txt").touch()
    assert pretrain(small_run(PRETRAIN, images, tmp_path / "run")) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert f"images train 9 from {images}; no classes used" in printed
    assert f"left out of {images}: 1 other endings (notes.txt)" in printed


@pytest.mark.process
def test_three_million_names(monkeypatch):
    """Made up, in memory: 1 million beside the folders, 2 million in 500 of them."""
    beside = [f"IMG_{number:07d}.JPG".encode() for number in range(10**6)]
    folders = [f"day {number:03d}" for number in range(500)]
    names_of_class = []
    for name in folders:
        names_of_class.append("\0".join(f"{name}/IMG_{number:04d}.JPG" for number in range(4000)).encode())
    left_out = Root().left_out
    left_out.counts, left_out.examples = {"images beside the class folders": 10**6}, {}
    left_out.examples["images beside the class folders"] = []
    root = Root(classes=folders, images=beside, left_out=left_out)
    monkeypatch.setattr(folder_module, "list_root", lambda root_path: root)
    monkeypatch.setattr(folder_module, "image_files", lambda root_path, classes: Listing(list(names_of_class)))
    tracemalloc.start()
    folder = ImageFolder("photos", labelled=False)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(folder) == 3 * 10**6 and folder.left_out == {}
    assert folder.path(0) == "photos/IMG_0000000.JPG" and folder.path(10**6) == "photos/day 000/IMG_0000.JPG"
    assert folder.path(3 * 10**6 - 1) == "photos/day 499/IMG_3999.JPG"
    assert kept < 110e6 and most < 500e6  # bytes: the names, an int64 and an int32 for each; and while they are joined
