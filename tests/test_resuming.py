"""Resuming whole runs: with another batch size or schedule, on other images, and from checkpoints of older code."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.comparing import assert_same_state, log_lines
from tests.support.helpers import data_set, image_folder
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, overriding, pretrain
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints, read_checkpoint

pytestmark = pytest.mark.process
BATCH = ["--batch-size", "8", "train.images_per_device=4", "logging.pictures_every_steps=null"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of 27 training images (3 steps of 8, a tail of 3) and 9 validation images in 3 classes."""
    return data_set(tmp_path_factory.mktemp("images"))


def run(main, words: list[str], images: Path, output: Path, *more: str) -> int:
    """The entry point in this process."""
    batch = BATCH
    if "--batch-size" in more:
        batch = BATCH[2:]
    return main([*overriding([*words, *batch], *more), "--data-path", str(images), "--output-dir", str(output)])


def contents(folder: Path) -> dict:
    """Every file of a run but its lock, with its bytes and time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def even_images(tmp_path_factory):
    """24 training images: 3 steps of 8 an epoch, 6 of 4, 1 of 24, without a tail."""
    return data_set(tmp_path_factory.mktemp("even_images"), train=8, val=2)


@pytest.fixture(scope="module")
def four_epochs(even_images, tmp_path_factory):
    """A finished pretraining of 12 steps of 8 images, with the checkpoints of steps 6 to 9 and 12."""
    output = tmp_path_factory.mktemp("four_epochs")
    run(pretrain, PRETRAIN, even_images, output, "--epochs", "4", "checkpoint.every_steps=1", "checkpoint.keep=7")
    for step in (10, 11):
        (output / f"checkpoints/step_{step:08d}.pt").unlink()
    return output


def copy_until(step: int, whole: Path, output: Path) -> None:
    """The run as if its newest checkpoint were that of `step`; it has no result unless `step` is the last."""
    shutil.copytree(whole, output, symlinks=True, dirs_exist_ok=True)
    for path in (output / "checkpoints").glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
    if step < 12:
        (output / "result.json").unlink()


@pytest.mark.parametrize(
    ("batch_size", "step", "total"), [("4", 18, 24), ("24", 3, 4), ("12", 6, 8)], ids=["smaller", "larger", "odd"]
)
def test_with_another_batch_size_a_run_goes_on_at_the_same_image(
    batch_size, step, total, even_images, four_epochs, tmp_path, capsys
):
    """Step 9 of 8 images is the end of the third epoch of 24, whatever the batch."""
    copy_until(9, four_epochs, tmp_path)
    words = ["--epochs", "4", "--batch-size", batch_size, "train.images_per_device=4", "checkpoint.keep=99"]
    capsys.readouterr()
    run(pretrain, PRETRAIN, even_images, tmp_path, *words, "--resume", "auto", "--allow-config-change")
    printed = in_one_line(capsys.readouterr().out)
    rate = 1e-3 * (1 + math.cos(math.pi * 3 / 4)) / 2
    meaning = f"step 9 of 8 images is step {step} of {batch_size} images, epoch 3, learning rate {rate:.3g}"
    assert meaning in printed
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == list(range(step + 1, total + 1))
    assert {line["epoch"] for line in lines} == {3}
    assert len(log_lines(tmp_path / "until_step_9_of_8_images")) >= 9
    checkpoints = sorted((tmp_path / "checkpoints").glob("step_????????.pt"))
    assert [int(path.stem[5:]) for path in checkpoints] == [step, total]
    assert read_checkpoint(checkpoints[0])["position"] == {"epoch": 3, "images": 0}
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == total


def test_a_run_that_counts_anew_can_be_ended_at_any_point_of_its_start(even_images, four_epochs, tmp_path, monkeypatch):
    """Whatever has been done of setting aside, the same command goes on at the same image."""
    copy_until(7, four_epochs, tmp_path / "whole")
    words = ["--epochs", "4", "--batch-size", "4", "--resume", "auto", "--allow-config-change"]
    expected = None
    for point in ("none", "set_aside_others", "set_aside", "set_aside_after"):
        output = tmp_path / point
        shutil.copytree(tmp_path / "whole", output, symlinks=True)

        def end(*_arguments):
            raise KeyboardInterrupt

        if point != "none":
            with monkeypatch.context() as patch:
                patch.setattr(Checkpoints, point, end)
                with pytest.raises(KeyboardInterrupt):
                    run(pretrain, PRETRAIN, even_images, output, *words)
        run(pretrain, PRETRAIN, even_images, output, *words)
        if expected is None:
            expected = output / "checkpoints/last.pt"
        assert_same_state(expected, output / "checkpoints/last.pt")


def test_a_position_within_a_batch_is_refused_with_the_nearest_sizes_and_touches_nothing(
    even_images, four_epochs, tmp_path
):
    copy_until(8, four_epochs, tmp_path)
    before = contents(tmp_path)
    words = ["--epochs", "4", "--resume", "auto", "--allow-config-change", "train.images_per_device=null"]
    with pytest.raises(
        UserError, match=r"step_00000008\.pt: train\.batch_size = 6: .* 16 images into epoch 2, .*: 4 or 8"
    ):
        run(pretrain, PRETRAIN, even_images, tmp_path, *words, "--batch-size", "6")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("main, words", [(pretrain, PRETRAIN), (finetune, FINETUNE)])
def test_a_checkpoint_after_the_end_of_a_shorter_schedule_is_refused_and_touches_nothing(
    main, words, even_images, tmp_path
):
    sizes = ["--val-resize-size", "32"] if main is finetune else []
    run(main, words, even_images, tmp_path, *sizes, "--epochs", "3")
    (tmp_path / "result.json").unlink()
    before = contents(tmp_path)
    more = [*sizes, "--epochs", "2", "--resume", "auto", "--allow-config-change"]
    with pytest.raises(UserError, match="checkpoint is after step 9, the new schedule ends at step 6: nothing is left"):
        run(main, words, even_images, tmp_path, *more)
    assert contents(tmp_path) == before


def test_the_result_of_a_longer_schedule_is_not_taken_for_that_of_a_shorter_one(even_images, four_epochs, tmp_path):
    """The checkpoint lies exactly at the new end, and beside it is the result of twice as many steps."""
    copy_until(12, four_epochs, tmp_path)
    words = ["--epochs", "2", "--resume", str(tmp_path / "checkpoints/step_00000006.pt"), "--allow-config-change"]
    assert run(pretrain, PRETRAIN, even_images, tmp_path, *words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == result["step"] == 6 and result["checkpoint"].endswith("step_00000006.pt")


def test_a_checkpoint_without_position_and_identity_resumes_as_before_and_says_what_is_not_compared(
    images, tmp_path, capsys
):
    more = ["--epochs", "2", "checkpoint.every_steps=2", "checkpoint.keep=9"]
    run(pretrain, PRETRAIN, images, tmp_path / "whole", *more)
    old = read_checkpoint(tmp_path / "whole/checkpoints/step_00000002.pt")
    del old["position"], old["data"]
    (tmp_path / "part/checkpoints").mkdir(parents=True)
    torch.save(old, tmp_path / "part/checkpoints/step_00000002.pt")
    run(pretrain, PRETRAIN, images, tmp_path / "part", *more, "--resume", "auto")
    assert "warning: the checkpoint does not say which images train had; compared were only images" in (
        capsys.readouterr().out
    )
    assert_same_state(tmp_path / "whole/checkpoints/last.pt", tmp_path / "part/checkpoints/last.pt")


def rename_a_training_image(root: Path) -> None:
    (root / "train/ant/3.png").rename(root / "train/ant/z.png")


def rename_a_validation_image(root: Path) -> None:
    (root / "val/ant/1.png").rename(root / "val/ant/z.png")


def write_other_pixels_under_the_same_names(root: Path) -> None:
    shutil.rmtree(root / "train")
    image_folder(root / "train", ("ant", "bee", "cat"), per_class=9, seed=7)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (rename_a_training_image, "names of images in train"),
        (rename_a_validation_image, "names of images in val"),
        (write_other_pixels_under_the_same_names, "contents of images in train"),
    ],
)
def test_other_images_are_refused_though_they_are_as_many(change, difference, images, tmp_path):
    more = ["--epochs", "1", "checkpoint.every_steps=1", "--val-resize-size", "32"]
    run(finetune, FINETUNE, images, tmp_path / "out", *more)
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    change(changed)
    words = ["--resume", str(tmp_path / "out/checkpoints/step_00000001.pt"), "--allow-config-change"]
    with pytest.raises(UserError, match=f"was trained on other data: {difference} differ"):
        run(finetune, FINETUNE, changed, tmp_path / "out", *more, *words)


def test_a_mended_image_is_no_other_data_set(images, tmp_path, capsys):
    """Somebody replaces the file that an error named, and goes on."""
    more = ["--epochs", "1", "checkpoint.every_steps=1"]
    run(pretrain, PRETRAIN, images, tmp_path / "out", *more)
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    shutil.copy(changed / "train/bee/1.png", changed / "train/ant/1.png")
    checkpoint = str(tmp_path / "out/checkpoints/step_00000001.pt")
    assert run(pretrain, PRETRAIN, changed, tmp_path / "out", *more, "--resume", checkpoint) == 0
    assert "warning: 1 of 27 sampled files of train have changed" in capsys.readouterr().out


def test_other_weights_are_not_read_on_resuming_and_a_line_says_so(even_images, four_epochs, tmp_path, capsys):
    copy_until(9, four_epochs, tmp_path)
    words = ["--epochs", "4", "--resume", "auto", "--weights", "nowhere.pt"]
    assert run(pretrain, PRETRAIN, even_images, tmp_path, *words) == 0
    assert "warning: --weights nowhere.pt is not read: this run began from scratch" in capsys.readouterr().out


def test_a_checkpoint_that_was_set_aside_is_told_as_such_on_a_requeue(even_images, four_epochs, tmp_path, capsys):
    """The same command twice: the first start counts steps of another size from there on."""
    copy_until(9, four_epochs, tmp_path)
    checkpoint = tmp_path / "checkpoints/step_00000009.pt"
    words = ["--epochs", "4", "--batch-size", "24", "train.images_per_device=8", "--allow-config-change"]
    assert run(pretrain, PRETRAIN, even_images, tmp_path, *words, "--resume", str(checkpoint)) == 0
    assert "from here on continue with --resume auto" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"step_00000009\.pt: set aside, .* continue with --resume auto"):
        run(pretrain, PRETRAIN, even_images, tmp_path, *words, "--resume", str(checkpoint))
    assert run(pretrain, PRETRAIN, even_images, tmp_path, *words, "--resume", "auto") == 0


def test_a_checkpoint_with_nan_is_refused_and_an_older_one_goes_on(even_images, four_epochs, tmp_path):
    copy_until(9, four_epochs, tmp_path)
    newest = tmp_path / "checkpoints/step_00000009.pt"
    spoilt = read_checkpoint(newest)
    name = next(name for name in spoilt["model"] if name.endswith("bn1.running_var"))
    spoilt["model"][name][0] = float("nan")
    torch.save(spoilt, newest)
    with pytest.raises(UserError, match=rf"step_00000009\.pt: model\.{name} holds 1 of 64 .* \(--resume PATH\)"):
        run(pretrain, PRETRAIN, even_images, tmp_path, "--epochs", "4", "--resume", "auto")
    older = str(tmp_path / "checkpoints/step_00000008.pt")
    assert run(pretrain, PRETRAIN, even_images, tmp_path, "--epochs", "4", "--resume", older) == 0
    assert_same_state(tmp_path / "checkpoints/last.pt", four_epochs / "checkpoints/last.pt")
