"""The folder of a run: which names are refused, and what a lock needs."""

from __future__ import annotations

import errno
import fcntl
import json
import os

import pytest
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig, TrainOptions
from data.folder import ImageFolder
from models.trunk import make_trunk
from tests.data.test_folder import touch
from tests.support.launch import in_one_line
from tests.utils.run.test_progress import job_on
from utils.config import parse_command_line
from utils.console import WIDTH
from utils.errors import UserError
from utils.run.job import (
    check_output_folder,
    largest_batch_bytes,
    lock_folder,
    lowered_line,
    steps_of_result,
    sync_batch_norm_line,
)


@pytest.fixture
def data(tmp_path):
    """A data folder whose train/ is a link to elsewhere."""
    (tmp_path / "disk/imagenet_train/ant").mkdir(parents=True)
    (tmp_path / "data/val").mkdir(parents=True)
    (tmp_path / "data/train").symlink_to(tmp_path / "disk/imagenet_train")
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["", "  "])
def test_an_output_folder_needs_a_name(name, data):
    with pytest.raises(UserError, match="run.output_dir = '.*': must name a folder"):
        check_output_folder(name, str(data))


@pytest.mark.parametrize("below", ["", "runs/a", "checkpoints"])
def test_a_file_is_no_output_folder(below, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"must be a folder, but .*file is a file; give another --output-dir"):
        check_output_folder(str(tmp_path / "file" / below), str(data))


def test_a_file_in_the_place_of_the_checkpoints_is_seen_before_the_first_save(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    with pytest.raises(UserError, match=r"run/checkpoints is a file"):
        check_output_folder(str(tmp_path / "run"), str(data))


@pytest.mark.parametrize("place", ["data/train", "data/train/run", "data/runs/../val/run", "disk/imagenet_train/run"])
def test_an_output_folder_among_the_images_is_refused(place, data, tmp_path):
    with pytest.raises(UserError, match=r"lies inside .*data/(train|val), .*outside of it"):
        check_output_folder(str(tmp_path / place), str(data))


def test_the_folder_of_the_images_itself_is_no_output_folder(data):
    with pytest.raises(UserError, match="is the folder of the images"):
        check_output_folder(str(data), str(data))


@pytest.mark.parametrize("place", ["run", "database", "data/runs/x", "disk/run", "data/../run", "not/yet"])
def test_any_other_folder_will_do(place, data, tmp_path):
    check_output_folder(str(tmp_path / place), str(data))
    check_output_folder(str(tmp_path / place), str(tmp_path / "no such data"))


def test_where_there_is_neither_train_nor_val_all_of_the_folder_may_be_images(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="lies inside .*photos, "):
        check_output_folder(str(tmp_path / "photos/run"), str(tmp_path / "photos"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_where_there_are_no_locks_a_run_goes_on_with_a_warning(number, tmp_path, monkeypatch, capsys):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert lock_folder(tmp_path) is None
    assert capsys.readouterr().out.count("warning: ") == 1


def test_a_lock_holds_though_a_full_disk_does_not_take_the_name_of_its_holder(tmp_path, monkeypatch, capsys):
    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    assert lock_folder(tmp_path) is not None
    assert "cannot say who holds it (No space left on device)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_result_that_cannot_be_read_is_none(text, tmp_path):
    path = tmp_path / "result.json"
    assert steps_of_result(path) is None
    path.write_text(text)
    assert steps_of_result(path) is None
    path.write_text(json.dumps({"steps": 7}))
    assert steps_of_result(path) == 7


@pytest.mark.parametrize(
    ("batch", "most", "chosen", "ranks", "is_warning", "expected"),
    [
        (128, 256, 128, 1, False, "train.images_per_device 256 → 128: a rank's share of the batch, 128 images"),
        (64, 256, 16, 4, False, "train.images_per_device 256 → 16: a rank's share of the batch, 16 images"),
        (100, 64, 50, 1, False, "64 → 50: a rank's share of the batch, 100 images, divides into no larger"),
        (62, 16, 2, 1, True, "BatchNorm sees 2 at a time; a batch of 48 or 64 would be cut as asked"),
        (106, 40, 1, 2, True, "BatchNorm sees 1 at a time; a batch of 80 or 160 would be cut as asked"),
    ],
)
def test_smaller_micro_batches_than_asked_for_are_told(batch, most, chosen, ranks, is_warning, expected):
    line = in_one_line(lowered_line(TrainOptions(batch_size=batch, images_per_device=most), chosen, ranks))
    assert expected in line
    assert line.startswith("warning: ") == is_warning


def test_the_waits_of_sync_batch_norm_are_told():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(make_trunk("resnet50").classifier)
    assert "waits for the GPU 159 times a forward pass" in sync_batch_norm_line(model)


def finetuning(*words: str) -> FinetuneConfig:
    sizes = ["--val-resize-size", "20", "22", "24", "data.val_crop_size=20", "--weights", "some.pt"]
    return parse_command_line(FinetuneConfig, [*sizes, *words], "")


def test_the_largest_batch_is_one_of_training_or_of_an_evaluation():
    """An evaluation has a crop for each size."""
    words = ["data.train_crop_size=32", "--batch-size", "8"]
    training, evaluation = 8 * 3 * 32**2, 10 * 3 * (3 * 20**2)
    assert largest_batch_bytes(finetuning(*words, "data.val_batch_size=1"), 1) == training
    assert largest_batch_bytes(finetuning(*words, "data.val_batch_size=10"), 1) == evaluation
    large = ["--batch-size", "4096", "data.val_batch_size=10", "--eval-only"]
    assert largest_batch_bytes(finetuning(*large), 1) == evaluation


@pytest.mark.parametrize(("most", "ranks", "images"), [(None, 4, 16), (8, 4, 8), (256, 4, 16), (1, 1, 1)])
def test_a_batch_of_training_is_a_ranks_share_at_most(most, ranks, images):
    train = TrainOptions(batch_size=64, images_per_device=most)
    assert largest_batch_bytes(PretrainConfig(train=train), ranks) == images * 3 * 224**2


def test_what_is_said_of_a_folder_is_broken_into_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "mine", "ant/1.png", "a name that is long enough.txt", "an image beside the folders.png")
    touch(tmp_path / "mine", "ant/.hidden and long, too", "ant/2.png/a thumbnail of it.png")
    job_on(1).open_folder(lambda: ImageFolder("mine"))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3 and max(map(len, printed.splitlines())) <= WIDTH
    assert in_one_line(printed) == ImageFolder("mine").left_out_line()
