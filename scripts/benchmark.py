"""What things cost on this machine.

python scripts/benchmark.py pictures                                  # the sample's recipe: ResNet-50 at 64 pixels
python scripts/benchmark.py pictures --config configs/pretrain_resnet50.yaml --batch 64 --json pictures.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configs.schema import Logging, PretrainConfig
from data.folder import ImageFolder
from models.resnet import masked_frequency_model
from pretrain import pictures_of, pretraining_loss
from utils.config import parse_command_line
from utils.distributed import run_entry
from utils.run import build_state, open_log, open_run, provenance, resolved
from utils.training import training_step


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, fastest and slowest, in ms."""
    found = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {f"{name}_ms": round(1000 * value, 2) for name, value in found.items()}


def timed(task, times: int, device: torch.device) -> dict[str, float]:
    """`spread` of so many calls after two to warm up, the device waited for each time."""
    seconds = []
    for turn in range(times + 2):
        began = time.perf_counter()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += [time.perf_counter() - began] if turn > 1 else []
    return spread(seconds)


def pictures(arguments: argparse.Namespace) -> dict:
    """One event of `logging.pictures_every_steps`, and its share of the time of a training step of the same model.

    The step has `--batch` images, random ones without a loader; with the recipe's whole batch a step takes longer, and
    the share is smaller.
    """
    words = ["--config", arguments.config, f"run.device={arguments.device}", *arguments.overrides]
    with tempfile.TemporaryDirectory() as folder:
        config = parse_command_line(PretrainConfig, [*words, "--output-dir", folder], "")
        config = replace(config, logging=replace(config.logging, pictures_every_steps=1))
        run = open_run(config)
        config = resolved(config, arguments.batch, run.dtype)
        size, device = config.data.train_crop_size, run.world.device
        model = masked_frequency_model(config.model.name, 1 if config.loss.target == "gray" else 3)
        state, log = build_state(config, run, model), open_log(config, run, 0, 10**9, "benchmark")
        images = torch.randint(0, 256, (arguments.batch, 3, size, size), dtype=torch.uint8, device=device)
        batch = (images, torch.arange(arguments.batch, device=device) % 2 == 0)
        loss_of = pretraining_loss(config, device)
        train = ImageFolder(str(Path(config.data.data_path) / "train"))
        show = pictures_of(config, run, log, state.model, train, 10**9)
        step = timed(lambda: training_step(state, 0, 1e-4, [batch], loss_of), arguments.steps, device)
        event = timed(lambda: show(1), arguments.times, device)
        log.close()
    every = Logging().pictures_every_steps
    return {
        "model": config.model.name, "pixels": size, "batch": arguments.batch, "precision": config.train.precision,
        "device": str(device), "threads": torch.get_num_threads(), "event": event, "events": arguments.times,
        "training_step": step, "steps": arguments.steps, "every_steps": every,
        "share_of_training_time": event["median_ms"] / (event["median_ms"] + every * step["median_ms"]),
        "provenance": provenance(),
    }  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="What things cost on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_pictures = commands.add_parser("pictures", help="one event of logging.pictures_every_steps")
    of_pictures.add_argument("--config", default="configs/sample_pretrain.yaml", help="a pretraining recipe")
    of_pictures.add_argument("--batch", type=int, default=64, help="images of a training step")
    of_pictures.add_argument("--times", type=int, default=20, help="events")
    of_pictures.add_argument("--steps", type=int, default=10, help="training steps")
    of_pictures.add_argument("overrides", nargs="*", help="section.key=value")
    for command in (of_pictures,):
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        command.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    found = {"pictures": pictures}[arguments.command](arguments)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
