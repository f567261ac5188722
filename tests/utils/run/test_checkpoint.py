"""Checkpoints: whole or not there, read without running what they hold, and refused with a reason."""

import os
import time
import zipfile

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.files import write_atomically
from utils.run.checkpoint import Checkpoints, newest_for_last, read_checkpoint


def content(value=1.0):
    return {"model": {"weight": torch.full((50, 3), value)}, "config": {"data": {"mean": [0.4] * 3}}, "classes": ["é"]}


def checkpoints(folder, keep=3, every_steps=None, every_minutes=1e9):
    return Checkpoints(folder / "checkpoints", keep, every_steps, every_minutes)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class Bomb:
    """Cannot be pickled, as if the disk were full."""

    def __reduce__(self):
        raise OSError("No space left on device")


# Saving.


def test_what_is_saved_is_read_back(tmp_path):
    path = checkpoints(tmp_path).save(7, content())
    assert path.name == "step_00000007.pt"
    for name in (path, str(path), path.parent / "last.pt"):
        saved = read_checkpoint(name)
        assert saved.keys() == {"model", "config", "classes", "step"}
        assert (saved["step"], saved["classes"], saved["config"]["data"]["mean"]) == (7, ["é"], [0.4, 0.4, 0.4])
        assert torch.equal(saved["model"]["weight"], torch.ones(50, 3))


def test_the_newest_are_kept_and_the_link_follows(tmp_path):
    saver = checkpoints(tmp_path, keep=2)
    assert saver.newest() is None and saver.all() == []
    for step in (5, 10, 100, 2000):
        saver.save(step, content())
        assert os.readlink(tmp_path / "checkpoints/last.pt") == f"step_{step:08d}.pt"
    assert names(tmp_path) == ["last.pt", "step_00000100.pt", "step_00002000.pt"]
    assert [path.name for path in saver.all()] == ["step_00000100.pt", "step_00002000.pt"]
    assert saver.newest() == saver.folder / "step_00002000.pt"


def test_the_folder_may_be_moved(tmp_path):
    checkpoints(tmp_path / "run").save(5, content())
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert read_checkpoint(tmp_path / "elsewhere/checkpoints/last.pt")["step"] == 5


def test_a_step_saved_again_is_replaced(tmp_path):
    saver = checkpoints(tmp_path, keep=1)
    for value in (1.0, 2.0):
        saver.save(5, content(value))
        assert names(tmp_path) == ["last.pt", "step_00000005.pt"]
        assert read_checkpoint(saver.newest())["model"]["weight"][0, 0] == value


def test_the_one_just_saved_stays_even_if_later_ones_are_there(tmp_path):
    saver = checkpoints(tmp_path, keep=1)
    saver.save(100, content())
    path = saver.save(50, content())
    assert path.exists()
    assert read_checkpoint(tmp_path / "checkpoints/last.pt")["step"] == 50


def test_checkpoints_of_a_branch_that_is_given_up_are_set_aside(tmp_path):
    saver = checkpoints(tmp_path, keep=5)
    for step in (5, 10, 15):
        saver.save(step, content())
    saver.set_aside_after(5)
    assert [path.name for path in saver.all()] == ["step_00000005.pt"]
    assert read_checkpoint(saver.folder / "last.pt")["step"] == 5
    saver.save(10, content(2.0))
    assert read_checkpoint(saver.newest())["model"]["weight"][0, 0] == 2
    assert read_checkpoint(saver.folder / "step_00000015.pt.abandoned")["step"] == 15


def test_other_files_are_neither_counted_nor_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    others = ["best.pt", "step_1.pt.tmp", "step_abc.pt", "step_00000009.pt.bak", "step_7.pt"]
    for name in others:
        (folder / name).touch()
    saver = checkpoints(tmp_path, keep=1)
    assert saver.newest() is None
    for step in (1, 2):
        saver.save(step, content())
    assert names(tmp_path) == sorted([*others, "last.pt", "step_00000002.pt"])


@pytest.mark.parametrize("step", [10, 5])
def test_a_failing_write_leaves_the_earlier_checkpoint(tmp_path, step):
    """At a later step, and at the very step of the earlier one."""
    saver = checkpoints(tmp_path, keep=1)
    saver.save(5, content())
    with pytest.raises(UserError, match=r"(?s)cannot be saved \(No space left.* bytes needed, .* free"):
        saver.save(step, content(2.0) | {"ema": [torch.zeros(2000), Bomb()]})
    assert [path.name for path in saver.all()] == ["step_00000005.pt"]
    for path in (saver.newest(), saver.folder / "last.pt"):
        assert torch.equal(read_checkpoint(path)["model"]["weight"], torch.ones(50, 3))
    saver.save(step, content(3.0))
    assert names(tmp_path) == ["last.pt", f"step_{step:08d}.pt"]
    assert read_checkpoint(saver.folder / "last.pt")["model"]["weight"][0, 0] == 3


