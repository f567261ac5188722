"""Jobs that cannot start, or end by an error: what is printed, by which rank, and how often."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_disks import needs_unshare
from tests.support.killing import family_of, steps_logged
from tests.support.launch import (
    PRETRAIN,
    ROOT,
    endings,
    in_one_line,
    overriding,
    small_run,
    start,
    start_ranks,
    start_torchrun,
    torchrun,
    wait_until,
)


def assert_ends_with_one_error(printed: str, message: str) -> None:
    """The error is the last thing said, once, in at most three lines of 100 characters, with rank and host."""
    assert "stopped on request" not in printed and printed.count("] error: ") == 1, printed
    lines = printed.rstrip().splitlines()
    [first] = [number for number, line in enumerate(lines) if "] error: " in line]
    last = len(lines) - 1 if set(lines[-1]) == {"="} else len(lines)  # torchrun's frame
    said = lines[first:last]
    assert re.match(rf"\s*\[rank \d on {re.escape(socket.gethostname())}\] error: ", said[0]), printed
    assert 1 <= len(said) <= 3 and message in in_one_line(" ".join(said)), printed
    assert all(len(line) <= 102 or "/" in line for line in said), said  # a path stays whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0.1"], "--lr: unknown; write optimizer.learning_rate=0.1"),
        ([], "usage: "),
        (["--config", str(ROOT / "configs/finetune_resnet50_bce.yaml")], "this is a config of finetune.py"),
        ([*PRETRAIN, "--data-path", "/absent"], "/absent/train: no such image folder"),
    ],
)
def test_an_error_that_all_ranks_meet_is_told_once_at_the_end(words, message, tmp_path):
    more = ["--output-dir", str(tmp_path)] if words[1:2] != ["0.1"] and words else []
    code, printed = torchrun(2, "pretrain.py", *words, *more)
    assert code == 1
    assert_ends_with_one_error(printed, message)


def test_an_error_of_one_rank_is_told_once_at_the_end(images, tmp_path):
    """The other rank waits in an exchange, and torchrun sends it a signal that nobody has asked for."""
    (images / "train/bee/3.png").write_bytes(b"broken")
    code, printed = torchrun(2, "pretrain.py", *small_run(PRETRAIN, images, tmp_path / "out"))
    assert code == 1
    assert_ends_with_one_error(printed, "bee/3.png: not a readable image")


FAULT_IN_RANK_1 = """
import os, runpy
import utils.training.hooks as hooks
def fail(*_):
    if os.environ["RANK"] == "1":
        raise KeyError("a fault")
hooks.run_due = fail
runpy.run_path("pretrain.py", run_name="__main__")
"""
RANK_0_WOULD_END_FIRST = """
import os, runpy, time
import utils.launcher as launcher
import utils.training.hooks as hooks
tell_torchrun = launcher.tell_torchrun
def tell_and_end_late(message):
    is_shown_by_torchrun = tell_torchrun(message)
    time.sleep(1)
    return is_shown_by_torchrun
def fail(*_):
    if os.environ["RANK"] == "1":
        raise KeyError("a fault")
    time.sleep(0.5)
    raise KeyError("what follows from it")
