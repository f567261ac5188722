"""A job's processes, and killing some of them at a random moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.launch import start, torchrun_command

TARGETS = ("launcher", "rank", "worker", "save")


@dataclass(frozen=True)
class Job:
    """A training on two ranks that can be started again and again: it goes on where it was, until it is finished."""

    entry: str
    words: list[str]
    output: Path

    def start(self, console: IO) -> subprocess.Popen:
        words = [*self.words, "--output-dir", str(self.output), "--resume", "auto"]
        return start(torchrun_command(2, self.entry, *words), console=console)

    @property
    def finished(self) -> bool:
        return (self.output / "result.json").exists()

    def saving(self) -> bool:
        """Whether a rank is writing a checkpoint now."""
        return any(self.output.glob("checkpoints/*.pt.tmp"))


@dataclass(frozen=True)
class Family:
    """Process numbers of a job."""

    ranks: list[int]
    workers: list[int]


def processes_of(output: Path) -> dict[int, int]:
    """Every live process that names the folder on its command line (launcher, ranks, loader workers): its parent."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if str(output) not in (folder / "cmdline").read_text():
                continue
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    return parents


def family_of(launcher: int, output: Path) -> Family:
    """The live ranks that this launcher has started for a run in `output`, and their loader workers."""
    parents = processes_of(output)
    ranks = [process for process, parent in parents.items() if parent == launcher]
    return Family(ranks=ranks, workers=[process for process, parent in parents.items() if parent in ranks])


def workers_of(rank: int, output: Path) -> list[int]:
    return [process for process, parent in processes_of(output).items() if parent == rank]


def steps_logged(output: Path) -> int:
    """Lines about training; each is a step where logging.every_steps is 1."""
    path = output / "log.jsonl"
    if not path.exists():
        return 0
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    return sum(b'"grad_norm"' in line for line in whole_lines)


def wait_for_a_moment(job: Job, process: subprocess.Popen, target: str, chance: random.Random) -> None:
    """Until some more steps are logged and a checkpoint is there, or the job ends; for "save": until one is written."""
    until = steps_logged(job.output) + chance.randint(1, 6)
    while process.poll() is None and (steps_logged(job.output) < until or not (job.output / "checkpoints").exists()):
        time.sleep(0.01)
    time.sleep(chance.random() * 0.2)
    while target == "save" and process.poll() is None and not job.saving():
        time.sleep(0.001)


def kill_at_random(job: Job, process: subprocess.Popen, chance: random.Random) -> str | None:
    """SIGKILL a random part of the job at a random moment: launcher, rank, worker, or all ranks in a save.

    Returns: what was hit; None if the job ended before.
    """
    target = chance.choice(TARGETS)
    wait_for_a_moment(job, process, target, chance)
    family = family_of(process.pid, job.output)
    if target == "launcher":
        victims = [process.pid]
    elif target == "save":
        victims = family.ranks
    else:
        candidates = family.workers if target == "worker" else family.ranks
        victims = [chance.choice(candidates)] if candidates else []
    if process.poll() is not None or not victims:
        return None
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return target


def wait_until_nothing_is_left(output: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(output):
        assert time.monotonic() < deadline, f"still alive after {seconds} s: {processes_of(output)}"
        time.sleep(0.1)
