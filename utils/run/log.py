"""The log of a run: console, log.jsonl, TensorBoard. All ranks sum, rank 0 writes.

A line of log.jsonl has the values of its very step; the console shows the mean loss of all steps since the line before.
"""

import contextlib
import errno
import itertools
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from utils.console import progress_bar, say
from utils.distributed import World
from utils.run.bad_images import BadImages
from utils.run.board import Board
from utils.run.log_file import LogFile
from utils.run.progress import (
    WAIT_WORTH_TELLING,
    Steps,
    losses_in_words,
    one_line,
    scores_in_words,
    start_paragraph,
    step_in_words,
    time_left,
)
from utils.training.hooks import Every
from utils.training.step import Metrics, add_metrics
from utils.waiting import FEWEST_STEPS_FOR_ADVICE, Wait, wait_share, workers_needed

if TYPE_CHECKING:
    from utils.run.job import Job

BAR = "{percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt}{postfix}"
OF_PROBES = ("method", "k", "temperature")  # what was asked for
SCORES = ("top1", "top5", "loss")  # of an evaluation: percent, percent, mean cross-entropy


class RunLog:
    """Counts every step and, every `every_steps`, writes a line: it is a hook of the training loop.

    Args:
        folder: where log.jsonl and the TensorBoard events go.
        first_step: completed steps so far; later lines of an earlier attempt are dropped.
        batch_size: images of a step, over all ranks.
        workers: loader processes per rank. From the second line on, a hint is printed once if steps wait long.
        max_bad_images_share: of an epoch's images; if more were replaced, the run ends.
    """

    def __init__(
        self, folder: Path, world: World, *, every_steps: int, first_step: int, total_steps: int, steps_per_epoch: int,
        batch_size: int, workers: int = 0, max_bad_images_share: float = 1.0,
    ):  # fmt: skip
        self.world, self.total_steps, self.steps_per_epoch = world, total_steps, steps_per_epoch
        self.batch_size, self.workers, self.first_step = batch_size, workers, first_step
        self.every = Every(every_steps, total_steps)
        self.bad_images = BadImages(max_bad_images_share, steps_per_epoch, batch_size)
        self.file = LogFile(folder / "log.jsonl")
        self.last_line: dict = {}
        self.bar = None
        self.board = Board(folder, first_step, active=world.rank == 0, say=self.say)
        if world.rank == 0:
            self.last_line = self.file.drop_lines_after(first_step)
            self.bar = progress_bar(total=total_steps, initial=first_step, delay=0, bar_format=BAR)
        self.is_first_line = True
        self.has_hinted = False
        self.metrics: Metrics = {}
        self.learning_rate = 0.0
        self.start_interval()

    def start_interval(self) -> None:
        self.interval_start, self.interval_steps = time.monotonic(), 0
        self.interval_paused = 0.0
        self.interval_waits: list[Wait] = []
        self.interval_losses: Metrics = {}

    def count(self, learning_rate: float, metrics: Metrics, waited: Wait) -> None:
        """Take note of a step.

        Args:
            metrics: this rank's sums and counts, on the device.
            waited: for the loader; read with the next line.
        """
        self.learning_rate, self.metrics = learning_rate, metrics
        with torch.no_grad():
            add_metrics(self.interval_losses, {name: pair for name, pair in metrics.items() if name.startswith("loss")})
        self.interval_steps += 1
        self.interval_waits.append(waited)
        if self.bar is not None:
            self.bar.update()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, as in an evaluation, no time counts for the speed of the steps."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.interval_paused += time.monotonic() - began

    def due(self, step: int) -> bool:
        return self.every.due(step)

    def run(self, step: int) -> None:
        """Write a line after `step` completed steps. Waits for the device, on all ranks."""
        means = self.mean_losses()  # waits for the device, which has then measured how long the steps waited
        seconds = self.interval_seconds()
        values, share = self.over_ranks(seconds)
        needed = self.workers
        if not self.is_first_line:
            needed = workers_needed(self.workers, share, self.interval_steps)
        line = {"step": step, "epoch": self.epoch_of(step), **values}
        line |= {
            "learning_rate": self.learning_rate,
            "images_per_second": self.interval_steps * self.batch_size / seconds,
            "data_wait_share": share,
            "workers_needed": needed,
            "peak_memory_gb": peak_memory(self.world.device),
            "time": time.time(),
        }
        self.last_line = line
        if self.world.rank == 0:
            self.write([line])
            for name, value in line.items():
                if name not in ("step", "epoch", "time"):
                    self.board.add("scalar", f"train/{name}", value, step)
            self.show_progress(line, means, self.seconds_per_step(step) * (self.total_steps - step))
        self.is_first_line = False
        self.start_interval()

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 0, of the last of `step` completed steps."""
        return (step - 1) // self.steps_per_epoch

    def interval_seconds(self) -> float:
        return max(time.monotonic() - self.interval_start - self.interval_paused, 1e-9)

    def seconds_per_step(self, step: int) -> float:
        """Evaluations and checkpoints included, but not the slow start, once there is a line after it."""
        if self.is_first_line:
            self.pace_since, self.pace_step = time.monotonic(), step
            return self.interval_seconds() / self.interval_steps
        return (time.monotonic() - self.pace_since) / (step - self.pace_step)

    def over_ranks(self, seconds: float) -> tuple[dict[str, float], float]:
        """The latest step's values, and the share of so many seconds that was waited for data, means over all ranks."""
        rows = [torch.stack(pair).double() for pair in self.metrics.values()]
        own_share = wait_share(self.interval_waits, seconds)
        rows.append(torch.tensor([own_share, 1.0], dtype=torch.float64, device=rows[0].device))
        *sums, (share, ranks) = self.world.sum(torch.stack(rows)).tolist()
        return quotients(self.metrics, sums), share / ranks

    def mean_losses(self) -> dict[str, float]:
        """Means over all ranks and all steps since the line before, for the console."""
        rows = [torch.stack(pair).double() for pair in self.interval_losses.values()]
        return quotients(self.interval_losses, self.world.sum(torch.stack(rows)).tolist())

    def show_progress(self, line: dict, means: dict[str, float], seconds_left: float) -> None:
        fields = step_in_words(line["step"], self.total_steps, self.steps_per_epoch)
        fields += [*losses_in_words(means), f"lr {line['learning_rate']:.2e}"]
        share = 0.0 if self.is_first_line else line["data_wait_share"]  # the start is slow anyway
        if share > WAIT_WORTH_TELLING:
            fields.append(f"data wait {share:.0%}")
        pace = [f"{line['images_per_second']:.0f} img/s", f"eta {time_left(seconds_left)}"]
        if self.bar is None:
            fields += pace
        else:
            self.bar.set_postfix_str(", ".join(pace), refresh=False)
        self.say(one_line(fields))
        is_enough = self.interval_steps >= FEWEST_STEPS_FOR_ADVICE
        if share > WAIT_WORTH_TELLING and is_enough and not self.has_hinted:
            self.has_hinted = True
            self.say(
                f"warning: steps wait {share:.0%} of their time for images (data.workers {self.workers}: "
                f"{line['workers_needed']}, on as many cores a rank, would keep up)"
            )

    def write(self, lines: list[dict]) -> None:
        """Append to log.jsonl; what a full disk refuses is said, and written with a later line."""
        try:
            self.file.write(lines)
        except OSError as error:
            path = self.file.path
            self.say(f"warning: {path}: cannot be written ({error.strerror}); tried again with the next line")

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
        self.write([{"step": step, "replaced_images": len(notes), "replaced": notes}])

    def evaluation(self, rows: list[dict], step: int) -> None:
        """Scores on val after `step` completed steps.

        Args:
            rows: of utils.training.evaluation.evaluate with their `weights`, or of a probe with its `method` too.
        """
        if self.world.rank != 0:
            return
        known = []
        if step == self.first_step:  # made by an earlier start too, if that did not end within it
            known = self.file.drop_evaluation_of(step)
        lines = []
        for row in rows:
            weights, size = row["weights"], row["val_resize_size"]
            line = {"step": step, "epoch": self.epoch_of(step), "split": "val", "weights": weights}
            line |= {"val_resize_size": size, "images": row["images"]}
            line |= {name: row[name] for name in OF_PROBES if name in row}
            prefix = f"{row['method']}_" if "method" in row else ""
            for score in SCORES:
                if score not in row:
                    continue
                line[score] = row[score]
                if (weights, size) not in known:  # TensorBoard would show it twice
                    self.board.add("scalar", f"val/{prefix}{score}_{weights}_at_{size}", row[score], step)
            lines.append(line)
            fields = step_in_words(step, self.total_steps, self.steps_per_epoch)
            fields += scores_in_words(row)
            self.say(one_line(fields))
        self.board.flush(step)  # before the lines, which say that TensorBoard has them
        self.write(lines)

    def say(self, line: str) -> None:
        """A line on the console, from rank 0 only, above the progress bar if there is one."""
        if self.world.rank == 0:
            say(line)

    def close(self) -> None:
        """Raises: OSError if lines could not be written to the end."""
        self.board.close()
        if self.bar is not None:
            self.bar.close()
        if self.file.unwritten:
            raise OSError(errno.ENOSPC, "the last lines could not be written", str(self.file.path))


