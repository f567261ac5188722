"""What pretraining and finetuning do alike around their loops: open a run, build its state, resume it, log it.

The functions take a whole config and use the sections that both kinds have, so the entry files stay one screen long.
"""

from __future__ import annotations

import signal
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from utils.checkpoint import Checkpoints
from utils.config import to_dict
from utils.distributed import World, join
from utils.errors import UserError
from utils.optimizer import adamw
from utils.precision import choose_precision, set_numerics
from utils.run_folder import find_resume, read_resume, write_config, write_json
from utils.run_log import RunLog
from utils.schedule import learning_rate
from utils.training import TrainingState

STOPPED = 75  # exit code after a stop on request: saved, to be continued with --resume auto (EX_TEMPFAIL)


class StopRequest:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C instead of ending at once; a second Ctrl-C ends at once."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, _number, _frame) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Run:
    """A run with its ranks, device, precision and folder, which knows what it continues."""

    world: World
    dtype: torch.dtype  # of autocast
    output: Path
    checkpoints: Checkpoints
    resume: Path | None
    workers: int  # loader processes of a rank
    stop: StopRequest = field(default_factory=StopRequest)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        if self.world.rank == 0:
            print(text, flush=True)

    def write_result(self, name: str, content: dict) -> None:
        if self.world.rank == 0:
            write_json(self.output / name, content | {"seconds": round(time.monotonic() - self.began, 1)})


def open_run(config) -> Run:
    """Join the ranks, set the numerics, look at the output folder.

    Raises: UserError if the folder holds checkpoints and run.resume does not say to continue.
    """
    world = join(config.run.device, config.run.timeout_minutes)
    dtype = choose_precision(config.train.precision, world.device)
    set_numerics(dtype, config.train.tf32, config.run.deterministic)
    output = Path(config.run.output_dir)
    checkpoints = Checkpoints(output / "checkpoints", **asdict(config.checkpoint))
    resume = find_resume(checkpoints, config.run.resume) if world.rank == 0 else None
    workers = world.cores_of_a_rank() if config.data.workers is None else config.data.workers
    return Run(world, dtype, output, checkpoints, world.from_rank_0(resume), workers)


def build_state(config, run: Run, model: nn.Module) -> TrainingState:
    """The model on its device in its memory layout, with its optimizer, behind the ranks' gradient exchange."""
    if config.model.sync_batch_norm:
        if run.world.device.type == "cpu":
            raise UserError("model.sync_batch_norm = true: torch has it for GPUs only; set it to false")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = place(model, run.world.device, config.model.channels_last)
    how = config.optimizer
    optimizer = adamw(model, how.learning_rate, how.betas, how.weight_decay, how.weight_decay_on)
    return TrainingState.make(model, optimizer, run.world, run.dtype, how.clip_grad_norm, how.ema_decay)


def place(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def resume_state(config, run: Run, state: TrainingState, free_keys: frozenset[str]) -> int:
    """Load what the run continues, if anything, and write config.yaml. Returns: completed steps."""
    completed = 0
    if run.resume:
        saved = read_resume(run.resume, to_dict(config), free_keys, config.run.allow_config_change)
        state.load_state_dict(saved)
        completed = saved["step"]
        run.say(f"resuming after step {completed} from {run.resume}")
    elif config.run.resume:
        run.say(f"{run.output}: nothing to resume yet, starting anew")
    if run.world.rank == 0:
        write_config(run.output, to_dict(config))
    return completed


def open_log(config, run: Run, completed: int, total_steps: int, what: str) -> RunLog:
    log = RunLog(run.output, run.world, config.logging.every_steps, completed, total_steps, config.train.batch_size)
    ranks = f"{run.world.size} rank{'s' if run.world.size > 1 else ''} on {run.world.device.type}"
    log.say(
        f"{what}; {total_steps} steps of {config.train.batch_size} images, {ranks}, {run.dtype}".replace("torch.", "")
    )
    return log


def learning_rate_of(config, steps_per_epoch: int):
    """The run's learning rate as a function of the step."""
    return partial(
        learning_rate, steps_per_epoch=steps_per_epoch, peak=config.optimizer.learning_rate, **asdict(config.schedule)
    )
