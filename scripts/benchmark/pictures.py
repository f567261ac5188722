"""What one event of `logging.pictures_every_steps` costs."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from configs.schema import LoggingOptions, PretrainConfig
from data.folder import ImageFolder
from data.samples import fixed_images
from models.mfm import MaskedFrequencyModelling, network_from_config
from scripts.benchmark.side_by_side import WARM_UP, spread, synchronize
from scripts.benchmark.workload import LEARNING_RATE, noise_batch
from utils.config import parse_command_line
from utils.run.job import make_state, open_job, with_resolved_choices
from utils.run.log import RunLog
from utils.training.hooks import Every, ShowReconstructions
from utils.training.step import training_step

IMAGES_SHOWN = 6  # as in pretrain.py
NEVER = 10**9  # steps


def measure_pictures(options: argparse.Namespace, folder: Path) -> dict:
    """An event beside a training step of that batch, and its share of the time of training.

    It notes the recipe's crop and precision as options.size and options.precision.
    """
    words = ["--config", options.config, "--output-dir", str(folder)]
    words += [f"run.device={options.device}", "logging.pictures_every_steps=1"]
    config = parse_command_line(PretrainConfig, words, "")
    job = open_job(config)
    config = with_resolved_choices(config, options.batch, job)
    options.size, options.precision = config.data.train_crop_size, config.train.precision
    state = make_state(config, job, network_from_config(config), steps_per_epoch=1)
    task = MaskedFrequencyModelling.from_config(config, job.world.device)
    log = RunLog(
        job.output, job.world, every_steps=NEVER, first_step=0, total_steps=NEVER, steps_per_epoch=NEVER,
        batch_size=options.batch,
    )  # fmt: skip
    train = ImageFolder(str(Path(config.data.data_path) / "train"))
    images = fixed_images(train, IMAGES_SHOWN, options.size, config.data.interpolation)
    images = images.to(job.world.device)
    hook = ShowReconstructions(Every(1, NEVER), task, state.model, images, task.corruption.radii, log)
    micro_batches = [noise_batch(options.batch, options.size, options.device)]

    step_ms, event_ms = [], []
    for turn in range(-WARM_UP, options.pairs):
        step = milliseconds(lambda: training_step(state, 0, LEARNING_RATE, micro_batches, task.loss), options.device)
        event = milliseconds(lambda: hook.run(1), options.device)
        if turn >= 0:
            step_ms.append(step)
            event_ms.append(event)
    log.close()
    every_steps = LoggingOptions().pictures_every_steps
    event, steps = statistics.median(event_ms), every_steps * statistics.median(step_ms)
    return {
        "model": config.model.name,
        "step_ms": spread(step_ms),
        "event_ms": spread(event_ms),
        "every_steps": every_steps,
        "share_of_training_time": event / (event + steps),
    }


def milliseconds(work: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    work()
    synchronize(device)
    return 1000 * (time.perf_counter() - began)
