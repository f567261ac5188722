"""check_data finds every image that training would stop at, and no other."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts import check_data, check_findings, image_checks
from scripts.image_checks import ImageCheck
from tests.support.helpers import image_folder
from utils.errors import UserError


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {  # what is done to an image, and what its finding says
    "zero bytes": (lambda path: path.write_bytes(b""), "the file is empty"),
    "half a PNG": (halve, "not a readable image"),
    "random bytes": (lambda path: path.write_bytes(os.urandom(3000)), "not a readable image"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html><p>404</p>"), "not a readable image"),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with 16 images in train/ and 4 in val/."""
    image_folder(tmp_path / "images/train", per_class=8)
    image_folder(tmp_path / "images/val", per_class=2, seed=1)
    return tmp_path / "images"


def test_a_sound_data_set_has_no_findings(images, capsys):
    assert check_data.main([str(images), "--workers", "2"]) == 0
    assert capsys.readouterr().out.strip().endswith("train, " + str(images / "val") + ": 0 findings")
    assert check_data.main([str(images / "train"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith("16 images in ")


def test_every_bad_image_is_found_and_named_and_no_other(images, tmp_path, capsys):
    sentences = {}
    for number, (damage, sentence) in enumerate(DAMAGES.values()):
        path = images / "train" / ("ant" if number % 2 else "bee") / f"{number}.png"
        damage(path)
        sentences[str(path)] = sentence
    assert check_data.main([str(images), "--workers", "2", "--report", str(tmp_path / "report.json")]) == 1
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {finding.partition(": ")[0] for finding in report["findings"]} == sentences.keys()
    for finding in report["findings"]:
        assert sentences[finding.partition(": ")[0]] in finding and finding in printed
    assert report["notes"].keys() == {check_findings.SMALL_CLASS}


def test_only_the_first_findings_are_printed_and_all_are_counted(images, monkeypatch, capsys):
    monkeypatch.setattr(check_findings, "SHOWN", 3)
    for path in (images / "train/ant").iterdir():
        path.write_bytes(b"")
    assert check_data.main([str(images), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("the file is empty") == 3 and "… and 5 more; --report FILE" in out and "8 findings" in out


def test_what_is_used_otherwise_than_one_may_expect_is_noted_and_is_no_finding(images, capsys):
    photo = Image.open(images / "train/ant/0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(images / "train/ant/rotated.jpg", exif=exif)
    photo.convert("CMYK").save(images / "train/ant/cmyk.jpg")
    photo.save(images / "train/ant/moving.gif", save_all=True, append_images=[photo.rotate(90)])
    photo.resize((5, 40)).save(images / "train/ant/slim.png")
    assert check_data.main([str(images), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    for note in (
        "EXIF rotation, not applied, as",
        "CMYK, used as 8-bit RGB, as",
        "animated, first",
        "shorter side below 8",
    ):
        assert f"note: 1 images: {note}" in out, out


def test_classes_of_val_that_are_not_those_of_train_are_a_finding(images, capsys):
    (images / "val/bee").rename(images / "val/wasp")
    assert check_data.main([str(images), "--workers", "1"]) == 1
    assert "missing bee; unexpected wasp" in capsys.readouterr().out


def test_a_folder_that_cannot_be_checked_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such image folder"):
        check_data.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--workers 0: must be at least 1"):
        check_data.main([str(tmp_path), "--workers", "0"])


def check(images: Path, tmp_path: Path, *words: str) -> tuple[int, dict]:
    """Exit code and report."""
    code = check_data.main([str(images), "--workers", "1", "--report", str(tmp_path / "report.json"), *words])
    return code, json.loads((tmp_path / "report.json").read_text())


def link_in_a_circle(train: Path) -> None:
    (train / "ant/all").symlink_to("..")


def copy_to_val(train: Path) -> None:
    shutil.copy(train / "ant/3.png", train.parent / "val/bee/copy.png")


def zero_the_middle(train: Path) -> None:
    path = train / "ant/damaged.jpg"
    Image.effect_noise((200, 200), 90).convert("RGB").save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    path.write_bytes(content)


def zero_the_end(train: Path) -> None:
    path = train / "ant/torn.webp"
    Image.effect_noise((200, 200), 90).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))


def of_one_color(train: Path) -> None:
    Image.new("RGB", (40, 36), (1, 2, 3)).save(train / "bee/grey.png")


def a_class_of_one_image(train: Path) -> None:
    for split in (train, train.parent / "val"):
        (split / "cat").mkdir()
        Image.effect_noise((40, 36), 90 if split == train else 60).save(split / "cat/1.png")
    Image.effect_noise((40, 36), 30).save(train.parent / "val/cat/2.png")


def one_class(train: Path) -> None:
    for split in (train, train.parent / "val"):
        shutil.rmtree(split / "bee")


def hidden_folder(train: Path) -> None:
    (train / "ant/.ipynb_checkpoints").mkdir()
    shutil.copy(train / "ant/1.png", train / "ant/.ipynb_checkpoints/1-checkpoint.png")


def look_alikes(train: Path) -> None:
    for split in (train, train.parent / "val"):
        (split / "bee").rename(split / "caf\u00e9")
        (split / "ant").rename(split / "cafe\u0301")


TROUBLES = {  # what is done to train -> the kind of finding, and what it is found in
    hidden_folder: ("hidden", "train/ant/.ipynb_checkpoints"),
    lambda train: (train / "ant/1.png").rename(train / "ant/1.jfif"): ("other endings", "train/ant/1.jfif"),
    lambda train: shutil.copy(train / "ant/1.png", train): ("images beside the class folders", "train/1.png"),
    lambda train: (train / "bee/1.png.jpg").mkdir(): ("folders named like images", "train/bee/1.png.jpg"),
    link_in_a_circle: ("links to folders that hold or are in the list", "train/ant/all"),
    lambda train: (train / "bee/9.png").symlink_to("/nowhere"): (check_data.FOLDERS, "train/bee/9.png"),
    lambda train: (train / "cat").symlink_to("/nowhere"): (check_data.FOLDERS, "train/cat"),
    lambda train: (train / "bee/same").symlink_to("../ant"): (check_data.FOLDERS, "train/bee/same"),
    lambda train: os.mkfifo(train / "bee/9.png"): (check_data.FOLDERS, "train/bee/9.png"),
    lambda train: (train.parent / "val/bee").rename(train.parent / "val/wasp"): (check_data.CLASSES, "val"),
    look_alikes: (check_data.FOLDERS, "train"),
    a_class_of_one_image: (check_findings.FEW_IMAGES, "train/cat"),
    one_class: (check_data.ONE_CLASS, "train"),
    copy_to_val: (check_data.IN_BOTH, "train/ant/3.png"),
    zero_the_middle: (image_checks.DAMAGED, "train/ant/damaged.jpg"),
    zero_the_end: (image_checks.UNFINISHED, "train/ant/torn.webp"),
    of_one_color: (image_checks.CONSTANT, "train/bee/grey.png"),
}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system composes accents itself")
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: TROUBLES[trouble][0] + " " + TROUBLES[trouble][1])
def test_every_trouble_is_found_named_and_counted(images, tmp_path, capsys, trouble):
    kind, place = TROUBLES[trouble]
    trouble(images / "train")
    code, report = check(images, tmp_path)
    assert code == 1
    of_both_splits = trouble is look_alikes
    assert report["counts"] == {kind: 2 if of_both_splits else 1}
    assert report["findings"][0].startswith(f"{images / place}: ")
    example = str(images / place)
    if kind == check_findings.FEW_IMAGES:
        example += ": 1"
    assert f"| {report['counts'][kind]} | {kind} | {example} |" in capsys.readouterr().out


def test_more_is_counted_than_is_listed(images, tmp_path):
    for number in range(30):
        (images / f"train/ant/{number}.txt").touch()
    code, report = check(images, tmp_path)
    assert code == 1 and report["counts"] == {"other endings": 30} and len(report["findings"]) == 20


def test_images_of_a_data_set_with_problems_are_checked_all_the_same(images, tmp_path):
    (images / "train/cat").symlink_to("/nowhere")
    (images / "train/ant/3.png").write_bytes(b"")
    code, report = check(images, tmp_path)
    assert code == 1 and report["counts"] == {check_data.FOLDERS: 1, image_checks.EMPTY: 1}


def test_one_class_is_enough_for_pretraining(tmp_path, capsys):
    image_folder(tmp_path / "images/train", ("all",))
    assert check_data.main([str(tmp_path / "images"), "--workers", "1"]) == 0
    assert f"note: {tmp_path / 'images/train'}: has the one class all: pretraining can" in capsys.readouterr().out


def test_a_folder_without_classes_is_checked_for_pretraining(tmp_path, capsys):
    image_folder(tmp_path / "made", ("mine",), per_class=3)
    mine = tmp_path / "made/mine"
    (mine / "album").mkdir()
    (mine / "album/empty.png").touch()
    code, report = check(mine, tmp_path)
    assert code == 1 and report["counts"] == {image_checks.EMPTY: 1}
    shutil.rmtree(mine / "album")
    (mine / "0.png").write_bytes(b"no image")
    code, report = check(mine, tmp_path)
    assert code == 1 and report["counts"] == {image_checks.UNREADABLE: 1}
    sentence = f"{mine}: has no class folders: pretraining can use it, finetuning not"
    assert report["notes"] == {check_data.NO_CLASSES: [sentence]}
    assert "3 images in " in capsys.readouterr().out


def test_a_val_that_is_not_sorted_by_class_is_told_with_its_remedy(images, tmp_path):
    shutil.rmtree(images / "val")
    image_folder(tmp_path / "flat", ("val",), per_class=3)
    (tmp_path / "flat/val").rename(images / "val")
    for number in range(3):
        (images / f"val/{number}.png").rename(images / f"val/ILSVRC2012_val_0000000{number}.JPEG")
    code, report = check(images, tmp_path)
    assert code == 1 and report["counts"] == {check_data.FOLDERS: 1}
    assert "scripts/prepare_imagenet.py sorts ImageNet's val into class folders" in report["findings"][0]


@pytest.mark.parametrize("has_train", [True, False])
def test_photographs_without_labels_have_no_findings_for_want_of_labels(has_train, tmp_path, capsys):
    """Loose images beside albums, an album of one photo, an empty one, and albums that look alike: all are used."""
    photos = tmp_path / "photos"
    root = photos / "train" if has_train else photos
    image_folder(root, ("holiday", "holiday "), per_class=5)
    image_folder(root, ("cat",), per_class=1, seed=1)
    (root / "empty").mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(root / "holiday/0.png", root / name)
    code, report = check(photos, tmp_path)
    assert code == 0 and report["findings"] == [] and report["counts"] == {}
    assert report["notes"][check_data.LOOSE] == [str(root / "1.png"), str(root / "2.png")]
    assert report["notes"][check_findings.FEW_IMAGES] == [
        f"{root}/cat: this class has 1 images", f"{root}/empty: this class has 0 images",
    ]  # fmt: skip
    out = capsys.readouterr().out
    wording = "2 images: beside class folders: pretraining uses them, finetuning does not"
    assert f"note: {wording}, as {root}/1.png" in out
    assert f"| 2 | {check_findings.FEW_IMAGES} (a note) | {root}/cat: 1; {root}/empty: 0 |" in out
    assert "look alike but are two names" in out and f"13 images in {root}: 0 findings" in out


def test_small_classes_of_train_and_val_are_listed_with_their_numbers_of_images(images, tmp_path, capsys):
    for number in range(3):
        (images / f"train/ant/{number}.png").unlink()
    shutil.rmtree(images / "val")
    image_folder(images / "val", per_class=5, seed=1)
    code, report = check(images, tmp_path)
    assert code == 0 and report["notes"] == {} and "| count |" not in capsys.readouterr().out
    (images / "train/ant/3.png").unlink()
    (images / "val/bee/0.png").unlink()
    for number in range(1, 5):
        (images / f"val/ant/{number}.png").unlink()
    code, report = check(images, tmp_path)
    assert code == 1 and report["counts"] == {check_findings.FEW_IMAGES: 1}
    out = capsys.readouterr().out
    assert f"| 1 | {check_findings.FEW_IMAGES} | {images}/val/ant: 1 |" in out
    small = f"{images}/train/ant: 4; {images}/val/bee: 4"
    assert f"| 2 | {check_findings.SMALL_CLASS} (a note) | {small} |" in out


def test_names_of_which_training_warns_are_noted(tmp_path, capsys):
    image_folder(tmp_path / "images", ("Ant", "ant", "coc", "\u0441\u043e\u0441"), per_class=5)
    code, report = check(tmp_path / "images", tmp_path)
    assert code == 0 and len(report["notes"][check_data.NAMES]) == 2
    out = capsys.readouterr().out
    assert "class folders Ant and ant differ by case alone" in out
    assert "class folders coc and \u0441\u043e\u0441 [U+0441 U+043E U+0441] look alike" in out


def test_brightness_is_compared_with_a_config(images, tmp_path):
    """The images are noise over all values: mean 0.5, standard deviation 0.289 (of a uniform distribution)."""
    for name, mean, finds in (("near", 0.5, 0), ("far", 0.3, 1)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"data:\n  mean: [{mean}, 0.5, 0.5]\n  std: [0.29, 0.29, 0.29]\n  val_crop_size: 32\n")
        code, report = check(images, tmp_path, "--config", str(config))
        assert code == finds and report["counts"] == ({check_data.BRIGHTNESS: 1} if finds else {})
    assert (
        "data.mean 0.300 0.500 0.500" in report["findings"][0]
        and "have mean 0.499 0.502 0.500" in report["findings"][0]
    )


def die(_check: ImageCheck, _path: str) -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: a process is killed as it does")
def test_a_killed_checking_process_is_told_of(images, monkeypatch):
    monkeypatch.setattr(ImageCheck, "check", die)
    with pytest.raises(UserError, match=r"a checking process was killed \(DataLoader worker .*\); lower --workers"):
        check_data.main([str(images), "--workers", "1"])
