"""The index of a folder of images: which files, in which order, of which class."""

import os
import socket
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from data.folder import ImageFolder, check_labels
from data.listing import EXTENSIONS
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
    touch(tmp_path / "third", "5.png")
    touch(tmp_path / "root", "own/3.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/own/4.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "root/own/inner").symlink_to(tmp_path / "third")
    assert listed(ImageFolder(str(tmp_path / "root"))) == [
        ("linked/1.png", "linked"), ("linked/deep/2.png", "linked"),
        ("own/3.png", "own"), ("own/4.png", "own"), ("own/inner/5.png", "own"),
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
        (["stray.png", "2.jpg"], None, ["root", "no class folders", "2 images beside", "<class>/"]),
        ([".hidden/1.png"], None, ["root", "no class folders"]),
        (["a/1.png", "b/notes.txt"], None, ["root/b", "no image", ".jpeg"]),
        (["a/1.png"], ["a", "b", "c"], ["root", "missing b, c; unexpected none"]),
        (["a/1.png", "z/1.png"], ["a"], ["root", "missing none; unexpected z"]),
        ([f"{n}/1.png" for n in range(9)], ["0"], ["unexpected 1, 2, 3 and 5 more"]),
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


# What lies in a data set besides images.


def test_hidden_things_are_left_out_at_any_depth_and_told(tmp_path):
    touch(tmp_path, "a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png", "a/deep/.Trash-1000/files/2.png", "b/2.png")
    touch(tmp_path, "a/deep/3.png", "b/.DS_Store", ".cache/4.png")
    folder = ImageFolder(str(tmp_path))
    assert [name for name, _ in listed(folder)] == ["a/1.png", "a/deep/3.png", "b/2.png"]
    assert folder.left_out == {"hidden": 4}


def test_what_is_left_out_is_counted_by_kind_and_said_on_one_line(tmp_path):
    touch(
        tmp_path, "a/1.png", "a/2.jfif", "a/notes.txt", "a/png", "beside.jpg", "labels.csv", "a/@eaDir/1.png/THUMB.jpg"
    )
    folder = ImageFolder(str(tmp_path))
    assert [name for name, _ in listed(folder)] == ["a/1.png"]
    assert folder.left_out == {
        "other endings": 4, "images beside the class folders": 1, "folders named like images": 1,
    }  # fmt: skip
    assert folder.left_out_line().startswith(f"left out of {tmp_path}: 1 folders named like images (a/@eaDir/1.png), ")
    assert "\n" not in folder.left_out_line()
    touch(tmp_path / "clean", "a/1.png")
    assert ImageFolder(str(tmp_path / "clean")).left_out_line() == ""


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "deep", "deep/er", "/"])
def test_links_in_a_circle_end_and_list_each_image_once(tmp_path, target):
    root = tmp_path / "data/train"
    touch(root, "a/1.png", "a/deep/er/2.png", "b/3.png")
    touch(tmp_path / "data/val", "a/4.png")
    before = listed(ImageFolder(str(root)))
    (root / "a/again").symlink_to(target)
    (root / "a/deep/again").symlink_to("../again")
    folder = ImageFolder(str(root))
    assert listed(folder) == before
    assert folder.left_out == {"links to folders that hold or are in the list": 2}


def test_a_folder_reached_twice_is_listed_by_its_own_path(tmp_path):
    """Whatever order the disk gives the entries in."""
    touch(tmp_path, "a/z/1.png")
    for name in ("0", "link", "zz"):
        (tmp_path / "a" / name).symlink_to("z")
    assert [name for name, _ in listed(ImageFolder(str(tmp_path)))] == ["a/z/1.png"]


