"""The log of a run: console with progress or ETA, log.jsonl, TensorBoard. All ranks sum, rank 0 writes."""

import contextlib
import errno
import itertools
import json
import math
import os
import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from configs.schema import FinetuneConfig, PretrainConfig
from utils.console import progress_bar, say
from utils.distributed import World
from utils.files import write_atomically
from utils.run.bad_images import BadImages
from utils.run.board import Board
from utils.training.hooks import Every
from utils.training.step import Metrics

if TYPE_CHECKING:
    from utils.run.job import Job

LONGEST_WAIT = 0.02  # share of a step's time
SHOWN = {"loss": ".4f", "learning_rate": ".2e", "images_per_second": ".1f", "data_wait_share": ".1%"}  # on the console


class RunLog:
    """Counts every step and, every `every_steps`, writes a line: it is a hook of the training loop.

    Args:
        folder: where log.jsonl and the TensorBoard events go.
        first_step: completed steps so far; later lines of an earlier attempt are dropped.
        batch_size: images of a step, over all ranks.
        workers: loader processes per rank. From the second line on, a hint is printed if more are needed.
        max_bad_images_share: of an epoch's images; if more were replaced, the run ends.
    """

    def __init__(
        self, folder: Path, world: World, *, every_steps: int, first_step: int, total_steps: int, steps_per_epoch: int,
        batch_size: int, workers: int = 0, max_bad_images_share: float = 1.0,
    ):  # fmt: skip
        self.world, self.total_steps, self.steps_per_epoch = world, total_steps, steps_per_epoch
        self.batch_size, self.workers = batch_size, workers
        self.every = Every(every_steps, total_steps)
        self.bad_images = BadImages(max_bad_images_share, steps_per_epoch, batch_size)
        self.path = folder / "log.jsonl"
        self.last_line: dict = {}
        self.unwritten = ""  # lines that a full disk refused
        self.bar = None
        self.board = Board(folder, first_step, active=world.rank == 0, say=self.say)
        if world.rank == 0:
            self.last_line = drop_lines_after(self.path, first_step)
            self.bar = progress_bar(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
        self.is_first_line = True
        self.metrics: Metrics = {}
        self.learning_rate = 0.0
        self.start_interval()

    def start_interval(self) -> None:
        self.interval_start, self.interval_steps, self.waited = time.monotonic(), 0, 0.0

    def count(self, learning_rate: float, metrics: Metrics, waited: float) -> None:
        """Take note of a step.

        Args:
            metrics: this rank's sums and counts, on the device.
            waited: seconds this step waited for the loader.
        """
        self.learning_rate, self.metrics = learning_rate, metrics
        self.interval_steps += 1
        self.waited += waited
        if self.bar is not None:
            self.bar.update()

    def due(self, step: int) -> bool:
        return self.every.due(step)

    def run(self, step: int) -> None:
        """Write a line after `step` completed steps. Waits for the device, on all ranks."""
        values, wait_share = self.over_ranks()
        seconds = self.interval_seconds()
        line = {"step": step, "epoch": (step - 1) // self.steps_per_epoch, **values}
        line |= {
            "learning_rate": self.learning_rate,
            "images_per_second": self.interval_steps * self.batch_size / seconds,
            "data_wait_share": wait_share,
            "workers_needed": self.workers if self.is_first_line else workers_needed(self.workers, wait_share),
            "peak_memory_gb": peak_memory(self.world.device),
            "time": time.time(),
        }
        self.last_line = line
        if self.world.rank == 0:
            self.write_line(line)
            for name, value in line.items():
                if name not in ("step", "epoch", "time"):
                    self.board.add("scalar", f"train/{name}", value, step)
            self.show_progress(line, seconds_left=seconds / self.interval_steps * (self.total_steps - step))
        self.is_first_line = False
        self.start_interval()

    def interval_seconds(self) -> float:
        return max(time.monotonic() - self.interval_start, 1e-9)

    def over_ranks(self) -> tuple[dict[str, float], float]:
        """The latest step's values, means over all ranks, and the share of the interval that ranks waited for data."""
        rows = [torch.stack(pair).double() for pair in self.metrics.values()]
        rows.append(torch.tensor([self.waited, 1.0], dtype=torch.float64, device=rows[0].device))
        *sums, (waited, ranks) = self.world.sum(torch.stack(rows)).tolist()
        values = {}
        for name, (total, count) in zip(self.metrics, sums, strict=True):
            if count:  # no image of this kind of corruption in the batch: nothing to say
                values[name] = total / count
        return values, min(waited / ranks / self.interval_seconds(), 0.999)

    def show_progress(self, line: dict, seconds_left: float) -> None:
        progress = "  ".join(f"{name} {line[name]:{style}}" for name, style in SHOWN.items())
        if line["workers_needed"] > self.workers:
            needed = line["workers_needed"]
            progress += f" (data.workers {self.workers}: {needed}, on as many cores a rank, would keep up)"
        if self.bar is not None:
            self.bar.set_postfix_str(progress)
            return
        eta = timedelta(seconds=round(seconds_left))
        self.say(f"step {line['step']}/{self.total_steps}  epoch {line['epoch']}  {progress}  eta {eta}")

    def write_line(self, line: dict) -> None:
        """Append to log.jsonl. What a full disk refuses is kept in memory, and written with a later line."""
        finite = {}
        for name, value in line.items():  # NaN is no JSON: the gradient norm of a float16 overflow becomes null
            is_bad = isinstance(value, float) and not math.isfinite(value)
            finite[name] = None if is_bad else value
        self.unwritten += json.dumps(finite) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.unwritten)
            self.unwritten = ""
        except OSError as error:
            with contextlib.suppress(OSError):  # there may be no file yet
                os.truncate(self.path, size)  # no half line
            self.say(f"warning: {self.path}: cannot be written ({error.strerror}); tried again with the next line")

    def exchange(self, step: int, stop_requested: bool, notes: list[str]) -> bool:
        """Whether any rank was asked to stop; images that were replaced on any rank are logged.

        It is one exchange of two numbers through the CPU: no rank stops alone, and no device is waited for.
        Raises: UserError on all ranks if too many images of the epoch were replaced.
        """
        stop_requests, replaced_images = self.world.sum(torch.tensor([stop_requested, len(notes)])).tolist()
        if replaced_images:
            self.replaced_images(step, self.world.gather(notes))
        self.bad_images.count(step, replaced_images)
        return stop_requests > 0

    def replaced_images(self, step: int, notes_of_ranks: list[list[str]]) -> None:
        """Images that were unreadable in the step that makes `step` completed ones, and what was used instead."""
        if self.world.rank != 0:
            return
        notes = sorted(itertools.chain(*notes_of_ranks))
        for note in notes:
            self.say(f"step {step}  {note}")
        self.write_line({"step": step, "replaced_images": len(notes), "replaced": notes})

    def evaluation(self, rows: list[dict], step: int) -> None:
        """Results after `step` completed steps, rows of utils.training.evaluation.evaluate with their `weights`."""
        if self.world.rank != 0:
            return
        for row in rows:
            name, size = row["weights"], row["val_resize_size"]
            for score in ("top1", "top5", "loss"):
                self.board.add("scalar", f"val/{score}_{name}_at_{size}", row[score], step)
            self.say(f"step {step}  {name} at {size}: top-1 {row['top1']:.3f} %")

    def say(self, line: str) -> None:
        """A line on the console, from rank 0 only, above the progress bar if there is one."""
        if self.world.rank == 0:
            say(line, bar=self.bar)

    def close(self) -> None:
        """Raises: OSError if lines could not be written to the end."""
        self.board.close()
        if self.bar is not None:
            self.bar.close()
        if self.unwritten:
            raise OSError(errno.ENOSPC, "the last lines could not be written", str(self.path))


class Steps(Protocol):
    """The part of a data.sampling.BatchPlan that the log needs."""

    length: int  # training images
    total_steps: int
    steps_per_epoch: int


def open_log(config: PretrainConfig | FinetuneConfig, job: "Job", plan: Steps, first_step: int, task: str) -> RunLog:
    """The job's log, with a first line on the console that says what is going to be done.

    Args:
        task: "pretraining" or "finetuning".
    """
    log = RunLog(
        job.output, job.world, every_steps=config.logging.every_steps, first_step=first_step,
        total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch, batch_size=config.train.batch_size,
        workers=job.workers, max_bad_images_share=config.data.max_bad_images_share,
    )  # fmt: skip
    ranks = "1 rank" if job.world.size == 1 else f"{job.world.size} ranks"
    precision = str(job.dtype).removeprefix("torch.")
    log.say(
        f"{task} {config.model.name} on {plan.length} images; {plan.total_steps} steps of {config.train.batch_size} "
        f"images, {ranks} on {job.world.device.type}, {precision}"
    )
    return log


def workers_needed(workers: int, wait_share: float) -> int:
    """Loader processes with which a step would not wait: those there are, if it waits at most 2 % of its time.

    While a step waits, `workers` make images as fast as they can; without waiting it takes 1 / (1 − wait_share) times
    as many. With none, the step's own process spends that share on them.
    """
    if wait_share <= LONGEST_WAIT:
        return workers
    return math.ceil((workers or wait_share) / (1 - wait_share))


def peak_memory(device: torch.device) -> float:
    """The most that this process has had in use, in GB of 10^9 bytes, of its GPU, or on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024 / 1e9


def drop_lines_after(path: Path, steps: int) -> dict:
    """Drop the lines of log.jsonl after `steps` completed steps, and one cut short. Returns: the last step's line."""
    if not path.exists():
        return {}
    remaining, last = "", {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            values = json.loads(line)
            if values["step"] > steps:
                continue
            remaining += line + "\n"
            if "loss" in values:
                last = values
    write_atomically(path, lambda file: file.write(remaining.encode()))
    return last
