"""The index of a folder of images: which files, in which order, of which class."""

import os
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from data.folder import EXTENSIONS, ImageFolder
from tests.support.helpers import image_folder
from utils.errors import UserError


def touch(root, *names):
    """Empty files: the index does not look into them."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    return str(root)


def listed(folder):
    """(path relative to the root, class name) of every image."""
    return [
        (os.path.relpath(folder.path(i), folder.root), folder.classes[folder.labels[i]]) for i in range(len(folder))
    ]


def test_images_in_order_with_labels(tmp_path):
    folder = ImageFolder(str(image_folder(tmp_path, ("bee", "ant"), per_class=3)))
    assert folder.classes == ["ant", "bee"]
    assert len(folder) == 6
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [folder.path(i) for i in range(6)] == [f"{tmp_path}/{c}/{n}.png" for c in ("ant", "bee") for n in range(3)]
    assert Image.open(folder.path(5)).size == (40, 36)


def test_nested_folders_belong_to_their_class(tmp_path):
    touch(tmp_path, "a/z.png", "a/y/1.png", "a/y/x/2.png", "b/1.png")
    assert listed(ImageFolder(str(tmp_path))) == [
        ("a/y/1.png", "a"), ("a/y/x/2.png", "a"), ("a/z.png", "a"), ("b/1.png", "b"),
    ]  # fmt: skip


def test_links_to_class_folders_and_images_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "1.png", "deep/2.png")
    touch(tmp_path / "root", "own/3.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/own/4.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "root/own/inner").symlink_to(tmp_path / "elsewhere/deep")
    assert listed(ImageFolder(str(tmp_path / "root"))) == [
        ("linked/1.png", "linked"), ("linked/deep/2.png", "linked"),
        ("own/3.png", "own"), ("own/4.png", "own"), ("own/inner/2.png", "own"),
    ]  # fmt: skip


def test_hidden_and_other_files_are_left_out(tmp_path):
    touch(tmp_path, "a/1.JPEG", "a/._1.JPEG", "a/.2.png", "a/notes.txt", "a/x.png.part", "a/png", "stray.png")
    touch(tmp_path, ".git/1.png", "b/2.Tiff")
    assert [name for name, _ in listed(ImageFolder(str(tmp_path)))] == ["a/1.JPEG", "b/2.Tiff"]


def test_every_extension_in_upper_and_lower_case(tmp_path):
    names = sorted(f"a/{n}{end}" for n, ends in enumerate(EXTENSIONS) for end in (ends, ends.upper()))
    assert [name for name, _ in listed(ImageFolder(touch(tmp_path, *names)))] == names
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"} <= set(EXTENSIONS)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse names that are not UTF-8")
def test_names_in_any_encoding(tmp_path):
    touch(tmp_path, "Käfer/größe.png", "Käfer/日本 語.png", b"latin\xe4/\xff\xfe.jpg", "z/🐝\n.png")
    folder = ImageFolder(str(tmp_path))
    assert len(folder) == 4
    paths = [folder.path(i) for i in range(4)]
    assert all(os.path.isfile(path) for path in paths)
    assert {os.fsencode(os.path.basename(path)) for path in paths} == {
        "größe.png".encode(), "日本 語.png".encode(), b"\xff\xfe.jpg", "🐝\n.png".encode(),
    }  # fmt: skip


def test_class_order_that_is_given(tmp_path):
    folder = ImageFolder(str(image_folder(tmp_path, ("ant", "bee", "cat"), per_class=2)), ["cat", "ant", "bee"])
    assert folder.classes == ["cat", "ant", "bee"]
    assert listed(folder)[0] == ("cat/0.png", "cat")
    assert all(name.startswith(label + "/") for name, label in listed(folder))


@pytest.mark.parametrize(
    ("files", "classes", "complaints"),
    [
        (None, None, ["root", "no such image folder", "data.data_path"]),
        (["stray.png"], None, ["root", "no class folders"]),
        ([".hidden/1.png"], None, ["root", "no class folders"]),
        (["a/1.png", "b/notes.txt"], None, ["root/b", "no image", ".jpeg"]),
        (["a/1.png"], ["a", "b", "c"], ["root", "missing b, c; unexpected none"]),
        (["a/1.png", "z/1.png"], ["a"], ["root", "missing none; unexpected z"]),
        ([f"{n}/1.png" for n in range(9)], ["0"], ["unexpected 1, 2, 3, 4, 5 and 3 more"]),
    ],
)
def test_errors_name_folder_and_cause(tmp_path, files, classes, complaints):
    if files is not None:
        touch(tmp_path / "root", *files)
    with pytest.raises(UserError) as caught:
        ImageFolder(str(tmp_path / "root"), classes)
    assert all(complaint in str(caught.value) for complaint in complaints), caught.value


def test_a_file_as_root_is_no_image_folder(tmp_path):
    (tmp_path / "archive.tar").touch()
    with pytest.raises(UserError, match=r"archive\.tar: no such image folder"):
        ImageFolder(str(tmp_path / "archive.tar"))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_torchvision_on_a_random_tree(tmp_path, seed):
    draw = np.random.default_rng(seed)
    for name in draw.choice([f"n{n:02d}" for n in range(40)], 6, replace=False):
        subfolders = [".", *draw.choice(["x", "x/y", "A", "z-1"], 2, replace=False)]
        ends = [".jpg", ".JPEG", ".png", ".txt", ".webp", ".bmp"]
        names = [f"{name}/{draw.choice(subfolders)}/{draw.integers(1000)}{draw.choice(ends)}" for _ in range(12)]
        touch(tmp_path, f"{name}/always.png", *names)
    ours, theirs = ImageFolder(str(tmp_path)), TorchvisionFolder(str(tmp_path))
    assert ours.classes == theirs.classes
    samples = {(os.path.normpath(ours.path(i)), int(ours.labels[i])) for i in range(len(ours))}
    assert len(samples) == len(ours)
    assert samples == {(os.path.normpath(path), label) for path, label in theirs.samples}
    assert ours.labels.tolist() == [label for _, label in theirs.samples]