launcher.tell_torchrun = tell_and_end_late
hooks.run_due = fail
runpy.run_path("pretrain.py", run_name="__main__")
"""


@pytest.mark.parametrize("content", [FAULT_IN_RANK_1, RANK_0_WOULD_END_FIRST], ids=["one", "the other ends first"])
def test_a_fault_of_the_code_in_one_rank_is_told_once_at_the_end(content, images, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(content)
    words = small_run(PRETRAIN, images, tmp_path / "out")
    process = start(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program), *words],
        PYTHONPATH=str(ROOT),
    )
    [(code, printed)] = endings([process])
    assert code == 1 and printed.count("KeyError: 'a fault'") == 1, printed
    assert printed.rstrip().splitlines()[-2].strip() == "KeyError: 'a fault'"
    assert "[rank 1 on " in printed and "error: " not in printed.partition("[rank 1 on ")[2]


@pytest.mark.parametrize("training", [False, True])
def test_where_a_rank_is_killed_no_other_says_that_it_was_asked_to_stop(training, images, tmp_path):
    output = tmp_path / "out"
    launcher = start_torchrun(2, "pretrain.py", *small_run(PRETRAIN, images, output, "schedule.epochs=500"))
    if training:
        wait_until(lambda: steps_logged(output) >= 2, [launcher])
    else:  # one rank has joined and waits for the other
        wait_until(lambda: len(family_of(launcher.pid, output).ranks) == 2, [launcher])
    os.kill(family_of(launcher.pid, output).ranks[1], signal.SIGKILL)
    [(code, printed)] = endings([launcher])
    assert code == 1 and "stopped on request" not in printed and "Signal 9 (SIGKILL)" in printed, printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_stop_during_the_start_is_told_as_one(number, images, tmp_path):
    program, flag = tmp_path / "program.py", tmp_path / "flag"
    program.write_text(
        "import pathlib, runpy, time\nimport utils.run.job as job\n"
        f"job.find_resume = lambda *_: (pathlib.Path({str(flag)!r}).touch(), time.sleep(60))\n"
        "runpy.run_path('pretrain.py', run_name='__main__')"
    )
    words = [sys.executable, str(program), *small_run(PRETRAIN, images, tmp_path / "out")]
    process = start(words, PYTHONPATH=str(ROOT))
    wait_until(flag.exists, [process])
    process.send_signal(number)
    [(code, printed)] = endings([process])
    assert code == 75 and printed.startswith("stopped on request, outside of training steps"), printed
    assert len(printed.splitlines()) == 1


def test_a_taken_port_is_told_before_the_ranks_have_joined(images, tmp_path):
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        words = [sys.executable, "pretrain.py", *small_run(PRETRAIN, images, tmp_path / "out")]
        [(code, printed)] = endings([start(words, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **rank)])
    assert code == 2 and "Traceback" not in printed, printed
    assert_ends_with_one_error(printed, f"MASTER_PORT = {port}: taken on this machine; end the job that has it")


def test_ranks_that_never_come_are_told(images, tmp_path):
    words = small_run(PRETRAIN, images, tmp_path / "out", "run.timeout_minutes=0.05")
    ranks = start_ranks(2, "pretrain.py", *words)
    ranks[1].kill()
    (code, printed), _ = endings(ranks)
    assert code == 2 and "no meeting with the other ranks there" in in_one_line(printed), printed


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_a_rank_without_a_launcher_is_told(name, images, tmp_path):
    words = [sys.executable, "pretrain.py", *small_run(PRETRAIN, images, tmp_path / "out")]
    [(code, printed)] = endings([start(words, **{name: "1"})])
    assert code == 2 and f"error: {name} set, but not" in printed and "torchrun" in printed, printed


def with_few_files(limits: tuple[int, int], words: list[str]) -> subprocess.CompletedProcess:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    return subprocess.run(
        [sys.executable, "pretrain.py", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_too_few_open_files_are_raised_where_that_is_allowed_and_told_where_not(images, tmp_path):
    finished = with_few_files((40, 4096), small_run(PRETRAIN, images, tmp_path / "a", "data.workers=2"))
    assert finished.returncode == 0, finished.stderr
    finished = with_few_files((60, 60), small_run(PRETRAIN, images, tmp_path / "b", "data.workers=2"))
    assert finished.returncode == 2 and "Traceback" not in finished.stderr, finished.stderr
    assert "data.workers = 2: needs about 75 open files, and 60 are allowed" in in_one_line(finished.stderr)
    assert len(finished.stderr.splitlines()) <= 3


@needs_unshare
@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("mount -t tmpfs -o size=16k none /dev/shm", "takes 0 MiB of /dev/shm, where 0 are free"),
        ("mount -t tmpfs -o ro none /dev/shm", "cannot be written (Read-only file system)"),
    ],
)
def test_shared_memory_that_is_tiny_or_read_only_is_told(mount, message, images, tmp_path):
    words = [sys.executable, "pretrain.py", *small_run(PRETRAIN, images, tmp_path / "out", "data.workers=2")]
    for more, code in (([], 2), (["data.workers=0"], 0)):
        finished = subprocess.run(
            ["unshare", "-rm", "bash", "-c", f'{mount} || exit 99; "$@"', "bash", *overriding(words, *more)],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        if finished.returncode == 99 or finished.stderr.startswith("unshare"):
            pytest.skip(f"needs a mount namespace: {finished.stderr.strip()[:200]}")
        assert finished.returncode == code, finished.stderr
        if code:
            assert message in in_one_line(finished.stderr) and "Traceback" not in finished.stderr
            assert "--shm-size" in finished.stderr and len(finished.stderr.splitlines()) <= 3


def test_shared_memory_that_fills_later_is_told(images, tmp_path):
    """For real, in a worker: the check at the start has been passed."""
    program = Path(tmp_path / "program.py")
    program.write_text(
        "import runpy\nimport utils.run.job as job\njob.check_loader_limits = lambda *_: None\n"
        "runpy.run_path('pretrain.py', run_name='__main__')"
    )
    large = ["data.workers=1", "train.images_per_device=8", "data.train_crop_size=64"]
    words = [sys.executable, str(program), *small_run(PRETRAIN, images, tmp_path / "out", *large)]
    script = 'mount -t tmpfs -o size=80k none /dev/shm || exit 99; "$@"'
    finished = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    if finished.returncode == 99 or finished.stderr.startswith("unshare"):
        pytest.skip(f"needs a mount namespace: {finished.stderr.strip()[:200]}")
    assert finished.returncode == 2 and "error: /dev/shm, through which" in finished.stderr, finished.stderr
