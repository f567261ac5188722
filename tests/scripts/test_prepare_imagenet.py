"""prepare_imagenet sorts a flat val by the kit's or torchvision's labels, whole or not at all."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.datasets import imagenet

from data.folder import ImageFolder
from scripts import prepare_imagenet
from tests.data.test_folder import touch
from utils.errors import UserError

WNIDS = ["n01440764", "n01443537", "n02119789"]
OF_IMAGES = [2, 0, 0, 1, 2, 1]  # WNIDS of images 1 to 6


@pytest.fixture
def flat(tmp_path):
    return touch(tmp_path / "flat", *[f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7)], "LOC_val.csv")


@pytest.fixture
def devkit(tmp_path):
    """As the real one: 1000 classes are leaves, and synsets above them have numbers beyond 1000."""
    folder = tmp_path / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object),
             ("num_children", object), ("children", object), ("wordnet_height", object),
             ("num_train_images", object)]  # fmt: skip
    synsets = np.empty((4, 1), dtype=kinds)
    for row, (number, wnid) in enumerate([(1, WNIDS[1]), (2, WNIDS[2]), (3, WNIDS[0]), (4, "n00001740")]):
        children = 3 if number == 4 else 0
        synsets[row, 0] = (number, wnid, "a fish, a swimmer", "it swims", children, [1, 2, 3][:children], 0, 1300)
    savemat(folder / "meta.mat", {"synsets": synsets})
    number_of = {WNIDS[1]: 1, WNIDS[2]: 2, WNIDS[0]: 3}
    lines = [str(number_of[WNIDS[label]]) for label in OF_IMAGES]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")
    return folder.parent


@pytest.fixture
def meta(tmp_path):
    path = tmp_path / "meta.bin"
    names = {wnid: ("a fish", "a swimmer") for wnid in WNIDS}
    torch.save((names, [WNIDS[label] for label in OF_IMAGES]), path)
    return path


def test_the_stand_in_is_read_by_torchvision_as_by_us(devkit, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *arguments: None)  # which knows the real one's MD5
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(devkit, devkit.name)
    (tmp_path / "theirs").mkdir()
    imagenet.parse_devkit_archive(str(tmp_path / "theirs"), str(tmp_path / "ILSVRC2012_devkit_t12.tar.gz"))
    theirs = tmp_path / "theirs/meta.bin"
    assert prepare_imagenet.classes_of_meta(theirs) == prepare_imagenet.classes_of_devkit(devkit)


@pytest.mark.parametrize("kind", ["devkit", "meta"])
def test_every_image_gets_a_link_in_the_folder_of_its_class(flat, devkit, meta, tmp_path, kind, capsys):
    target = tmp_path / "imagenet/val"
    words = ["--devkit", str(devkit)] if kind == "devkit" else ["--meta", str(meta)]
    assert prepare_imagenet.main([flat, str(target), *words]) == 0
    assert "6 images in 3 classes" in capsys.readouterr().out
    folder = ImageFolder(str(target))
    assert folder.classes == WNIDS and len(folder) == 6 and folder.left_out == {}
    for index in range(6):
        path = Path(folder.path(index))
        number = int(path.stem.removeprefix("ILSVRC2012_val_"))
        assert folder.labels[index] == OF_IMAGES[number - 1]
        assert path.is_symlink() and path.resolve() == (Path(flat) / path.name).resolve()
    with pytest.raises(UserError, match="val: is not empty; give a new folder"):
        prepare_imagenet.main([flat, str(target), *words])


def remove_an_image(flat: Path, devkit: Path, meta: Path) -> None:
    (flat / "ILSVRC2012_val_00000004.JPEG").unlink()


def add_an_image(flat: Path, devkit: Path, meta: Path) -> None:
    (flat / "ILSVRC2012_val_00000007.JPEG").touch()


def damage_labels(flat: Path, devkit: Path, meta: Path) -> None:
    for path in (devkit / prepare_imagenet.META, meta):
        path.write_bytes(path.read_bytes()[:100])


def climb_out(flat: Path, devkit: Path, meta: Path) -> None:
    torch.save(({}, ["../../home"] * 6), meta)
    (devkit / prepare_imagenet.GROUND_TRUTH).write_text("9\n" * 6)


def remove_labels(flat: Path, devkit: Path, meta: Path) -> None:
    meta.unlink()
    (devkit / prepare_imagenet.GROUND_TRUTH).unlink()


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        (remove_an_image, "1 of 6 images are missing, the first is ILSVRC2012_val_00000004.JPEG"),
        (add_an_image, "1 of 6 images are unknown to the labels, the first is ILSVRC2012_val_00000007.JPEG"),
        (damage_labels, "meta"),
        (climb_out, r"is not the kit's|has a class '\.\./\.\./home', which is no name such as"),
        (remove_labels, "cannot be read|is not torchvision's meta.bin"),
    ],
)
@pytest.mark.parametrize("kind", ["devkit", "meta"])
def test_what_is_not_whole_is_refused_and_nothing_written(flat, devkit, meta, tmp_path, trouble, complaint, kind):
    trouble(Path(flat), devkit, meta)
    words = ["--devkit", str(devkit)] if kind == "devkit" else ["--meta", str(meta)]
    with pytest.raises(UserError, match=complaint):
        prepare_imagenet.main([flat, str(tmp_path / "imagenet/val"), *words])
    assert not (tmp_path / "imagenet").exists()


def test_a_flat_val_is_met_with_the_remedy(flat):
    with pytest.raises(UserError, match=r"scripts/prepare_imagenet\.py sorts ImageNet's val into class folders"):
        ImageFolder(flat)


def test_without_symbolic_links_another_file_system_is_advised(flat, meta, tmp_path, monkeypatch):
    def refuse(*_arguments: object, **_more: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", "link")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(UserError, match=r"no symbolic link can be made there .*; give a target on a file system that"):
        prepare_imagenet.main([flat, str(tmp_path / "imagenet/val"), "--meta", str(meta)])
