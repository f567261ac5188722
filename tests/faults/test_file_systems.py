"""File systems that lack something: symbolic links, hard links, a flush of folders, inodes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.comparing import state_of, unequal
from tests.support.launch import PRETRAIN, ROOT, in_one_line, pretrain, small_run
from utils.errors import UserError
from utils.files import free_space, write_atomically
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.resume import find_resume

CONTENT = {"model": {"w": torch.ones(3)}}


def refusing(number: int):
    def refuse(*arguments, **_keywords):
        raise OSError(number, os.strerror(number), str(arguments[0]))

    return refuse


@pytest.fixture(params=[errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def no_symbolic_links(request, monkeypatch):
    monkeypatch.setattr(os, "symlink", refusing(request.param))


@pytest.fixture
def no_links(no_symbolic_links, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_symbolic_links_last_is_a_hard_link_to_the_newest(no_symbolic_links, tmp_path):
    saver = Checkpoints(tmp_path, 2, None, 15)
    for step in (1, 2, 3):
        path = saver.save(step, CONTENT)
        assert os.path.samefile(tmp_path / "last.pt", path) and not (tmp_path / "last.pt").is_symlink()
    assert names(tmp_path) == ["last.pt", "step_00000002.pt", "step_00000003.pt"]
    saver.save(3, CONTENT | {"again": True})
    assert read_checkpoint(tmp_path / "last.pt")["again"]
    saver.set_aside_after(2)
    assert names(tmp_path) == ["last.pt", "step_00000002.pt", "step_00000003.pt.abandoned"]
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 2
    saver.point_last_at(saver.newest())  # what it is already
    assert names(tmp_path) == ["last.pt", "step_00000002.pt", "step_00000003.pt.abandoned"]


def test_without_any_links_there_is_no_last_one_warning_and_all_else_as_ever(no_links, tmp_path, capsys):
    saver = Checkpoints(tmp_path, 2, None, 15, "continue")
    for step in (1, 2, 3):
        assert saver.attempt(step, CONTENT, required=True).startswith("saved ")
    assert names(tmp_path) == ["step_00000002.pt", "step_00000003.pt"]
    assert in_one_line(capsys.readouterr().out).count("no link can be made there") == 1
    assert find_resume(saver, "auto") == tmp_path / "step_00000003.pt"


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run_and_goes_later(tmp_path, monkeypatch, capsys):
    """Somebody has it open, over SMB."""
    saver = Checkpoints(tmp_path, 1, None, 15)
    first = saver.save(1, CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(errno.EBUSY))
        saver.save(2, CONTENT)
    assert f"warning: {first}: cannot be removed (Device or resource busy)" in in_one_line(capsys.readouterr().out)
    saver.save(3, CONTENT)
    assert names(tmp_path) == ["last.pt", "step_00000003.pt"]


def test_a_link_of_an_earlier_file_system_does_not_stay_behind(no_links, tmp_path):
    """A folder that was copied: its last.pt is an older checkpoint's copy."""
    torch.save({"model": {}, "step": 1}, tmp_path / "last.pt")
    Checkpoints(tmp_path, 2, None, 15).save(2, CONTENT)
    assert names(tmp_path) == ["step_00000002.pt"]


def test_a_run_without_links_resumes_bit_for_bit(images, no_links, tmp_path):
    words = ["checkpoint.every_steps=1", "schedule.epochs=2", "--resume", "auto"]
    command = small_run(PRETRAIN, images, tmp_path / "out", *words)
    assert pretrain(command) == 0
    folder = tmp_path / "out/checkpoints"
    undisturbed = state_of(folder / "step_00000004.pt")
    (folder / "step_00000004.pt").unlink()
    (tmp_path / "out/result.json").unlink()
    assert pretrain(command) == 0
    assert unequal(state_of(folder / "step_00000004.pt"), undisturbed) == []


def refuse_to_flush_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_flushed_is_no_error(number, tmp_path, monkeypatch):
    refuse_to_flush_folders(monkeypatch, number)
    write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert (tmp_path / "file").read_bytes() == b"whole" and names(tmp_path) == ["file"]


def test_a_disk_that_fails_while_a_folder_is_flushed_is_an_error_and_no_descriptor_leaks(tmp_path, monkeypatch):
    refuse_to_flush_folders(monkeypatch, errno.EIO)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert caught.value.filename == str(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file", lambda file: file.write(b"whole"))
    assert names(tmp_path) == []


NO_INODES = """
import sys
from pathlib import Path
from utils.distributed import explain
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints
from utils.run.provenance import write_json
from utils.run.log import RunLog
from utils.distributed import World
import torch

disk = Path(sys.argv[1])
(disk / "run/checkpoints").mkdir(parents=True)
log = RunLog(disk / "run", World(0, 1, 1, torch.device("cpu")), every_steps=1, first_step=0, total_steps=2,
             steps_per_epoch=2, batch_size=1)
for number in range(1000):
    try:
        (disk / str(number)).touch()
    except OSError:
        break
for attempt in (lambda: Checkpoints(disk / "run/checkpoints", 3, None, 15).save(1, {"model": {}}),
                lambda: write_json(disk / "run/result.json", {})):
    try:
        attempt()
    except (UserError, OSError) as error:
        print(explain(error))
log.write([{"step": 1}])
(disk / "0").unlink()
log.write([{"step": 2}])
print((disk / "run/log.jsonl").read_text())
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a mount namespace: unshare, of util-linux")
def test_a_disk_without_inodes_is_told_from_a_full_one(tmp_path):
    """100 inodes and 50 MB: everything is free but names. The log keeps its lines until there is one."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "program.py").write_text(NO_INODES)
    script = f'mount -t tmpfs -o size=50m,nr_inodes=100 none "{tmp_path}/disk" || exit 99; exec "$@"'
    finished = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", sys.executable, str(tmp_path / "program.py"),
         str(tmp_path / "disk")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if finished.returncode == 99 or finished.stderr.startswith("unshare"):
        pytest.skip(f"needs a mount namespace: {finished.stderr.strip()[:200]}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("bytes free, but no inodes: all 100 are in use; remove some files") == 2
    for refusal in (
        "step_00000001.pt: cannot be saved",
        "result.json.tmp: No space left",
        "log.jsonl: cannot be written",
    ):
        assert refusal in in_one_line(finished.stdout)
    assert finished.stdout.endswith('{"step": 1}\n{"step": 2}\n\n')


def test_space_is_told_in_bytes_where_inodes_are_left_or_not_counted(tmp_path, monkeypatch):
    assert free_space(tmp_path).replace(",", "").removesuffix(" free").isdigit()
    assert free_space(tmp_path / "nowhere") == "how much is free is unknown"

    class Btrfs:
        f_files = f_favail = 0

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(9, 5, 4))
    monkeypatch.setattr(os, "statvfs", lambda _path: Btrfs)
    assert free_space(tmp_path) == "4 free"


@pytest.mark.parametrize("place", ["images/train/run", "images", "file"])
def test_a_run_does_not_start_in_a_place_that_is_none(images, place, tmp_path):
    (tmp_path / "file").touch()
    before = sorted(images.rglob("*"))
    with pytest.raises(UserError, match=r"run\.output_dir = .*give an"):
        pretrain(small_run(PRETRAIN, images, tmp_path / place))
    assert sorted(images.rglob("*")) == before
