"""Faults of processes: killed, stopped, signalled or silent ones, on real ranks; nothing is lost, no orphan is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import pretrain
from tests.support.killing import processes_of
from tests.support.launch import (
    assert_same_state,
    endings,
    log_lines,
    mathematics,
    overriding,
    start_ranks,
    start_torchrun,
    torchrun,
    wait_until,
)  # fmt: skip
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.job import find_resume

STEPS = 30


def steps_logged(output: Path) -> int:
    path = output / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_nothing_is_left_of(output: Path) -> None:
    deadline = time.monotonic() + 30
    while processes_of(output) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(output)


def assert_equal_runs(whole: Path, output: Path) -> None:
    assert_same_state(whole / "checkpoints/last.pt", output / "checkpoints/last.pt")
    assert mathematics(output) == mathematics(whole)
    assert [line["step"] for line in log_lines(output)] == list(range(1, STEPS + 1))


def weights_of(output: Path) -> torch.Tensor:
    """All parameters in one vector; running statistics, which are rank 0's, left out."""
    model = read_checkpoint(output / "checkpoints/last.pt")["model"]
    return torch.cat([tensor.flatten() for name, tensor in model.items() if re.search("weight|bias", name)])


def test_a_killed_launcher_takes_its_ranks_and_their_workers_along_and_the_run_goes_on_exactly(uninterrupted, tmp_path):
    words, whole = uninterrupted
    job = ["pretrain.py", *words, "--output-dir", str(tmp_path / "out"), "--resume", "auto"]
    process = start_torchrun(2, *job)
    wait_until((tmp_path / "out/checkpoints/last.pt").exists, [process])
    assert len(processes_of(tmp_path / "out")) == 7  # launcher, two ranks, two loader workers each
    process.kill()
    assert_nothing_is_left_of(tmp_path / "out")
    assert read_checkpoint(tmp_path / "out/checkpoints/last.pt")["step"] < STEPS
    code, told = torchrun(2, *job)
    assert code == 0 and "resuming after step" in told, told
    assert_equal_runs(whole, tmp_path / "out")


def test_a_rank_killed_under_max_restarts_is_restarted_and_the_job_goes_on_by_itself(uninterrupted, tmp_path):
    words, whole = uninterrupted
    job = ["pretrain.py", *words, "--output-dir", str(tmp_path / "out"), "--resume", "auto"]
    process = start_torchrun(2, *job, launch=("--max-restarts=1",))
    wait_until((tmp_path / "out/checkpoints/last.pt").exists, [process])
    ranks = [number for number, parent in processes_of(tmp_path / "out").items() if parent == process.pid]
    os.kill(next(n for n in ranks if b"\0RANK=1\0" in Path(f"/proc/{n}/environ").read_bytes()), signal.SIGKILL)
    [(code, told)] = endings([process])
    assert code == 0 and told.count("resuming after step") == 1, told
    assert_equal_runs(whole, tmp_path / "out")


def test_a_stopped_job_goes_on_with_other_numbers_of_ranks(uninterrupted, tmp_path):
    """Loader workers outlive the launcher's SIGTERM; with images_per_device fixed 4 ranks or 1 see the same batches."""
    words, whole = uninterrupted
    four, one = (["--output-dir", str(tmp_path / name), "--resume", "auto"] for name in ("four", "one"))
    process = start_torchrun(2, "pretrain.py", *words, *four)
    wait_until(lambda: steps_logged(tmp_path / "four") >= STEPS - 8, [process])
    process.terminate()
    [(code, told)] = endings([process])
    stopped = int(re.search(r"stopped on request after step (\d+)", told)[1])
    assert code != 0 and stopped < STEPS
    assert_nothing_is_left_of(tmp_path / "four")
    at_stop = weights_of(tmp_path / "four")
    shutil.copytree(tmp_path / "four", tmp_path / "one", symlinks=True)
    words = overriding(words, "data.workers=0")
    code, told = torchrun(4, "pretrain.py", *words, *four)
    assert code == 0 and "4 ranks" in told, told
    assert pretrain.main([*words, *one]) == 0
    expected = weights_of(whole)
    moved = (expected - at_stop).norm()
    for name in ("four", "one"):
        assert mathematics(tmp_path / name)[:stopped] == mathematics(whole)[:stopped]
        for got, due in zip(mathematics(tmp_path / name), mathematics(whole), strict=True):
            assert got == pytest.approx(due, rel=1e-2)
        assert (weights_of(tmp_path / name) - expected).norm() < 0.02 * moved  # with other images it is near 1


def test_worker_killed_then_ranks_killed_in_a_save_then_one_rank_signalled_and_nothing_is_lost(uninterrupted, tmp_path):
    words, whole = uninterrupted
    checkpoints = tmp_path / "out/checkpoints"
    job = ["pretrain.py", *words, "--output-dir", str(tmp_path / "out"), "--resume", "auto"]

    ranks = start_ranks(2, *job)
    wait_until((checkpoints / "last.pt").exists, ranks)
    worker = next(n for n, parent in processes_of(tmp_path / "out").items() if parent == ranks[1].pid)
    os.kill(worker, signal.SIGKILL)
    (first, told_first), (second, told_second) = endings(ranks)
    assert second == 2 and "a loader worker ended" in told_second and "lower data.workers" in told_second, told_second
    assert first == 2 and re.search(r"rank 1 on \S+ did not answer", told_first), told_first
    assert_nothing_is_left_of(tmp_path / "out")

    ranks = start_ranks(2, *job)
    before = read_checkpoint(checkpoints / "last.pt")["step"]
    wait_until(lambda: [*checkpoints.glob("step_*.tmp")], ranks)
    for rank in ranks:
        rank.kill()
    endings(ranks)
    [cut_short] = checkpoints.glob("step_*.tmp")
    newest = find_resume(Checkpoints(checkpoints, 3, None, 15), "auto")
    assert before <= read_checkpoint(newest)["step"] < int(cut_short.name[5:13])
    assert_nothing_is_left_of(tmp_path / "out")

    logged = steps_logged(tmp_path / "out")
    ranks = start_ranks(2, *job)
    wait_until(lambda: steps_logged(tmp_path / "out") > logged, ranks)
    workers = [number for number, parent in processes_of(tmp_path / "out").items() if parent == ranks[1].pid]
    for number in workers:  # as a batch system signals all of a job
        os.kill(number, signal.SIGUSR1)
        os.kill(number, signal.SIGTERM)
    ranks[1].send_signal(signal.SIGUSR1)
    for code, told in endings(ranks):
        assert code == 75, told
    stopped = read_checkpoint(checkpoints / "last.pt")["step"]
    assert steps_logged(tmp_path / "out") == stopped < STEPS
    assert_nothing_is_left_of(tmp_path / "out")

    for code, told in endings(start_ranks(2, *job)):
        assert code == 0, told
    assert_equal_runs(whole, tmp_path / "out")
    assert not [*checkpoints.glob("*.tmp")]


def test_a_rank_that_hangs_is_named_within_the_timeout(uninterrupted, tmp_path):
    words, _ = uninterrupted
    ranks = start_ranks(2, "pretrain.py", *words, "--output-dir", str(tmp_path / "out"), "run.timeout_minutes=0.25")
    try:
        wait_until((tmp_path / "out/checkpoints/last.pt").exists, ranks)
        ranks[1].send_signal(signal.SIGSTOP)
        [(code, told)] = endings(ranks[:1])
    finally:
        ranks[1].kill()
    assert code == 2 and re.search(r"error: rank 1 on \S+ did not answer \(.*go on with --resume auto", told), told
    assert_nothing_is_left_of(tmp_path / "out")
