"""Consoles that close, fill, go away or cannot show a name, and impatient users: the run goes on, or saves and ends."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.killing import processes_of, steps_logged
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, small_run, torchrun_command, wait_until
from utils.process import EXIT_REQUEUE
from utils.run.checkpoint import read_checkpoint

# A save that takes a second, so that a signal can come in the middle of it.
SLOW_SAVE = """
import runpy, sys, time
import utils.run.checkpoint as checkpoint
write = checkpoint.write_atomically

def write_slowly(path, fill):
    def filled_slowly(file):
        fill(file)
        time.sleep(3)
    write(path, filled_slowly)

checkpoint.write_atomically = write_slowly
runpy.run_path("pretrain.py", run_name="__main__")
"""


def command(images: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "pretrain.py", *small_run(PRETRAIN, images, output, *more)]


def in_shell(script: str, words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """Run a line of bash in which "$@" is a command; what it writes to stdout and stderr is kept."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip


def start_alone(words: list[str], **options) -> subprocess.Popen:
    """A process in a session of its own, with its terminal or none."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **options)


def newest_step(output: Path) -> int:
    return read_checkpoint(output / "checkpoints/last.pt")["step"]


@pytest.mark.parametrize(
    "script",
    [
        '"$@" > /dev/full',
        '"$@" > /dev/full 2> /dev/full',
        '"$@" >&-',
        '"$@" <&- >&- 2>&-',
        '"$@" | true; exit ${PIPESTATUS[0]}',
        '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}',
        'set -o pipefail; PYTHONIOENCODING=ascii "$@" | cat',
    ],
)
def test_a_training_goes_on_whatever_becomes_of_its_console(script, images, tmp_path):
    finished = in_shell(script, command(images, tmp_path / "out"))
    assert finished.returncode == 0 and "rror" not in finished.stderr, finished.stderr
    assert newest_step(tmp_path / "out") == 2 and (tmp_path / "out/result.json").is_file()


def test_two_ranks_without_a_console_finish(images, tmp_path):
    words = torchrun_command(2, "pretrain.py", *small_run(PRETRAIN, images, tmp_path / "out"))
    finished = in_shell('"$@" > /dev/full', words)
    assert finished.returncode == 0 and newest_step(tmp_path / "out") == 2, finished.stderr


def test_with_closed_descriptors_no_file_takes_their_numbers(tmp_path):
    """What a library writes to descriptor 1 or 2 must not go into a checkpoint."""
    program = (
        "import os, torch\nfrom utils.distributed import run_entry\n"
        "def main(argv):\n    file = open(argv[0], 'wb')\n    os.write(1, b'library')\n    os.write(2, b'library')\n"
        "    return file.fileno() - file.fileno()\n"
        f"run_entry(main, [{str(tmp_path / 'file')!r}])"
    )
    finished = in_shell('"$@" <&- >&- 2>&-', [sys.executable, "-c", program])
    assert finished.returncode == 0 and (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_names_that_no_console_shows_are_escapes(encoding, images, tmp_path):
    (images / "train/ant/0.png").unlink()
    broken = os.fsencode(images / "train/ant") + b"/" + "图像.png".encode("gbk")
    Path(os.fsdecode(broken)).write_bytes(b"no image")
    words = small_run(FINETUNE, images, tmp_path / "out", "data.on_bad_image=skip", "data.val_resize_size=[36]")
    finished = in_shell('"$@"', [sys.executable, "finetune.py", *words], PYTHONIOENCODING=encoding)
    assert finished.returncode == 0, finished.stderr
    assert r"\udccf\udcf1" in finished.stdout  # its last bytes
    checked = in_shell(
        '"$@"', [sys.executable, "scripts/check_data.py", str(images), "--workers", "1"], PYTHONIOENCODING=encoding
    )
    assert checked.returncode == 1 and r"\udccf\udcf1" in checked.stdout, checked.stderr


def test_an_output_folder_of_any_name_can_be_used(images, tmp_path):
    output = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xcd\xbc \xe9"))
    finished = in_shell('"$@"', command(images, output), PYTHONIOENCODING="utf-8")
    assert finished.returncode == 0 and newest_step(output) == 2, finished.stderr
    again = in_shell('"$@"', [*command(images, output), "--resume", "auto"], PYTHONIOENCODING="ascii")
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr


@pytest.mark.parametrize(
    "words", [["pretrain.py", "--help"], ["finetune.py", "--help"], ["scripts/study/study.py", "-h"]]
)
@pytest.mark.parametrize("script", ['PYTHONIOENCODING=ascii "$@" > /dev/null', '"$@" > /dev/full', '"$@" | true'])
def test_help_is_shown_or_lost_without_an_error(script, words):
    finished = in_shell(script, [sys.executable, *words])
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr


def test_a_script_whose_table_is_lost_has_failed():
    words = [sys.executable, "scripts/config_diff.py", "configs/sample_pretrain.yaml", "configs/pretrain_resnet50.yaml"]
    finished = in_shell('"$@" > /dev/full', words)
    assert finished.returncode == 2
    assert finished.stderr == "error: not everything could be printed ([Errno 28] No space left on device)\n"
    assert in_shell('"$@" | true; exit ${PIPESTATUS[0]}', words).returncode == 0


# Terminals and impatient users.


def test_a_terminal_that_goes_away_saves_and_ends_with_the_code_to_requeue_on(images, tmp_path):
    output = tmp_path / "out"
    main, terminal = pty.openpty()
    program = (  # the terminal becomes the session's own, so that its end sends SIGHUP
        "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = [sys.executable, "-c", program, *command(images, output, "schedule.epochs=500")]
    process = start_alone(words, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    wait_for_steps(output, process, main)
    os.close(main)
    assert process.wait(timeout=60) == EXIT_REQUEUE
    assert newest_step(output) == steps_logged(output) < 1000


def wait_for_steps(output: Path, process: subprocess.Popen, terminal: int) -> None:
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 90
    while steps_logged(output) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            os.read(terminal, 10**5)  # or the terminal would be full
        except BlockingIOError:
            time.sleep(0.01)


def test_under_nohup_the_end_of_a_terminal_means_nothing(images, tmp_path):
    output = tmp_path / "out"
    words = ["nohup", *command(images, output, "schedule.epochs=5")]
    process = start_alone(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: steps_logged(output) >= 2, [process])
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0 and newest_step(output) == 10


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_ctrl_c_during_a_save_waits_for_it(ranks, images, tmp_path):
    output, program, errors = tmp_path / "out", tmp_path / "program.py", tmp_path / "stderr"
    program.write_text(SLOW_SAVE)
    words = small_run(PRETRAIN, images, output, "schedule.epochs=500")
    if ranks == 1:
        words = [sys.executable, str(program), *words]
    else:
        words = torchrun_command(2, str(program), *words)
    with open(errors, "w") as file:
        process = start_alone(words, stdout=subprocess.DEVNULL, stderr=file)
    wait_until(lambda: steps_logged(output) >= 3, [process])
    process.send_signal(signal.SIGINT)
    wait_until(lambda: [*output.glob("checkpoints/*.tmp")], [process])
    time.sleep(1.2)  # more than one keypress takes
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    if ranks == 1:
        assert code == EXIT_REQUEUE and errors.read_text() == ""
    deadline = time.monotonic() + 30
    while processes_of(output):  # torchrun did not wait, but its rank finishes what it was asked for
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert newest_step(output) == steps_logged(output) and not [*output.glob("checkpoints/*.tmp")]


def test_a_rank_that_was_asked_to_stop_saves_even_if_its_launcher_is_killed(images, tmp_path):
    """Before it is asked, a rank dies with its launcher; after it, the save comes first."""
    output, program = tmp_path / "out", tmp_path / "program.py"
    program.write_text(SLOW_SAVE)
    words = torchrun_command(2, str(program), *small_run(PRETRAIN, images, output, "schedule.epochs=500"))
    process = start_alone(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: steps_logged(output) >= 3, [process])
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: [*output.glob("checkpoints/*.tmp")], [process])
    process.kill()
    deadline = time.monotonic() + 60
    while processes_of(output):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert newest_step(output) == steps_logged(output) and not [*output.glob("checkpoints/*.tmp")]


def test_the_same_ctrl_c_twice_is_one(images, tmp_path):
    output = tmp_path / "out"
    process = start_alone(command(images, output, "schedule.epochs=500"), stdout=subprocess.DEVNULL)
    wait_until(lambda: steps_logged(output) >= 3, [process])
    for _ in range(3):  # as by a launcher that passes it on, beside the terminal
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == EXIT_REQUEUE and newest_step(output) == steps_logged(output)


def test_ctrl_c_on_a_pipeline_saves(images, tmp_path):
    """The reader is gone before the rank prints its next line."""
    output = tmp_path / "out"
    line = f"{shlex.join(command(images, output, 'schedule.epochs=500'))} 2>&1 | tee {tmp_path / 'log'}"
    process = start_alone(["bash", "-c", line], stdout=subprocess.DEVNULL)
    wait_until(lambda: steps_logged(output) >= 3, [process])
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while processes_of(output):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert newest_step(output) == steps_logged(output)
    assert "Error" not in (tmp_path / "log").read_text()
