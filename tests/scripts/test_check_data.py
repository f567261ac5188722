"""check_data finds every image that training would stop at, and no other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts import check_data
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
    assert check_data.main([str(images / "val"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith("4 images in ")


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
    assert report["notes"] == {}


def test_only_the_first_findings_are_printed_and_all_are_counted(images, monkeypatch, capsys):
    monkeypatch.setattr(check_data, "SHOWN", 3)
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


def die(_path: str) -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: a process is killed as it does")
def test_a_killed_checking_process_is_told_of(images, monkeypatch):
    monkeypatch.setattr(check_data, "check_image", die)
    with pytest.raises(UserError, match=r"a checking process was killed \(DataLoader worker .*\); lower --workers"):
        check_data.main([str(images), "--workers", "1"])