def test_an_end_before_the_link_is_renamed_leaves_the_old_link(tmp_path, monkeypatch):
    saver = checkpoints(tmp_path)
    saver.save(5, content())
    rename = os.replace

    def fail_on_link(source, target):
        if os.path.basename(target) == "last.pt":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_on_link)
    with pytest.raises(KeyboardInterrupt):
        saver.save(10, content())
    monkeypatch.undo()
    assert read_checkpoint(saver.folder / "last.pt")["step"] == 5
    saver.save(15, content())
    assert read_checkpoint(saver.folder / "last.pt")["step"] == 15


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file"

    def write(file):
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" whole")

    write_atomically(path, write)
    assert path.read_bytes() == b"half whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("every_steps", "expected"), [(3, [3, 6, 9]), (1, list(range(1, 11))), (None, [])])
def test_due_by_steps(tmp_path, every_steps, expected):
    saver = checkpoints(tmp_path, every_steps=every_steps)
    assert [step for step in range(1, 11) if saver.due(step)] == expected


def test_due_by_minutes_since_the_last_save(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saver = checkpoints(tmp_path, every_minutes=2.0)
    dues = []
    for step in range(1, 10):
        now[0] += 50
        dues.append(saver.due(step))
        if dues[-1]:
            saver.save(step, content())
    assert dues == [False, False, True] * 3


# Reading.


@pytest.fixture
def saved(tmp_path):
    return checkpoints(tmp_path).save(5, content())


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x80
    path.write_bytes(data)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip_in_weights(path):
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    flip(path, path.read_bytes().index(torch.ones(150).numpy().tobytes()) + 77)
    assert entry.file_size == 600


def unlink_and(make):
    def change(path):
        path.unlink()
        make(path)

    return change


def zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")


@pytest.mark.parametrize(
    ("damage", "reason"),
    {
        "missing": (lambda path: path.unlink(), "no such checkpoint; .*last.pt"),
        "folder": (unlink_and(lambda path: path.mkdir()), "a folder, not a checkpoint; .*last.pt"),
        "dangling link": (unlink_and(lambda path: path.symlink_to("gone.pt")), "no such checkpoint"),
        "empty": (lambda path: cut(path, 0), "empty; copy or download it again"),
        "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "not a checkpoint"),
        "HTML": (lambda path: path.write_text("<!DOCTYPE html>" + "<p>404</p>" * 500), "you downloaded the web page"),
        "another zip": (zip_of_text, "not a checkpoint"),
        "truncated": (lambda path: cut(path, 0.7), "cut short"),
        "last bytes gone": (lambda path: cut(path, 0.995), "cut short"),
        "flipped weight": (flip_in_weights, r"damaged \(checksum of .*/data/0\); use an earlier checkpoint"),
        "a list": (lambda path: torch.save([1], path), "holds a list, not a checkpoint"),
        "a tensor": (lambda path: torch.save(torch.ones(2), path), "holds a Tensor, not a checkpoint"),
        "numpy scalar": (lambda path: torch.save({"loss": np.float64(1)}, path), "refused: holds more than tensors"),
        "a whole model": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "refused: holds more than tensors"),
    }.values(),
)
def test_what_is_no_checkpoint_is_refused_with_a_reason(saved, damage, reason):
    damage(saved)
    with pytest.raises(UserError, match=reason) as caught:
        read_checkpoint(saved)
    assert str(caught.value).startswith(f"{saved}: ")
    assert "\n" not in str(caught.value)


def equal(one, other):
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_no_flipped_bit_anywhere_passes_for_a_weight(saved):
    """Either the content is what it was (the bit was padding), or the file is refused by a UserError."""
    whole, expected = saved.read_bytes(), read_checkpoint(saved)
    for position in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[position] ^= 1 << position // 2 % 8
        saved.write_bytes(changed)
        try:
            found = read_checkpoint(saved)
        except UserError:
            continue
        assert equal(found, expected), position


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, nested, zipped):
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    evil = content() | {"optimizer": [{"state": (Evil(marker),)}]} if nested else Evil(marker)
    torch.save(evil, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert marker.exists()  # it is armed
    marker.unlink()
    with pytest.raises(UserError, match=r"evil\.pt: (refused|not a checkpoint)"):
        read_checkpoint(path)
    assert not marker.exists()


def test_last_pt_means_the_newest_where_there_is_no_link(tmp_path):
    saver = Checkpoints(tmp_path, 3, None, 15)
    for step in (1, 2):
        saver.save(step, {"name": step})
    last = tmp_path / "last.pt"
    last.unlink()
    assert read_checkpoint(last)["name"] == read_checkpoint(str(last))["name"] == 2
    assert newest_for_last(last) == tmp_path / "step_00000002.pt"
    last.symlink_to("step_00000009.pt")  # a link to what was removed is no reason to take another
    with pytest.raises(UserError, match=r"last\.pt: no such checkpoint"):
        read_checkpoint(last)
