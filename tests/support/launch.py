"""Real processes for the tests: torchrun, and the words that make a run small."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.name=resnet18", "data.train_crop_size=32", "train.precision=float32", "logging.every_steps=1",
    "optimizer.learning_rate=1e-3", "schedule.warmup_epochs=0", "data.workers=0",
]  # fmt: skip
PRETRAIN = ["--config", str(ROOT / "configs/sample_pretrain.yaml"), *SMALL, "filter.radius=3"]
FINETUNE = [
    "--config", str(ROOT / "configs/sample_finetune.yaml"), *SMALL, "data.val_crop_size=32", "data.val_batch_size=5",
]  # fmt: skip


def overriding(words: list[str], *more: str) -> list[str]:
    """`words` and `more`, where a section.key=value in `more` takes the place of one in `words`."""
    keys = {word.partition("=")[0] for word in more}
    return [word for word in words if word.partition("=")[0] not in keys] + list(more)


def small_run(entry: list[str], data_path: Path, output: Path, *more: str) -> list[str]:
    """The words of one epoch in batches of 8, of two micro-batches, without pictures; `entry`: PRETRAIN or FINETUNE."""
    size = ["--batch-size", "8", "train.images_per_device=4", "schedule.epochs=1", "logging.pictures_every_steps=null"]
    return overriding([*entry, *size, "--data-path", str(data_path), "--output-dir", str(output)], *more)


def pretrain(words: list[str]) -> int:
    """pretrain.py in this process, which saves a test the start of another; its exit code, or its UserError."""
    return runpy.run_path(str(ROOT / "pretrain.py"))["main"](words)


def finetune(words: list[str]) -> int:
    """finetune.py in this process; its exit code, or its UserError."""
    return runpy.run_path(str(ROOT / "finetune.py"))["main"](words)


def newest_result(folder: Path, kind: str = "evaluation") -> dict:
    """What the latest --eval-only of this kind has left in a folder."""
    newest = max(folder.glob(f"{kind}_*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def torchrun_command(ranks: int, entry: str, *words: str, launch: tuple[str, ...] = ()) -> list[str]:
    """`torchrun --standalone --nproc_per_node=ranks entry words`; `launch`: more words for torchrun."""
    torchrun_words = ["--standalone", *launch, f"--nproc_per_node={ranks}"]
    return [sys.executable, "-m", "torch.distributed.run", *torchrun_words, entry, *words]


def start(command: list[str], console: int = subprocess.PIPE, **environment: str) -> subprocess.Popen:
    """A process in the repository's root; what it prints goes to `console`, a pipe or an open file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=console, stderr=subprocess.STDOUT)


def start_torchrun(ranks: int, entry: str, *words: str, launch: tuple[str, ...] = ()) -> subprocess.Popen:
    return start(torchrun_command(ranks, entry, *words, launch=launch))


def torchrun(ranks: int, entry: str, *words: str) -> tuple[int, str]:
    """Exit code and output of a whole launch."""
    process = start_torchrun(ranks, entry, *words)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def start_ranks(ranks: int, entry: str, *words: str) -> list[subprocess.Popen]:
    """A job without a launcher, whose ranks' own exit codes and output can be seen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start([sys.executable, entry, *words], RANK=str(rank), LOCAL_RANK=str(rank), **job) for rank in range(ranks)
    ]


def in_one_line(printed: str) -> str:
    """What was printed, without the line ends that make a long message fit the console."""
    return " ".join(printed.split())


def endings(processes: list[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str]]:
    """Exit code and output of each, once all have ended; an error if one takes longer."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def wait_until(condition: Callable[[], object], processes: list[subprocess.Popen], seconds: float = 90) -> None:
    """Until it holds; an error with their output if a process ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise AssertionError(f"waited for {condition}: {endings(processes)}")
        time.sleep(0.002)


@dataclass(frozen=True)
class SharedRun:
    """A finished pretraining that many tests compare with: the words that start it elsewhere, its folder, its size."""

    words: list[str]
    output: Path
    ranks: int
    workers: int  # of each rank
    steps: int

    def job_in(self, output: Path) -> list[str]:
        """Entry file and words of the same run in another folder: start it there, or continue it."""
        return ["pretrain.py", *self.words, "--output-dir", str(output), "--resume", "auto"]