def open_log(
    config: PretrainConfig | FinetuneConfig, job: "Job", plan: Steps, first_step: int, *, task: str, model: nn.Module,
    images: Mapping[str, int], source: str, classes: int = 0,
) -> RunLog:  # fmt: skip
    """The job's log. On the console it begins with a paragraph on what is going to be done.

    Args:
        task, model, images, source, classes: for that paragraph, as `start_paragraph` takes them.
    """
    job.say(start_paragraph(
        config, job, plan, first_step, task=task, model=model, images=images, source=source, classes=classes,
    ))  # fmt: skip
    return RunLog(
        job.output, job.world, every_steps=config.logging.every_steps, first_step=first_step,
        total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch, batch_size=config.train.batch_size,
        workers=job.workers, max_bad_images_share=config.data.max_bad_images_share,
    )  # fmt: skip


def quotients(names: Metrics, sums: list[list[float]]) -> dict[str, float]:
    """name -> total / count. No image of this kind of corruption in the batch: nothing to say."""
    values = {}
    for name, (total, count) in zip(names, sums, strict=True):
        if count:
            values[name] = total / count
    return values


def peak_memory(device: torch.device) -> float:
    """The most that this process has had in use, in GB of 10^9 bytes, of its GPU, or on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024 / 1e9
