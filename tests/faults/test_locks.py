"""Two jobs that want the same folder."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.support.launch import PRETRAIN, pretrain, small_run
from utils.errors import UserError
from utils.run.job import lock_folder


def hold(folder: Path, ready, end) -> None:
    lock = lock_folder(folder)
    ready.set()
    end.wait()
    del lock


def test_a_second_job_is_refused_while_the_first_lives_and_not_after_its_kill(images, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "out", ready, end), daemon=True)
    first.start()
    assert ready.wait(60)
    command = small_run(PRETRAIN, images, tmp_path / "out")
    with pytest.raises(UserError, match=rf"out: in use by host \S+, pid {first.pid}, since 20\d\d-\d\d-\d\d"):
        pretrain([*command, "--resume", "auto"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]
    first.kill()
    first.join()
    assert pretrain(command) == 0
