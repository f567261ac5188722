"""The folder of a run: which names are refused, and what a lock needs."""

from __future__ import annotations

import errno
import fcntl
import json
import os

import pytest

from utils.errors import UserError
from utils.run.job import check_output_folder, lock_folder, steps_of_result


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


@pytest.mark.parametrize("place", ["run", "database", "data/runs/x", "data", "disk/run", "data/../run", "not/yet"])
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
