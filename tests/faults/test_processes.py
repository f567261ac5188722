"""Processes that are killed, stopped, signalled or silent, on real ranks: nothing is lost, and no orphan is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.comparing import assert_same_state, log_lines, mathematics
from tests.support.killing import family_of, steps_logged, wait_until_nothing_is_left, workers_of
from tests.support.launch import (
    SharedRun,
    endings,
    in_one_line,
    overriding,
    pretrain,
    start_ranks,
    start_torchrun,
    torchrun,
    wait_until,
)
from utils.process import EXIT_REQUEUE
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.resume import find_resume


def newest_step(output: Path) -> int:
    return read_checkpoint(output / "checkpoints/last.pt")["step"]


def assert_equal_runs(whole: SharedRun, output: Path) -> None:
    assert_same_state(whole.output / "checkpoints/last.pt", output / "checkpoints/last.pt")
    assert mathematics(output) == mathematics(whole.output)
    assert [line["step"] for line in log_lines(output)] == list(range(1, whole.steps + 1))


# With a launcher.


def test_a_killed_launcher_takes_its_ranks_and_their_workers_along_and_the_run_goes_on_exactly(uninterrupted, tmp_path):
    output = tmp_path / "out"
    job = uninterrupted.job_in(output)
    launcher = start_torchrun(uninterrupted.ranks, *job)
    wait_until((output / "checkpoints/last.pt").exists, [launcher])
    family = family_of(launcher.pid, output)
    assert len(family.ranks) == uninterrupted.ranks
    assert len(family.workers) == uninterrupted.ranks * uninterrupted.workers
    launcher.kill()
    wait_until_nothing_is_left(output)
    assert newest_step(output) < uninterrupted.steps
    code, printed = torchrun(uninterrupted.ranks, *job)
    assert code == 0 and "resuming after step" in printed, printed
    assert_equal_runs(uninterrupted, output)


def test_a_rank_killed_under_max_restarts_is_restarted_and_the_job_goes_on_by_itself(uninterrupted, tmp_path):
    output = tmp_path / "out"
    launcher = start_torchrun(uninterrupted.ranks, *uninterrupted.job_in(output), launch=("--max-restarts=1",))
    wait_until((output / "checkpoints/last.pt").exists, [launcher])
    ranks = family_of(launcher.pid, output).ranks
    [rank_1] = [rank for rank in ranks if b"\0RANK=1\0" in Path(f"/proc/{rank}/environ").read_bytes()]
    os.kill(rank_1, signal.SIGKILL)
    [(code, printed)] = endings([launcher])
    assert code == 0 and printed.count("resuming after step") == 1, printed
    assert_equal_runs(uninterrupted, output)


def weights_of(output: Path) -> torch.Tensor:
    """All parameters in one vector; running statistics, which are rank 0's, left out."""
    model = read_checkpoint(output / "checkpoints/last.pt")["model"]
    return torch.cat([tensor.flatten() for name, tensor in model.items() if re.search("weight|bias", name)])


@pytest.fixture(scope="module")
def stopped(uninterrupted, tmp_path_factory) -> tuple[Path, int]:
    """The shared run, stopped near its end by SIGTERM to the launcher, as loader workers outlive it: folder, step."""
    output = tmp_path_factory.mktemp("stopped")
    launcher = start_torchrun(uninterrupted.ranks, *uninterrupted.job_in(output))
    wait_until(lambda: steps_logged(output) >= uninterrupted.steps - 8, [launcher])
    launcher.terminate()
    [(code, printed)] = endings([launcher])
    step = int(re.search(r"stopped on request after step (\d+)", printed)[1])
    assert code != 0 and step < uninterrupted.steps
    wait_until_nothing_is_left(output)
    return output, step


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_stopped_job_goes_on_with_another_number_of_ranks(ranks, stopped, uninterrupted, tmp_path):
    """With images_per_device fixed they see the same batches; only the order of sums differs."""
    (stopped_folder, stopped_step), output = stopped, tmp_path / "out"
    shutil.copytree(stopped_folder, output, symlinks=True)
    entry, *words = overriding(uninterrupted.job_in(output), "data.workers=0")
    if ranks == 1:
        assert pretrain(words) == 0
    else:
        code, printed = torchrun(ranks, entry, *words)
        assert code == 0 and f"{ranks} ranks" in printed, printed
    expected_log, actual_log = mathematics(uninterrupted.output), mathematics(output)
    assert actual_log[:stopped_step] == expected_log[:stopped_step]
    for actual, expected in zip(actual_log, expected_log, strict=True):
        assert actual == pytest.approx(expected, rel=1e-2)
    expected = weights_of(uninterrupted.output)
    moved = (expected - weights_of(stopped_folder)).norm()
    assert (weights_of(output) - expected).norm() < 0.02 * moved  # with other images it is near 1


