"""Real processes for the tests: torchrun, and the words that make a run small."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.killing import STATE, TIMES, unequal
from utils.run.checkpoint import read_checkpoint

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


def start_torchrun(ranks: int, entry: str, *words: str, launch: tuple[str, ...] = ()) -> subprocess.Popen:
    """`torchrun --nproc_per_node=ranks entry words`, its output in one pipe; `launch`: more words for torchrun."""
    where = launch if "--nnodes=2" in launch else ("--standalone", *launch)
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc_per_node={ranks}", entry, *words]
    return start(command)


def start(command: list[str], **environment: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


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


def endings(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and output of each, once all have ended."""
    told = [process.communicate(timeout=120)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def wait_until(condition, processes: list[subprocess.Popen], seconds: float = 90) -> None:
    """Until it holds; an error with their output if a process ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise AssertionError(f"waited for {condition}: {endings(processes)}")
        time.sleep(0.002)


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def assert_same_state(expected: Path, got: Path) -> None:
    """Weights, moments, averages and step of two checkpoints agree bit for bit."""
    one, other = ({key: read_checkpoint(path)[key] for key in STATE} for path in (expected, got))
    assert unequal(one, other) == []


def mathematics(output: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in log_lines(output)]
