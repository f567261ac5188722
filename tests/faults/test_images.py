"""Images that cannot be read, or that would take all memory."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.augment import evaluation_crops, train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.samples import TrainingSamples
from tests.support.comparing import log_lines
from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, PRETRAIN, endings, finetune, in_one_line, pretrain, small_run, start_ranks
from tests.support.memory import needs_proc, peak_megabytes
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.run.log_file import is_evaluation_line

TRANSFORM = train_transform(crop_size=32, crop_ratio=(0.2, 1.0), aspect_ratio=(0.75, 4 / 3), flip_probability=0.5)


def png_claiming(side: int) -> bytes:
    """A small PNG file whose header says side × side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def half_an_image(path: Path, kind: str) -> None:
    pixels = torch.randint(0, 256, (80, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "zero bytes": (lambda path: path.write_bytes(b""), "the file is empty"),
    "half a PNG": (lambda path: half_an_image(path, "PNG"), "not a readable image"),
    "half a JPEG": (lambda path: half_an_image(path, "JPEG"), "not a readable image"),
    "random bytes": (lambda path: path.write_bytes(os.urandom(3000)), "not a readable image"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html><p>404</p>"), "not a readable image"),
    "decompression bomb": (lambda path: path.write_bytes(png_claiming(60_000)), "refused before decoding"),
    "vanished": (Path.unlink, "cannot be read"),
    "a folder": (replace_by_folder, "cannot be read"),
}


def training_samples(folder: ImageFolder, skip_bad: bool) -> TrainingSamples:
    """Samples whose target is the class number."""

    def class_number(_epoch: int, _index: int, used_index: int) -> int:
        return int(folder.labels[used_index])

    return TrainingSamples(folder, TRANSFORM, seed=7, target_of=class_number, skip_bad=skip_bad)


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES)
def damaged(request, images) -> tuple[ImageFolder, str]:
    """A folder whose image number 3 cannot be read, and the reason."""
    damage, reason = request.param
    folder = ImageFolder(str(images / "train"))
    damage(Path(folder.path(3)))
    return folder, reason


def test_an_error_names_the_bad_image_and_spares_the_others(damaged):
    folder, reason = damaged
    samples = training_samples(folder, skip_bad=False)
    with pytest.raises(UserError, match=reason) as caught:
        samples[0, 3]
    assert str(caught.value).startswith(folder.path(3))
    assert samples[0, 4][2] == ""


def test_a_bad_image_is_replaced_by_one_that_the_key_determines(damaged):
    folder, reason = damaged
    samples = training_samples(folder, skip_bad=True)
    image, target, note = samples[0, 3]
    assert reason in note and note.startswith(folder.path(3))
    replacement = note.rpartition("; replaced by ")[2]
    paths = [folder.path(index) for index in range(len(folder))]
    assert replacement != folder.path(3) and target == folder.labels[paths.index(replacement)]
    again = samples[0, 3]
    assert torch.equal(image, again[0]) and again[1:] == (target, note)
    assert len({samples[epoch, 3][2] for epoch in range(8)}) > 2  # another epoch, another one in its place


def test_skipping_changes_no_good_image(damaged):
    folder, _ = damaged
    strict, lenient = training_samples(folder, skip_bad=False), training_samples(folder, skip_bad=True)
    assert torch.equal(lenient[0, 4][0], strict[0, 4][0]) and lenient[0, 4][2] == ""


def test_when_every_image_is_bad_skipping_ends(images):
    folder = ImageFolder(str(images / "train"))
    for index in range(16):
        Path(folder.path(index)).write_bytes(b"")
    with pytest.raises(UserError, match=r"nor can 20 images drawn in its place: run scripts/check_data\.py"):
        training_samples(folder, skip_bad=True)[0, 0]


# Whole runs.

ENTRIES = pytest.mark.parametrize(
    ("main", "entry"),
    [(pretrain, PRETRAIN), (finetune, [*FINETUNE, "--val-resize-size", "32"])],
    ids=["pretrain", "finetune"],
)


@ENTRIES
def test_a_bad_image_ends_a_run(main, entry, images, tmp_path):
    (images / "train/ant/3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"ant/3\.png: not a readable image"):
        main(small_run(entry, images, tmp_path / "out"))


@ENTRIES
def test_skipped_images_are_counted_and_listed_and_the_run_is_reproducible(main, entry, images, tmp_path):
    (images / "train/ant/3.png").write_bytes(b"")
    (images / "train/bee/5.png").write_bytes(b"GIF89a")
    for name, workers in (("one", 0), ("two", 2)):
        more = ["data.on_bad_image=skip", f"data.workers={workers}"]
        assert main(small_run(entry, images, tmp_path / name, *more)) == 0
    lines = [line for line in log_lines(tmp_path / "one") if not is_evaluation_line(line)]
    replaced = [line for line in lines if "replaced" in line]
    assert sum(line["replaced_images"] for line in replaced) == 2
    listed = []
    for line in replaced:
        listed += [note.partition(":")[0] for note in line["replaced"]]
    assert {Path(path).name for path in listed} == {"3.png", "5.png"}
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    one, two = (read_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"] for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def many_bad_images(root: Path, bad: int) -> Path:
    """80 training images in 2 classes, of which the first `bad` are empty files."""
    image_folder(root / "train", per_class=40)
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))):
        if number < bad:
            path.write_bytes(b"")
    return root


