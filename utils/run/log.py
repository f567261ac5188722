"""What a run tells: console with progress or ETA, log.jsonl, TensorBoard. Rank 0 writes; the others sum along."""

import contextlib
import errno
import json
import math
import os
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils.distributed import World
from utils.errors import first_line
from utils.files import write_atomically
from utils.training.step import Metrics

LONGEST_WAIT = 0.02  # share of a step's time

try:
    from tqdm import tqdm
except ImportError:  # optional: plain lines without it
    tqdm = None


class RunLog:
    """Logs steps of a run.

    Args:
        folder: where log.jsonl and the TensorBoard events go.
        first_step: completed steps so far; later lines of an earlier attempt are dropped.
        workers: loader processes of a rank; from the second line on they are told to be too few where they are.
    """

    def __init__(
        self, folder: Path, world: World, every_steps: int, first_step: int, total_steps: int, batch_size: int,
        workers: int = 0,
    ):  # fmt: skip
        self.world, self.every_steps, self.total_steps, self.batch_size = world, every_steps, total_steps, batch_size
        self.workers, self.settled = workers, False
        self.path, self.last_line, self.unwritten = folder / "log.jsonl", {}, ""
        self.writer = self.bar = None
        if world.rank == 0:
            self.last_line = keep_lines_before(self.path, first_step)
            if tqdm and sys.stderr.isatty():
                self.bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
        self.purge_step = first_step + 1
        self.since, self.steps, self.waited = time.monotonic(), 0, 0.0

    def due(self, step: int) -> bool:
        return (step + 1) % self.every_steps == 0 or step + 1 == self.total_steps

    def step(self, step: int, epoch: int, learning_rate: float, metrics: Metrics, waited: float) -> None:
        """Count a step; at log intervals, which wait for the device, write its values down.

        Args:
            step: optimizer step, counted from 0; a line's `step` counts completed ones, from 1.
            metrics: this rank's sums and counts.
            waited: seconds this step waited for the loader.
        """
        self.steps, self.waited = self.steps + 1, self.waited + waited
        if self.bar:
            self.bar.update()
        if not self.due(step):
            return
        sums = [torch.stack(pair).double() for pair in metrics.values()]
        sums.append(torch.tensor([self.waited, 1.0], dtype=torch.float64, device=sums[0].device))
        *found, (waited, ranks) = self.world.sum(torch.stack(sums)).tolist()
        values = {
            name: total / count
            for name, (total, count) in zip(metrics, found, strict=True)
            if count  # no image of this filter kind in the batch: nothing to say
        }
        seconds = max(time.monotonic() - self.since, 1e-9)
        share = min(waited / ranks / seconds, 0.999)
        line = {"step": step + 1, "epoch": epoch, **values, "learning_rate": learning_rate}
        line |= {
            "images_per_second": self.steps * self.batch_size / seconds,
            "data_wait_share": share,
            "workers_needed": workers_needed(self.workers, share) if self.settled else self.workers,
            "peak_memory_gb": peak_memory(self.world.device),
            "time": time.time(),
        }
        self.last_line = line
        self.write(line, eta=seconds / self.steps * (self.total_steps - step - 1))
        self.since, self.steps, self.waited, self.settled = time.monotonic(), 0, 0.0, True

    def write(self, line: dict, eta: float) -> None:
        if self.world.rank != 0:
            return
        self.append(line)
        plotted = {f"train/{name}": value for name, value in line.items() if name not in ("step", "epoch", "time")}
        self.show("scalar", plotted, line["step"])
        shown = {"loss": ".4f", "learning_rate": ".2e", "images_per_second": ".1f", "data_wait_share": ".1%"}
        text = "  ".join(f"{name} {line[name]:{style}}" for name, style in shown.items())
        if line["workers_needed"] > self.workers:
            text += f" (data.workers {self.workers}: {line['workers_needed']}, on as many cores a rank, would keep up)"
        if self.bar:
            self.bar.set_postfix_str(text)
        else:
            left = timedelta(seconds=round(eta))
            self.say(f"step {line['step']}/{self.total_steps}  epoch {line['epoch']}  {text}  eta {left}")

    def append(self, line: dict) -> None:
        """A line for log.jsonl. What a full disk refuses is told, kept in memory, and written with a later line."""
        # NaN is no JSON: the gradient norm of a skipped float16 overflow becomes null.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self.unwritten += json.dumps(finite) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.unwritten)
            self.unwritten = ""
        except OSError as error:
            os.truncate(self.path, size)  # no half line
            self.say(f"warning: {self.path}: cannot be written ({error.strerror}); tried again with the next line")

    def show(self, kind: str, values: dict, step: int) -> None:
        """To TensorBoard, whose writer, once a full disk refused it, raises for ever and is made anew.

        Args:
            kind: "scalar", "image" ((3, H, W) uint8), "text" (Markdown), or "tensor" (numbers that it does not show).
        """
        if self.world.rank != 0:
            return
        try:
            self.writer = self.writer or SummaryWriter(str(self.path.parent), purge_step=self.purge_step)
            for name, value in values.items():
                getattr(self.writer, f"add_{kind}")(name, value, step)
        except OSError as error:
            self.writer, self.purge_step = None, step + 1
            self.say(f"warning: {self.path.parent}: TensorBoard events cannot be written ({error.strerror})")

    @contextlib.contextmanager
    def drawing(self, step: int):
        """What fails inside is told and goes no further: no picture is worth the end of a training."""
        try:
            yield
        except Exception as error:
            self.say(f"warning: step {step}: no pictures ({type(error).__name__}: {first_line(error)})")

    def compare(self, settings: dict[str, float | str], scores: dict[str, float], step: int) -> None:
        """A row of TensorBoard's HParams tab, in the run's own folder (`add_hparams` would make another)."""
        self.show("scalar", scores, step)
        with self.drawing(step):
            for summary in hparams(settings, scores) if self.writer else ():
                self.writer.file_writer.add_summary(summary)

    def replaced_images(self, step: int, told: list[str]) -> None:
        """Images that were unreadable in the step that makes `step` completed ones, and what was taken instead."""
        for text in told if self.world.rank == 0 else ():
            self.say(f"step {step}  {text}")
        if self.world.rank == 0:
            self.append({"step": step, "replaced_images": len(told), "replaced": told})

    def say(self, text: str) -> None:
        """A line on the console, from rank 0 only, above the progress bar if there is one."""
        if self.world.rank == 0:
            self.bar.write(text) if self.bar else print(text, flush=True)

    def evaluation(self, rows: list[dict], step: int) -> None:
        """Results after `step` completed steps, as utils.training.evaluation.evaluate gives them."""
        for row in rows if self.world.rank == 0 else ():
            names = {
                f"val/{name}_{row['weights']}_at_{row['val_resize_size']}": name for name in ("top1", "top5", "loss")
            }
            self.show("scalar", {long: row[name] for long, name in names.items()}, step)
            self.say(f"step {step}  {row['weights']} at {row['val_resize_size']}: top-1 {row['top1']:.3f} %")

    def close(self) -> None:
        """Raises: OSError if lines or events could not be written to the end."""
        if self.writer:
            self.writer.close()
        if self.bar:
            self.bar.close()
        if self.unwritten:
            raise OSError(errno.ENOSPC, "the last lines could not be written", str(self.path))


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
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident) / 1e9


def keep_lines_before(path: Path, steps: int) -> dict:
    """Drop the lines of log.jsonl after `steps` completed steps, and one cut short. Returns: the last step kept."""
    kept, last = [], {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            values = json.loads(line)
            if values["step"] <= steps:
                kept.append(line + "\n")
                last = values if "loss" in values else last
    if path.exists():
        write_atomically(path, lambda file: file.write("".join(kept).encode()))
    return last
