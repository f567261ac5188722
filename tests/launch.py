"""Real processes for the tests: torchrun, and the words that make a run small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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


def start_torchrun(ranks: int, entry: str, *words: str) -> subprocess.Popen:
    """`torchrun --nproc_per_node=ranks entry words`, its output in one pipe."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        entry,
        *words,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def torchrun(ranks: int, entry: str, *words: str) -> tuple[int, str]:
    """Exit code and output of a whole launch."""
    process = start_torchrun(ranks, entry, *words)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