# Without a launcher, so that each rank's own exit code and words can be seen. Every test ends with the same check:
# the job, started again, finishes bit for bit as the undisturbed one.


def start_job(whole: SharedRun, output: Path) -> list[subprocess.Popen]:
    """The ranks of the shared run in another folder, once they have saved a checkpoint."""
    ranks = start_ranks(whole.ranks, *whole.job_in(output))
    wait_until((output / "checkpoints/last.pt").exists, ranks)
    return ranks


def assert_the_run_can_be_finished(whole: SharedRun, output: Path) -> None:
    wait_until_nothing_is_left(output)
    for code, printed in endings(start_ranks(whole.ranks, *whole.job_in(output))):
        assert code == 0, printed
    assert_equal_runs(whole, output)
    assert not [*output.glob("checkpoints/*.tmp")]


def test_a_killed_loader_worker_ends_the_job_and_is_named(uninterrupted, tmp_path):
    output = tmp_path / "out"
    ranks = start_job(uninterrupted, output)
    os.kill(workers_of(ranks[1].pid, output)[0], signal.SIGKILL)
    (code_0, printed_0), (code_1, printed_1) = endings(ranks)
    assert code_1 == 2 and re.search("a loader worker ended.*lower data.workers", in_one_line(printed_1)), printed_1
    assert code_0 == 2 and re.search(r"rank 1 on \S+ failed: a loader worker ended", in_one_line(printed_0)), printed_0
    assert_the_run_can_be_finished(uninterrupted, output)


def test_a_save_cut_short_by_a_kill_of_all_ranks_costs_its_own_steps_alone(uninterrupted, tmp_path):
    output = tmp_path / "out"
    checkpoints = output / "checkpoints"
    ranks = start_job(uninterrupted, output)
    before = newest_step(output)
    wait_until(lambda: [*checkpoints.glob("step_*.tmp")], ranks)
    for rank in ranks:
        rank.kill()
    endings(ranks)
    [unfinished] = checkpoints.glob("step_*.tmp")
    newest = find_resume(Checkpoints(checkpoints, 3, None, 15), "auto")
    assert before <= read_checkpoint(newest)["step"] < int(unfinished.name[5:13])
    assert_the_run_can_be_finished(uninterrupted, output)


def test_a_signal_to_one_rank_and_all_its_workers_stops_every_rank_with_a_checkpoint(uninterrupted, tmp_path):
    output = tmp_path / "out"
    ranks = start_job(uninterrupted, output)
    for worker in workers_of(ranks[1].pid, output):  # as a batch system signals all of a job
        os.kill(worker, signal.SIGUSR1)
        os.kill(worker, signal.SIGTERM)
    ranks[1].send_signal(signal.SIGUSR1)
    for code, printed in endings(ranks):
        assert code == EXIT_REQUEUE == 75, printed
    assert steps_logged(output) == newest_step(output) < uninterrupted.steps
    assert_the_run_can_be_finished(uninterrupted, output)


def test_a_rank_that_hangs_is_named_within_the_timeout(uninterrupted, tmp_path):
    output = tmp_path / "out"
    words = [*uninterrupted.words, "--output-dir", str(output), "run.timeout_minutes=0.25"]
    ranks = start_ranks(uninterrupted.ranks, "pretrain.py", *words)
    try:
        wait_until((output / "checkpoints/last.pt").exists, ranks)
        ranks[1].send_signal(signal.SIGSTOP)
        [(code, printed)] = endings(ranks[:1])
    finally:
        ranks[1].kill()
    assert code == 2 and re.search(r"error: rank 1 on \S+ did not answer \(", in_one_line(printed)), printed
    assert in_one_line(printed).endswith("go on with --resume auto")
    wait_until_nothing_is_left(output)
