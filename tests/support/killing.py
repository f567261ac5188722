"""Kill small runs again and again at random moments, and see whether they end as if nothing had happened.

python scripts/stress_resume.py                              # 12 kills of pretraining, 12 of finetuning
python scripts/stress_resume.py --kills 100 --seed 7

Two gloo ranks with two loader workers each, under torchrun. SIGKILL goes to the launcher, a rank, a loader worker, or
all ranks while one writes a checkpoint; then the same command is given again. Weights, optimizer, average, log and
result must be those of an uninterrupted run, bit for bit. Exit code 0: all kills survived; 1: not all.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.make_sample_data import BUNDLE, REPOSITORY, read_bundle, write_folders
from utils.distributed import run_entry
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

TIMES = """time images_per_second data_wait_share workers_needed peak_memory_gb seconds resumed checkpoint
    provenance""".split()
STATE = ("model", "optimizer", "scaler", "ema", "health", "step")
TARGETS = ("launcher", "rank", "worker", "save")
WORDS = """model.name=resnet18 data.train_crop_size=32 train.precision=float32 logging.every_steps=1 data.workers=2
    optimizer.learning_rate=1e-3 optimizer.ema_decay=0.9 schedule.warmup_epochs=0 checkpoint.every_steps=3
    --batch-size 16 train.images_per_device=4 --epochs 16""".split()
ENTRIES = {
    "pretrain.py": "--config configs/sample_pretrain.yaml filter.radius=3".split(),
    "finetune.py": """--config configs/sample_finetune.yaml data.val_crop_size=32 data.mixup_alpha=0.1
        data.cutmix_alpha=1 data.rand_augment_ops=2 run.evaluate_every_epochs=5""".split(),
}


def start(entry: str, data: Path, output: Path, told) -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", entry]
    where = ["--data-path", str(data), "--output-dir", str(output), "--resume", "auto"]
    command, environment = [*launch, *ENTRIES[entry], *WORDS, *where], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=told, stderr=told)


def processes_of(output: Path) -> dict[int, int]:
    """Every live process that names the folder on its command line (launcher, ranks, loader workers): its parent."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if str(output) in (place / "cmdline").read_text():
                state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
                found |= {} if state == "Z" else {int(place.name): int(parent)}
    return found


def kill_at_random(process: subprocess.Popen, output: Path, chance: random.Random) -> str | None:
    """SIGKILL a random part of the job at a random moment. Returns: what was hit; None if the job ended before."""
    target, log = chance.choice(TARGETS), output / "log.jsonl"
    until = lines_of(log) + chance.randint(1, 6)
    while process.poll() is None and (lines_of(log) < until or not (output / "checkpoints").exists()):
        time.sleep(0.01)
    time.sleep(chance.random() * 0.2)
    while target == "save" and process.poll() is None and not [*output.glob("checkpoints/*.pt.tmp")]:
        time.sleep(0.001)
    family = processes_of(output)
    ranks = [number for number, parent in family.items() if parent == process.pid]
    workers = [number for number, parent in family.items() if parent in ranks]
    pool = {"launcher": [process.pid], "worker": workers}.get(target, ranks)
    if process.poll() is not None or not pool:
        return None
    for victim in ranks if target == "save" else [chance.choice(pool)]:
        os.kill(victim, signal.SIGKILL)
    return target


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unequal(one, other, where: str = "") -> list[str]:
    """The places in which nested containers differ by a bit; times are left out."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        keys = (one.keys() | other.keys()).difference(TIMES)
        return [place for key in keys for place in unequal(one.get(key), other.get(key), f"{where}.{key}")]
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    same = torch.equal(one, other) if tensors else type(one) is type(other) and one == other
    return [] if same else [where]


def everything(output: Path) -> dict:
    """What a run leaves that must not depend on how often it was killed."""
    saved = read_checkpoint(output / "checkpoints/last.pt")
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {key: saved[key] for key in STATE} | {"log": log, "result": json.loads((output / "result.json").read_text())}


def stress(entry: str, kills: int, chance: random.Random, folder: Path) -> tuple[int, float]:
    """Returns: how many kills were survived, seconds a kill cost."""
    data, whole, told = folder / "images", folder / f"{entry}-whole", folder / f"{entry}.txt"
    hit, survived, lost, attempt = Counter(), 0, 0.0, 0
    with open(told, "wb") as console:
        began = time.monotonic()
        if start(entry, data, whole, console).wait():
            raise UserError(f"{entry}: fails without any kill; see {told}")
        alone = time.monotonic() - began
        while sum(hit.values()) < kills:
            output, attempt = folder / f"{entry}-killed-{attempt}", attempt + 1
            began, before = time.monotonic(), sum(hit.values())
            while not (output / "result.json").exists():
                process = start(entry, data, output, console)
                target = kill_at_random(process, output, chance) if sum(hit.values()) < kills else None
                hit.update([target] if target else [])
                code = process.wait()
                if target is None and code:
                    raise UserError(f"{entry}: ended with exit code {code} by itself; see {told}")
                while processes_of(output):
                    time.sleep(0.05)
            differing = unequal(everything(whole), everything(output))
            survived += 0 if differing else sum(hit.values()) - before
            lost += time.monotonic() - began - alone
            print(f"{entry}: {dict(hit)}; " + (f"DIFFERS in {differing[:5]}" if differing else "equal"), flush=True)
    return survived, lost / kills


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Kill small runs at random moments and compare how they end.")
    parser.add_argument("--kills", type=int, default=12, help="of pretraining, and as many of finetuning")
    parser.add_argument("--seed", type=int, default=0, help="of targets and moments")
    arguments, survived = parser.parse_args(argv), 0
    kills = arguments.kills
    with tempfile.TemporaryDirectory(prefix="stress-resume-") as folder:
        few = {split: [images[:6] for images in classes] for split, classes in read_bundle(BUNDLE).items()}
        write_folders(few, Path(folder, "images"))
        for entry in ENTRIES:
            alive, lost = stress(entry, kills, random.Random(f"{arguments.seed} {entry}"), Path(folder))
            survived += alive
            print(f"{entry}: survived {alive} / {kills} kills, {lost:.1f} s lost per kill")
    print(f"survived {survived} / {kills * len(ENTRIES)}")
    return 0 if survived == kills * len(ENTRIES) else 1


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
