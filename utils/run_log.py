"""What a run tells: console with progress or ETA, log.jsonl, TensorBoard. Rank 0 writes; the others sum along."""

import contextlib
import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from utils.checkpoint import write_atomically
from utils.distributed import World
from utils.training import Metrics

try:
    from tqdm import tqdm
except ImportError:  # optional: plain lines without it
    tqdm = None


class RunLog:
    """Logs steps of a run.

    Args:
        folder: where log.jsonl and the TensorBoard events go.
        first_step: completed steps so far; later lines of an earlier attempt are dropped.
    """

    def __init__(
        self, folder: Path, world: World, every_steps: int, first_step: int, total_steps: int, batch_size: int
    ):
        self.world, self.every_steps, self.total_steps, self.batch_size = world, every_steps, total_steps, batch_size
        self.path, self.last_line = folder / "log.jsonl", {}
        self.writer = self.bar = None
        if world.rank == 0:
            keep_lines_before(self.path, first_step)
            self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)
            if tqdm and sys.stderr.isatty():
                self.bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)
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
        sums = torch.stack([torch.stack(pair).double() for pair in metrics.values()])
        values = {
            name: total / count
            for name, (total, count) in zip(metrics, self.world.sum(sums).tolist(), strict=True)
            if count  # no image of this filter kind in the batch: nothing to say
        }
        seconds = max(time.monotonic() - self.since, 1e-9)
        line = {"step": step + 1, "epoch": epoch, **values, "learning_rate": learning_rate}
        line |= {
            "images_per_second": self.steps * self.batch_size / seconds,
            "data_wait_share": self.waited / seconds,
            "time": time.time(),
        }
        self.last_line = line
        self.write(line, eta=seconds / self.steps * (self.total_steps - step - 1))
        self.since, self.steps, self.waited = time.monotonic(), 0, 0.0

    def write(self, line: dict, eta: float) -> None:
        if self.world.rank != 0:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            # NaN is no JSON: the gradient norm of a skipped float16 overflow becomes null.
            file.write(json.dumps({key: value if math.isfinite(value) else None for key, value in line.items()}) + "\n")
        for name, value in line.items():
            if name not in ("step", "epoch", "time"):
                self.writer.add_scalar(f"train/{name}", value, line["step"])
        shown = {"loss": ".4f", "learning_rate": ".2e", "images_per_second": ".1f", "data_wait_share": ".1%"}
        text = "  ".join(f"{name} {line[name]:{style}}" for name, style in shown.items())
        if self.bar:
            self.bar.set_postfix_str(text)
        else:
            left = timedelta(seconds=round(eta))
            self.say(f"step {line['step']}/{self.total_steps}  epoch {line['epoch']}  {text}  eta {left}")

    def say(self, text: str) -> None:
        """A line on the console, from rank 0 only, above the progress bar if there is one."""
        if self.world.rank == 0:
            self.bar.write(text) if self.bar else print(text, flush=True)

    def evaluation(self, rows: list[dict], step: int) -> None:
        """Results after `step` completed steps, as utils.evaluation.evaluate gives them."""
        for row in rows if self.writer else ():
            for name in ("top1", "top5", "loss"):
                self.writer.add_scalar(f"val/{name}_{row['weights']}_at_{row['val_resize_size']}", row[name], step)
            self.say(f"step {step}  {row['weights']} at {row['val_resize_size']}: top-1 {row['top1']:.3f} %")

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        if self.bar:
            self.bar.close()


def keep_lines_before(path: Path, steps: int) -> None:
    """Drop the lines of log.jsonl after `steps` completed steps, and one that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            if json.loads(line)["step"] <= steps:
                kept.append(line + "\n")
    write_atomically(path, lambda file: file.write("".join(kept).encode()))