@pytest.mark.parametrize(
    ("link", "target"), [("a/other", "../b"), ("a/deep/other", "../../b/deep"), ("c", "b"), ("c", ".")]
)
def test_a_folder_of_two_classes_is_an_error(tmp_path, link, target):
    touch(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png", "b/deep/4.png")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match="an image has one class; remove one of the two"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("link", ["c", "a/2.png", "a/deep", "a/notes.txt"])
@pytest.mark.parametrize("target", ["/not/mounted/there", "itself"])
def test_a_broken_link_is_an_error_that_names_it(tmp_path, link, target):
    touch(tmp_path, "a/1.png", "b/2.png")
    path = tmp_path / link
    path.symlink_to(path if target == "itself" else target)
    with pytest.raises(UserError, match=r"a link to .*, which cannot be reached; restore that or remove") as caught:
        ImageFolder(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")


def make_socket(path):
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_an_error_and_is_not_opened(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a/1.png")
    make(tmp_path / "a/2.png")
    with pytest.raises(UserError, match=r"a/2\.png: named like an image, but a pipe, socket or device; remove it"):
        ImageFolder(str(tmp_path))


def test_the_error_says_how_many_more_there_are(tmp_path):
    touch(tmp_path, "a/1.png")
    for number in range(3):
        (tmp_path / f"a/{number}.jpg").symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"a/0\.jpg: .*and 2 more problems, which scripts/check_data\.py lists"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("one", "other", "code_points"),
    [("caf\u00e9", "cafe\u0301", "[U+00E9]"), ("ant", "ant\u200b", "ant\\u200b [U+200B]"), ("ant", "ant ", "[U+0020]")],
)
def test_class_names_that_look_alike_are_told_apart(tmp_path, one, other, code_points):
    touch(tmp_path / "both", f"{one}/1.png", f"{other}/1.png")
    with pytest.raises(UserError, match="look alike but are two names") as caught:
        ImageFolder(str(tmp_path / "both"))
    assert code_points in str(caught.value)
    touch(tmp_path / "val", f"{other}/1.png")
    with pytest.raises(UserError, match="missing .*; unexpected ") as caught:
        ImageFolder(str(tmp_path / "val"), [one])
    assert code_points in str(caught.value)


def test_characters_that_differ_are_two_classes(tmp_path):
    """A data set of characters has them, and Unicode calls them compatible."""
    touch(tmp_path, "2/1.png", "\u00b2/1.png", "\uff12/1.png")
    assert len(ImageFolder(str(tmp_path)).classes) == 3


def test_labels_from_which_nothing_can_be_learned(tmp_path):
    touch(tmp_path / "one", "all/1.png", "all/2.png")
    with pytest.raises(UserError, match="has the one class all, and a classifier needs two"):
        check_labels(ImageFolder(str(tmp_path / "one")))
    touch(tmp_path / "each", "1/1.png", "2/2.png", "3/3.png")
    with pytest.raises(UserError, match="none of its 3 classes has two images"):
        check_labels(ImageFolder(str(tmp_path / "each")))
    touch(tmp_path / "each", "1/4.png")
    check_labels(ImageFolder(str(tmp_path / "each")))


def test_classes_that_differ_by_case_alone_are_told(tmp_path):
    image_folder(tmp_path / "one", ("Ant", "ant", "bee"))
    [line] = ImageFolder(str(tmp_path / "one")).remarks()
    assert line.startswith(f"warning: {tmp_path / 'one'}: the class folders Ant and ant differ by case alone")
    assert ImageFolder(str(image_folder(tmp_path / "two"))).remarks() == []


def test_a_class_with_letters_of_two_alphabets_is_told_with_its_code_points(tmp_path):
    """Latin "cat" with a Cyrillic letter; a name of one alphabet, with digits and accents, is none."""
    root = image_folder(tmp_path / "one", ("dog", "c\u0430t", "\u043a\u043e\u0442 2", "K\u00f6ln_1"))
    [line] = ImageFolder(str(root)).remarks()
    assert "the class folder c\u0430t [U+0430] has letters of two alphabets" in line


def test_classes_that_look_alike_in_two_alphabets_are_told_and_used(tmp_path):
    """They are no error, since a data set of characters may have both. No warning names classes that look different."""
    root = image_folder(tmp_path / "one", ("coc", "\u0441\u043e\u0441", "\u043a\u043e\u0442", "kot"))
    folder = ImageFolder(str(root))
    [line] = folder.remarks()
    assert line.startswith(f"warning: {root}: the class folders coc and \u0441\u043e\u0441 [U+0441 U+043E U+0441] look")
    assert len(folder.classes) == 4
