"""A copy of an image folder with smaller files: what it holds, what it leaves out, and that a kill does no harm."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from data.augment import evaluation_crops
from data.decode import decode_image
from data.folder import ImageFolder
from scripts import resize_images
from tests.support.helpers import image_folder
from tests.support.killing import processes_of, wait_until_nothing_is_left
from tests.support.launch import start
from utils.errors import UserError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as a JPEG keeps them."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1)
    noise = np.random.default_rng(seed).normal(0, 4, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """train/ and val/ with images of several kinds and sizes, wide and high."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for name in ("ant", "bee/young"):
            (root / split / name).mkdir(parents=True)
    photo(90, 60).save(root / "train/ant/a.jpg", quality=98)
    photo(90, 60).save(root / "train/ant/a.png")
    photo(60, 91).save(root / "train/bee/young/high.JPEG", quality=98)
    photo(90, 60).convert("L").save(root / "train/ant/grey.tif")
    photo(90, 60).save(root / "train/ant/moving.gif", save_all=True, append_images=[photo(90, 60, seed=1)])
    photo(90, 60).save(root / "val/ant/PNG inside.jpg", "PNG")
    photo(30, 20).save(root / "val/bee/young/small.jpg", quality=70)
    photo(500, 32).save(root / "val/bee/young/as small as asked for.webp")
    return root


def resize(source: Path, target: Path, short_side: int = 32, workers: int = 1, more: tuple[str, ...] = ()) -> int:
    """Its exit code."""
    words = [str(source), str(target), "--short-side", str(short_side), "--workers", str(workers), *more]
    return resize_images.main(words)


def files_of(root: Path) -> dict[str, bytes]:
    """Every file with its content, but for the record of the script."""
    files = {}
    for path in root.rglob("*"):
        if path.is_file() and path.name != resize_images.RECORD:
            files[str(path.relative_to(root))] = path.read_bytes()
    return files


def expected_pixels(path: Path, short_side: int) -> torch.Tensor:
    return v2.functional.resize(
        decode_image(str(path)), [short_side], interpolation=InterpolationMode.BICUBIC, antialias=True
    )


def test_tree_and_names_stay_and_training_sees_the_same_folder(source, tmp_path, capsys):
    (source / "val/cat").mkdir()  # without images
    assert resize(source, tmp_path / "copy") == 0
    assert files_of(tmp_path / "copy").keys() == files_of(source).keys()
    assert (tmp_path / "copy/val/cat").is_dir()
    assert "6 images resized, 2 copied as they are, 0 there already, 0 not copied" in capsys.readouterr().out
    assert ImageFolder(str(tmp_path / "copy/train")).fingerprint() == ImageFolder(str(source / "train")).fingerprint()


def test_short_sides_are_those_asked_for_and_nothing_is_enlarged(source, tmp_path):
    resize(source, tmp_path / "copy")
    for name in files_of(source):
        height, width = decode_image(str(source / name)).shape[-2:]
        copied_height, copied_width = decode_image(str(tmp_path / "copy" / name)).shape[-2:]
        assert min(copied_height, copied_width) == min(32, height, width)
        assert copied_width / copied_height == pytest.approx(width / height, rel=0.02)


def test_everything_but_a_jpeg_keeps_the_pixels_of_evaluation(source, tmp_path):
    """Under its own name, though it is a PNG: the content decides. A copy resized again is a copy of the same size."""
    resize(source, tmp_path / "copy")
    for name in ("train/ant/a.png", "train/ant/grey.tif", "train/ant/moving.gif", "val/ant/PNG inside.jpg"):
        copied = tmp_path / "copy" / name
        assert copied.read_bytes().startswith(b"\x89PNG")
        assert torch.equal(decode_image(str(copied)), expected_pixels(source / name, 32))
        crops = [evaluation_crops(decode_image(str(path)), (32,), 32) for path in (copied, source / name)]
        assert torch.equal(*crops)


def test_a_jpeg_is_close_and_has_whole_colours(source, tmp_path):
    resize(source, tmp_path / "copy")
    for name in ("train/ant/a.jpg", "train/bee/young/high.JPEG"):
        copied = tmp_path / "copy" / name
        difference = decode_image(str(copied)).double() - expected_pixels(source / name, 32).double()
        assert difference.square().mean().sqrt() < 3  # of 255
        with Image.open(copied) as image:
            assert image.format == "JPEG"
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # no colour at half the resolution


def test_a_lower_quality_makes_smaller_jpegs_of_the_same_size_and_changes_nothing_else(source, tmp_path):
    resize(source, tmp_path / "copy")
    resize(source, tmp_path / "given", more=("--quality", "95"))
    resize(source, tmp_path / "low", more=("--quality", "50"))
    copy, low = files_of(tmp_path / "copy"), files_of(tmp_path / "low")
    assert files_of(tmp_path / "given") == copy
    jpegs = {"train/ant/a.jpg", "train/bee/young/high.JPEG"}
    assert {name for name in copy if copy[name] != low[name]} == jpegs
    for name in jpegs:
        assert len(low[name]) < 0.7 * len(copy[name])
        assert decode_image(str(tmp_path / "low" / name)).shape == decode_image(str(tmp_path / "copy" / name)).shape


