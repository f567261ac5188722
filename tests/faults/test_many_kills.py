"""Small runs killed again and again at random moments end as if nothing had happened. `KILLS=100 pytest -m slow`."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.support.comparing import everything, unequal
from tests.support.helpers import image_folder
from tests.support.killing import Job, kill_at_random, wait_until_nothing_is_left
from tests.support.launch import FINETUNE, PRETRAIN, overriding

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("KILLS", 12))
SEED = int(os.environ.get("KILLS_SEED", 0))
RUN = [
    "data.workers=2", "optimizer.ema_decay=0.9", "checkpoint.every_steps=3", "--batch-size", "16",
    "train.images_per_device=4", "--epochs", "16", "logging.pictures_every_steps=null",
]  # fmt: skip
ENTRIES = {
    "pretrain.py": overriding(PRETRAIN, *RUN),
    "finetune.py": overriding(
        FINETUNE, *RUN, "data.mixup_alpha=0.1", "data.cutmix_alpha=1", "data.rand_augment_ops=2",
        "run.evaluate_every_epochs=5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_run_ends_bit_for_bit_as_if_it_had_never_been_killed(entry, tmp_path):
    """Weights, optimizer, average, log and result; a run that ends before its kill counts for nothing."""
    for split in ("train", "val"):
        image_folder(tmp_path / "images" / split, [f"class_{number}" for number in range(10)], per_class=6)
    words = [*ENTRIES[entry], "--data-path", str(tmp_path / "images")]
    chance = random.Random(f"{SEED} {entry}")
    kills: Counter = Counter()
    with open(tmp_path / "printed.txt", "w") as console:
        whole = Job(entry, words, tmp_path / "whole")
        assert whole.start(console).wait() == 0, printed_by(tmp_path)
        attempt = 0
        while kills.total() < KILLS:
            job = Job(entry, words, tmp_path / f"killed-{attempt}")
            attempt += 1
            run_under_kills(job, kills, chance, console)
            assert unequal(everything(whole.output), everything(job.output)) == [], f"after {dict(kills)}"
    assert kills.total() == KILLS


def run_under_kills(job: Job, kills: Counter, chance: random.Random, console) -> None:
    """Start the job, kill a part of it, and again, until it has finished or there were enough kills and it may end."""
    while not job.finished:
        process = job.start(console)
        target = None
        if kills.total() < KILLS:
            target = kill_at_random(job, process, chance)
        code = process.wait()
        if target:
            kills[target] += 1
        else:
            assert code == 0, printed_by(job.output.parent)
        wait_until_nothing_is_left(job.output)


def printed_by(folder: Path) -> str:
    return (folder / "printed.txt").read_text()[-5000:]