def test_a_run_on_many_bad_images_ends_and_a_larger_share_lets_it_go_on(tmp_path):
    """On two ranks, of which neither alone has met too many."""
    root = many_bad_images(tmp_path / "many", bad=30)
    words = [*small_run(PRETRAIN, root, tmp_path / "out", "data.on_bad_image=skip"), "run.timeout_minutes=1"]
    results = endings(start_ranks(2, "pretrain.py", *words))
    for code, printed in results:
        assert code == 2 and "data.max_bad_images_share = 0.01: " in printed, printed
        assert re.search(r"2[1-8] of the 80 images of epoch 0 were unreadable and replaced", in_one_line(printed))
    assert not (tmp_path / "out/result.json").exists()
    assert pretrain([*words, "data.max_bad_images_share=0.4", "--resume", "auto"]) == 0


def test_twenty_bad_images_are_skipped_on_the_smallest_data_set(tmp_path):
    root = many_bad_images(tmp_path / "few", bad=20)
    assert pretrain(small_run(PRETRAIN, root, tmp_path / "out", "data.on_bad_image=skip", "schedule.epochs=2")) == 0


def test_evaluation_never_skips(images, tmp_path):
    (images / "val/bee/1.png").write_bytes(b"")
    more = ["--val-resize-size", "32", "data.on_bad_image=skip"]
    with pytest.raises(UserError, match=r"val/bee/1\.png: not a readable image \(the file is empty\)"):
        finetune(small_run(FINETUNE, images, tmp_path / "out", *more))


# Memory.


@needs_proc
def test_of_an_animation_one_frame_alone_takes_memory(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("P", (800, 800), color) for color in range(200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert decode_image(str(path)).shape == (3, 800, 800)
    prepare = "from data.decode import decode_image"
    assert peak_megabytes(prepare, "decode_image(sys.argv[1])", str(path)) < 60  # all frames are 384 MB


SLIM_SIZES = [(1, 1), (1, 5000), (5000, 1)]


@pytest.mark.parametrize("size", SLIM_SIZES)
def test_the_slimmest_images_are_trained_on_and_evaluated(size, tmp_path):
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "slim.png")
    image = decode_image(str(tmp_path / "slim.png"))
    expected = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]
    crops = evaluation_crops(image, (235, 256), 224)
    assert crops.shape == (2, 3, 224, 224) and (crops == expected).all()
    assert (TRANSFORM(image) == expected.expand(3, 32, 32)).all()


@needs_proc
def test_the_slimmest_images_take_little_memory():
    prepare = "import torch; from data.augment import evaluation_crops, train_transform"
    measured = f"""
for width, height in {SLIM_SIZES}:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    evaluation_crops(image, (235, 256), 224)
    train_transform(crop_size=224, crop_ratio=(0.2, 1), aspect_ratio=(0.75, 1.33), flip_probability=0.5)(image)
"""
    assert peak_megabytes(prepare, measured) < 100  # 1×5000 pixels, resized as a whole, are 828 MB


# Data sets that a run can do nothing with.


def test_a_classifier_of_one_class_is_refused_before_anything_is_written(tmp_path):
    image_folder(tmp_path / "images/train", ("all",), per_class=8)
    image_folder(tmp_path / "images/val", ("all",), per_class=2)
    with pytest.raises(UserError, match="has the one class all, and a classifier needs two"):
        finetune(small_run(FINETUNE, tmp_path / "images", tmp_path / "out", "--val-resize-size", "32"))
    assert not list((tmp_path / "out").rglob("*.yaml"))
    assert pretrain(small_run(PRETRAIN, tmp_path / "images", tmp_path / "pretrained")) == 0


def test_what_is_left_out_is_said_before_the_first_step(images, tmp_path, capsys):
    (images / "train/ant/notes.txt").touch()
    (images / "val/ant/.DS_Store").touch()
    assert finetune(small_run(FINETUNE, images, tmp_path / "out", "--val-resize-size", "32")) == 0
    before_the_first_step = in_one_line(capsys.readouterr().out.partition("\nepoch 1/")[0])
    assert before_the_first_step.count("left out of ") == 2
    for line in (
        f"left out of {images / 'train'}: 1 other endings (ant/notes.txt)",
        f"left out of {images / 'val'}: 1 hidden (ant/.DS_Store)",
    ):
        assert line in before_the_first_step
