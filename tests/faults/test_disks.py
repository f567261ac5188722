"""Disks that are full, read-only or refuse a file."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.launch import PRETRAIN, ROOT, in_one_line, small_run
from utils.distributed import explain
from utils.errors import UserError
from utils.files import write_atomically
from utils.run.checkpoint import Checkpoints, read_checkpoint

FULL_DISK = """
import os, runpy, sys
import utils.run.checkpoint
save = utils.run.checkpoint.Checkpoints.save
output = sys.argv[sys.argv.index("--output-dir") + 1]

def save_on_a_disk_that_fills_and_empties(self, step, content):
    fill = output + "/fill"
    if step == 2:  # half a checkpoint still fits
        with open(fill, "wb") as file:
            free = os.statvfs(output).f_bavail * os.statvfs(output).f_frsize
            file.write(bytes(max(0, free - utils.run.checkpoint.size_of(content) // 2)))
    elif os.path.exists(fill):
        os.remove(fill)
    return save(self, step, content)

utils.run.checkpoint.Checkpoints.save = save_on_a_disk_that_fills_and_empties
runpy.run_path("pretrain.py", run_name="__main__")
"""
FAILED_SAVE = r"step_00000002\.pt: cannot be saved \(.*[\d,]+ bytes needed, [\d,]+ free.*from .*step_00000001\.pt"


def assert_matches(pattern: str, text: str) -> None:
    """The pattern occurs in the text, wherever its lines end."""
    assert re.search(pattern, in_one_line(text)), text


def run_on_a_disk_that_fills(images: Path, folder: Path, on_save_error: str) -> tuple[subprocess.CompletedProcess, int]:
    """Four steps, with a checkpoint after each, on a disk of 450 MB that is full at the second.

    Returns: the finished process, which lists its checkpoints at the end; the step of its newest checkpoint.
    """
    disk, program, newest = folder / "disk", folder / "program.py", folder / "newest.pt"
    disk.mkdir()
    program.write_text(FULL_DISK)
    more = ["checkpoint.every_steps=1", "checkpoint.keep=1", "schedule.epochs=2"]
    words = small_run(PRETRAIN, images, disk / "run", *more, f"checkpoint.on_save_error={on_save_error}")
    script = f"""
        mount -t tmpfs -o size=450m none "{disk}" && mkdir "{disk}/run" || exit 99
        "$@"; code=$?
        ls "{disk}/run/checkpoints"; cp "{disk}/run/checkpoints/last.pt" "{newest}"; exit $code"""
    finished = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", sys.executable, str(program), *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if finished.returncode == 99 or finished.stderr.startswith("unshare"):
        pytest.skip(f"needs a mount namespace: {finished.stderr.strip()[:200]}")
    return finished, read_checkpoint(newest)["step"]


needs_unshare = pytest.mark.skipif(
    not shutil.which("unshare"), reason="needs a mount namespace: unshare, of util-linux"
)


@needs_unshare
def test_a_full_disk_leaves_the_earlier_checkpoint_and_stops_the_run(images, tmp_path):
    finished, newest_step = run_on_a_disk_that_fills(images, tmp_path, "stop")
    assert finished.returncode == 2, finished.stderr
    assert_matches("error: .*" + FAILED_SAVE, finished.stderr)
    assert finished.stdout.split()[-2:] == ["last.pt", "step_00000001.pt"]
    assert newest_step == 1


@needs_unshare
def test_a_run_may_go_on_over_a_full_disk(images, tmp_path):
    finished, newest_step = run_on_a_disk_that_fills(images, tmp_path, "continue")
    assert finished.returncode == 0, finished.stderr
    assert_matches("warning: .*" + FAILED_SAVE, finished.stdout)
    assert finished.stdout.split()[-2:] == ["last.pt", "step_00000004.pt"]
    assert newest_step == 4


def test_the_last_save_must_not_fail_even_where_others_may(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    saver = Checkpoints(tmp_path / "checkpoints", 3, None, 15, "continue")
    message = saver.attempt(5, {"model": {"weight": torch.zeros(10)}}, required=False)
    assert_matches(r"^warning: .*step_00000005\.pt: cannot be saved .*\b40 bytes needed, .*\(from the start\)", message)
    with pytest.raises(UserError, match="cannot be saved"):
        saver.attempt(5, {}, required=True)


def in_another_process(task: Callable, *arguments) -> object:
    """What `task(*arguments)` returns in a forked process, whose user and limits it may change."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def run_and_answer():
        queue.put(task(*arguments))

    process = context.Process(target=run_and_answer)
    process.start()
    process.join()
    assert process.exitcode == 0
    return queue.get()


def write_beyond_the_limit(path: Path) -> tuple[str, str | None]:
    """Write 1000 bytes where 100 are allowed. Returns: the file that the error names, and its explanation."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        write_atomically(path, lambda file: file.write(bytes(1000)))
    except OSError as error:
        return error.filename, explain(error)
    raise AssertionError("it was written")


def test_what_a_disk_refuses_is_named_whatever_file_it_is(tmp_path):
    path = tmp_path / "result.json"
    name, explanation = in_another_process(write_beyond_the_limit, path)
    assert name == str(path)
    assert explanation.startswith(f"{path}: File too large") and "fix this, then" in explanation
    assert not [*tmp_path.iterdir()]


def save_as_nobody(saver: Checkpoints) -> str:
    os.setuid(65534)
    try:
        saver.save(10, {"model": {}})
    except UserError as error:
        return str(error)
    return "written"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_read_only_folder_is_named_and_its_checkpoints_stay(tmp_path):
    saver = Checkpoints(tmp_path / "checkpoints", 1, None, 15)
    saver.save(5, {"model": {}})
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path, tmp_path / "checkpoints"):
        path.chmod(0o755)
    message = in_another_process(save_as_nobody, saver)
    assert_matches(r"step_00000010\.pt: cannot be saved \(.*Permission denied.*from .*step_00000005\.pt", message)
    assert read_checkpoint(tmp_path / "checkpoints/last.pt")["step"] == 5
