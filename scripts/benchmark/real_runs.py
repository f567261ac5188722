"""Short runs of pretrain.py, loader and all, with several ranks on this machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

from scripts.benchmark.ours import ROOT
from scripts.benchmark.side_by_side import WARM_UP, spread


def run_ranks(
    ranks: int, *, steps: int, batch: int, images_per_device: int, model: str, device: str, data_path: str, folder: Path
) -> dict:
    """Images a second of a real run, and the share of time that its steps waited for the loader.

    Args:
        steps: how many to measure.
        batch: images of a step, over all ranks.
        data_path: a folder with class folders.
        folder: where the run may write.
    """
    train = folder / "data" / "train"
    if not train.exists():
        train.parent.mkdir()
        train.symlink_to(Path(data_path).resolve())
    output = folder / f"ranks_{ranks}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["pretrain.py", "--config", "configs/pretrain_resnet50.yaml"]
    command += ["--data-path", str(train.parent), "--output-dir", str(output)]
    command += [f"model.name={model}", f"run.device={device}", "data.workers=1"]
    command += [f"train.batch_size={batch}", f"train.images_per_device={images_per_device}"]
    command += [f"schedule.epochs={steps}", "schedule.warmup_epochs=0"]
    command += ["logging.every_steps=1", "logging.pictures_every_steps=null", "checkpoint.every_minutes=1e6"]
    lines = lines_of_run(command, output / "log.jsonl", WARM_UP + steps)[WARM_UP:]
    figures = {"batch": batch, "images_per_device": images_per_device, "steps": len(lines)}
    for name in ("images_per_second", "data_wait_share"):
        figures[name] = spread([line[name] for line in lines])
    return figures


def lines_of_run(command: list[str], log: Path, count: int) -> list[dict]:
    """Start a run, and end it once its log has so many lines."""
    lines = []
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    while job.poll() is None and len(lines) < count:
        time.sleep(1)
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
    job.terminate()
    job.wait()
    return [json.loads(line) for line in lines]