def test_a_copy_goes_on_with_its_own_quality_alone(source, tmp_path):
    resize(source, tmp_path / "copy")
    record = tmp_path / "copy" / resize_images.RECORD
    content = json.loads(record.read_text())
    del content["quality"]  # as it was written before there was a choice
    record.write_text(json.dumps(content))
    assert resize(source, tmp_path / "copy") == 0
    with pytest.raises(UserError, match=r"and quality 95, not of .* with 32 and 85; give another TARGET"):
        resize(source, tmp_path / "copy", more=("--quality", "85"))


def test_what_is_small_enough_is_copied_byte_for_byte(source, tmp_path):
    resize(source, tmp_path / "copy")
    for name in ("val/bee/young/small.jpg", "val/bee/young/as small as asked for.webp"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()


def test_images_in_the_folder_itself_are_copied_too(tmp_path):
    (tmp_path / "flat").mkdir()
    photo(90, 60).save(tmp_path / "flat/a.png")
    (tmp_path / "flat/.hidden.png").write_bytes((tmp_path / "flat/a.png").read_bytes())
    assert resize(tmp_path / "flat", tmp_path / "copy") == 0
    assert list(files_of(tmp_path / "copy")) == ["a.png"]


def test_the_number_of_processes_changes_nothing(source, tmp_path):
    resize(source, tmp_path / "one", workers=1)
    resize(source, tmp_path / "three", workers=3)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


def test_unreadable_images_are_named_and_counted_and_others_said(source, tmp_path, capsys):
    (source / "train/ant/empty.jpg").write_bytes(b"")
    (source / "train/ant/page.png").write_text("<!DOCTYPE html>")
    small = source / "val/bee/young/small.jpg"  # would be copied as it is
    small.write_bytes(small.read_bytes()[:300])
    bomb = io.BytesIO()
    Image.new("L", (30_000, 30_000)).save(bomb, "PNG")
    (source / "val/ant/bomb.png").write_bytes(bomb.getvalue()[:500])
    (source / "val/ant/broken.jpg").symlink_to("/nowhere")
    (source / "labels.csv").touch()
    (source / "train/ant/.hidden").touch()
    assert resize(source, tmp_path / "copy") == 1
    out = capsys.readouterr().out
    for name in ("empty.jpg", "page.png", "small.jpg", "bomb.png", "broken.jpg"):
        (line,) = [line for line in out.splitlines() if name in line]
        assert line.startswith(f"not copied: {source}")
        assert not list((tmp_path / "copy").rglob(name))
    assert "5 not copied" in out and "6 images resized, 1 copied as they are" in out
    assert "left out: 1 other endings, as labels.csv" in out
    assert "left out: 1 hidden, as train/ant/.hidden" in out


def test_the_first_unreadable_images_are_printed_and_all_are_counted(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(resize_images, "SHOWN", 2)
    for number in range(5):
        (source / f"train/ant/{number}.jpg").write_bytes(b"")
    assert resize(source, tmp_path / "copy") == 1
    out = capsys.readouterr().out
    assert out.count("not copied: ") == 2 and "… and 3 more" in out and "5 not copied" in out


def test_what_is_there_is_not_made_again_and_what_was_mended_is(source, tmp_path, capsys):
    (source / "train/ant/empty.jpg").write_bytes(b"")
    assert resize(source, tmp_path / "copy") == 1
    before = {name: (tmp_path / "copy" / name).stat().st_ino for name in files_of(tmp_path / "copy")}
    photo(90, 60).save(source / "train/ant/empty.jpg")
    (tmp_path / "copy/val/ant/PNG inside.jpg").write_bytes(b"")  # as a file system may leave it after a power cut
    assert resize(source, tmp_path / "copy") == 0
    assert "2 images resized, 0 copied as they are, 7 there already" in capsys.readouterr().out
    for name, inode in before.items():
        if name != "val/ant/PNG inside.jpg":
            assert (tmp_path / "copy" / name).stat().st_ino == inode
    assert all(files_of(tmp_path / "copy").values())


def test_half_files_of_an_earlier_start_are_removed(source, tmp_path):
    resize(source, tmp_path / "copy")
    (tmp_path / "copy/train/ant/since removed.jpg.tmp").write_bytes(b"half")
    resize(source, tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("*.tmp"))


@pytest.mark.parametrize("target", [".", "small", "val/small", "train/../small"])
def test_a_target_inside_the_source_is_refused(source, target):
    before = files_of(source)
    with pytest.raises(UserError, match="lies inside"):
        resize(source, source / target)
    assert files_of(source) == before


def test_a_source_inside_the_target_is_refused_links_or_not(source, tmp_path):
    with pytest.raises(UserError, match="holds .* itself"):
        resize(source, tmp_path)
    (tmp_path / "link").symlink_to(source / "train")
    with pytest.raises(UserError, match="lies inside"):
        resize(source, tmp_path / "link/small")


def test_a_target_with_other_things_or_of_another_copy_is_refused(source, tmp_path):
    image_folder(tmp_path / "others")
    before = files_of(tmp_path / "others")
    with pytest.raises(UserError, match=r"is not empty \(ant\) and no copy made by this script"):
        resize(source, tmp_path / "others")
    assert files_of(tmp_path / "others") == before and not (tmp_path / "others" / resize_images.RECORD).exists()
    resize(source, tmp_path / "copy")
    with pytest.raises(UserError, match=r"short side of 32 and quality 95, not of .* with 33 and 95; give another"):
        resize(source, tmp_path / "copy", short_side=33)
    with pytest.raises(
        UserError, match=r"is a copy of .*images\nwith .* 32 and quality 95, not of .*train with 32 and 95"
    ):
        resize(source / "train", tmp_path / "copy")


def test_other_bad_input_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        resize(tmp_path / "nowhere", tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no image"):
        resize(tmp_path / "empty", tmp_path / "copy")
    with pytest.raises(UserError, match="--short-side 0: must be at least 1"):
        resize(source, tmp_path / "copy", short_side=0)
    with pytest.raises(UserError, match="--quality 101: must be from 1 to 100"):
        resize(source, tmp_path / "copy", more=("--quality", "101"))
    with pytest.raises(UserError, match="--workers 0: must be at least 1"):
        resize(source, tmp_path / "copy", workers=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        resize(source, tmp_path / "file")


@pytest.mark.process
def test_a_second_process_on_the_same_target_is_refused(source, tmp_path):
    child = (
        "import sys, time; from pathlib import Path; from scripts.resize_images import claim_target; "
        f"held = claim_target(Path({str(source)!r}), Path({str(tmp_path / 'copy')!r}), 32, 95); "
        "print('locked', flush=True); time.sleep(60)"
    )
    process = start([sys.executable, "-c", child])
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process is writing this copy"):
            resize(source, tmp_path / "copy")
    finally:
        process.kill()
        process.communicate()
    assert resize(source, tmp_path / "copy") == 0


def test_what_cannot_be_written_ends_the_copy_and_is_named(source, tmp_path):
    resize_images.claim_target(source, tmp_path / "copy", 32, quality=95).close()
    (tmp_path / "copy/train/ant/a.png").mkdir(parents=True)  # a folder where a file should come
    with pytest.raises(
        UserError, match=r"a\.png: cannot be written \(Is a directory; .* free\); the same command goes on"
    ):
        resize(source, tmp_path / "copy")


@pytest.mark.process
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL to the whole program at three moments, then to the end."""
    source, target = tmp_path / "images", tmp_path / "copy"
    for number in range(200):
        folder = source / f"train/{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        photo(400, 300, seed=number).save(folder / f"{number}.jpg", quality=95)
    assert resize(source, tmp_path / "whole", workers=2) == 0
    whole = files_of(tmp_path / "whole")
    command = [sys.executable, "scripts/resize_images.py", str(source), str(target), "--short-side", "32"]
    kills = 0
    for until in (5, 60, 120):
        process = start([*command, "--workers", "2"])
        while process.poll() is None and len(list(target.rglob("*.jpg"))) < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        wait_until_nothing_is_left(target)
        for name, content in files_of(target).items():
            if not name.endswith(".tmp"):
                assert content == whole[name]
    assert kills >= 2
    before = {path: path.stat().st_ino for path in target.rglob("*.jpg")}
    process = start([*command, "--workers", "2"])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"{len(before)} there already" in output
    assert files_of(target) == whole
    assert before == {path: path.stat().st_ino for path in before}
    assert not processes_of(target)


@pytest.mark.process
def test_killed_in_the_middle_of_a_write_it_leaves_no_half_file_under_an_images_name(tmp_path):
    """The file is so large that its write takes a while; the kill comes as soon as a name of it is there."""
    source, target = tmp_path / "images", tmp_path / "copy"
    (source / "train").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 900_000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source / "train/large.ppm")  # 43 MB, copied as it is
    command = [sys.executable, "scripts/resize_images.py", str(source), str(target), "--short-side", "16"]
    process = start([*command, "--workers", "1"])
    while process.poll() is None and not list(target.glob("train/large*")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    wait_until_nothing_is_left(target)
    copy = target / "train/large.ppm"
    assert not copy.exists() or copy.stat().st_size == (source / "train/large.ppm").stat().st_size
    assert resize(source, target, short_side=16) == 0
    assert files_of(target) == files_of(source)
