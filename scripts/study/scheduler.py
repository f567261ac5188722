"""Runs of a study beside each other on one machine, each after the run that it needs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from scripts.study.planned_run import PlannedRun
from utils.console import say
from utils.errors import UserError
from utils.limits import available_cores
from utils.process import StopRequest, die_with_parent

ROOT = Path(__file__).resolve().parents[2]
LOG = "console.log"  # in the run's folder: what it printed
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Machine:
    """How many runs this machine does at once, each with an equal share of its cores, and with `gpus` of its GPUs."""

    jobs: int
    gpus: int  # 0: on the CPU

    def start(self, run: PlannedRun, slot: int) -> subprocess.Popen:
        """The run as a process that dies with us, and gets signals from us only, not from the terminal.

        Args:
            slot: from 0 to jobs - 1, of no other run at the same time: the share that it takes.
        """
        cores = sorted(os.sched_getaffinity(0))
        share = cores[slot * len(cores) // self.jobs : (slot + 1) * len(cores) // self.jobs]
        share = share[: max(1, available_cores() // self.jobs)]  # a container's quota is for all jobs together

        def prepare() -> None:
            os.sched_setaffinity(0, share)
            die_with_parent(signal.SIGKILL)

        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = self.devices(slot)
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / LOG, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                command(run, max(1, self.gpus)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def devices(self, slot: int) -> str:
        """The GPUs of a slot, out of those that we may use; an empty text hides all of them."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if visible:
            devices = visible.split(",")
        else:
            devices = [str(number) for number in range(self.jobs * self.gpus)]
        return ",".join(devices[slot * self.gpus : (slot + 1) * self.gpus])


def command(run: PlannedRun, processes: int) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, os.path.relpath(ROOT / run.entry), *run.words, "--resume", "auto"]


@dataclass(frozen=True)
class RunningRun:
    """A run under way."""

    run: PlannedRun
    slot: int
    process: subprocess.Popen
    started: float  # time.monotonic()

    def problem(self) -> str:
        """Why the run, whose process has ended, has not finished ("": it has)."""
        if self.process.returncode != 0:
            return f"exit code {self.process.returncode}"
        try:
            if self.run.finished():
                return ""
        except UserError as error:  # it went on from another config's checkpoint
            return str(error)
        return "exit code 0"  # without a result


@dataclass
class Scheduler:
    """Does the runs that have not finished, a pretraining before its finetunings.

    Args:
        failed: run -> why.
        stopped: we were asked to stop, and have passed that on to the jobs.
    """

    machine: Machine
    total: int
    finished: set[PlannedRun]
    waiting: list[PlannedRun]
    jobs: list[RunningRun] = field(default_factory=list)
    failed: dict[PlannedRun, str] = field(default_factory=dict)
    stopped: bool = False

    @classmethod
    def of(cls, runs: list[PlannedRun], machine: Machine) -> "Scheduler":
        finished = {run for run in runs if run.finished()}
        return cls(machine, len(runs), finished, [run for run in runs if run not in finished])

    def execute(self) -> None:
        say(f"{len(self.finished)} of {self.total} runs finished already, {len(self.waiting)} to do")
        with StopRequest() as stop:
            while self.waiting or self.jobs:
                if not stop.requested:
                    self.start_jobs()
                time.sleep(POLL_SECONDS)
                if stop.requested and not self.stopped:  # once: torchrun takes a second signal for impatience
                    self.stop()
                for job in list(self.jobs):
                    if job.process.poll() is not None:
                        self.jobs.remove(job)
                        self.account_for(job)

    def start_jobs(self) -> None:
        """Fill the free slots with runs whose pretraining has finished."""
        for slot in range(self.machine.jobs):
            run = self.next_run()
            if run and all(job.slot != slot for job in self.jobs):
                self.waiting.remove(run)
                self.jobs.append(RunningRun(run, slot, self.machine.start(run, slot), time.monotonic()))

    def next_run(self) -> PlannedRun | None:
        for run in self.waiting:
            if run.needs is None or run.needs in self.finished:
                return run
        return None

    def stop(self) -> None:
        self.stopped = True
        self.waiting.clear()
        for job in self.jobs:
            job.process.terminate()

    def account_for(self, job: RunningRun) -> None:
        """Note how a job has ended, and print it."""
        problem = job.problem()
        if not problem:
            self.finished.add(job.run)
            ending = "finished"
        elif self.stopped:
            ending = "stopped"
        else:
            self.fail(job.run, problem)
            ending = problem
        minutes = (time.monotonic() - job.started) / 60
        counts = f"[{len(self.finished)}/{self.total}]"
        say(f"{counts} {job.run.folder} {ending} in {minutes:.1f} min; {len(self.failed)} failed")

    def fail(self, run: PlannedRun, problem: str) -> None:
        self.failed[run] = problem
        for later in list(self.waiting):
            if later.needs is run:
                self.failed[later] = "not run: its pretraining failed"
                self.waiting.remove(later)
