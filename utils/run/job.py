"""What pretraining and finetuning do alike around their loops: open a run and its folder, build its state, resume it.

The functions take a whole config and use the sections that both kinds have, so the entry files stay one screen long.
"""

import errno
import fcntl
import functools
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy
import torch
import torchvision
from torch import nn

from utils.config import to_dict, to_yaml
from utils.distributed import World, join
from utils.errors import UserError, first_line
from utils.files import write_atomically
from utils.precision import choose_precision, set_numerics
from utils.process import available_cores
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.log import RunLog
from utils.training.schedule import learning_rate
from utils.training.step import TrainingState, adamw


@dataclass(frozen=True)
class Run:
    """A run with its ranks, device, precision and folder, which knows what it continues."""

    world: World
    dtype: torch.dtype  # of autocast
    output: Path
    checkpoints: Checkpoints
    resume: Path | None
    loading: tuple[int, torch.device, float]  # loader processes of a rank, their device, minutes to wait for them
    lock: IO | None  # rank 0's hold on the folder
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        if self.world.rank == 0:
            print(text, flush=True)

    def write_result(self, name: str, content: dict) -> None:
        if self.world.rank == 0:
            took = {"seconds": round(time.monotonic() - self.began, 1), "resumed": self.resume is not None}
            write_json(self.output / name, content | took)


def open_run(config, writes_checkpoints: bool = True) -> Run:
    """Join the ranks, set the numerics, take hold of the output folder.

    Raises: UserError if another job has the folder, or it holds checkpoints and run.resume does not say to continue.
    """
    world = join(config.run.device, config.run.timeout_minutes)
    dtype = choose_precision(config.train.precision, world.device)
    set_numerics(dtype, config.train.tf32, config.run.deterministic)
    output = Path(config.run.output_dir)
    checkpoints = Checkpoints(output / "checkpoints", **asdict(config.checkpoint))
    lock = resume = None
    if world.rank == 0 and writes_checkpoints:
        lock = locked(output)
        resume = find_resume(checkpoints, config.run.resume)
    workers = max(1, available_cores() // world.local_size) if config.data.workers is None else config.data.workers
    loading = (workers, world.device, config.run.timeout_minutes)
    return Run(world, dtype, output, checkpoints, world.gather(resume)[0], loading, lock)


def locked(folder: Path) -> IO | None:
    """A file in the folder, locked until this process ends in whatever way, that says who holds it.

    A POSIX lock: loader workers do not inherit it, and over NFS it holds between machines unless mounted `nolock`.
    Raises: UserError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "run.lock", "a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print(f"warning: {folder}: no locks there ({error.strerror}): two jobs could write into it", flush=True)
            return None
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{folder}: in use by {holder}; end that job, or give another --output-dir") from error
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n")
    file.flush()
    return file


def resolved(config, images_per_device: int, dtype: torch.dtype):
    """The config with what was left open settled, as it is saved and compared on resuming."""
    train = replace(config.train, images_per_device=images_per_device, precision=str(dtype).removeprefix("torch."))
    return replace(config, train=train)


def build_state(config, run: Run, model: nn.Module) -> TrainingState:
    """The model on its device in its memory layout, with its optimizer, behind the ranks' gradient exchange."""
    if config.model.sync_batch_norm:
        if run.world.device.type == "cpu":
            raise UserError("model.sync_batch_norm = true: torch has it for GPUs only; set it to false")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = place(model, run.world.device, config.model.channels_last)
    how = config.optimizer
    optimizer = adamw(model, how.learning_rate, how.betas, how.weight_decay, how.weight_decay_on)
    return TrainingState(model, optimizer, run.world, run.dtype, how.clip_grad_norm, how.ema_decay)


def place(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def resume_state(config, run: Run, state: TrainingState, free_keys: frozenset[str], content: dict) -> int:
    """Load what the run continues, if anything, and write config.yaml. Returns: completed steps.

    Args:
        free_keys: "section.key" of knobs that may differ from the checkpoint's.
        content: what checkpoints hold beside the state; it must be as it was.
    Raises: UserError if the checkpoint belongs to another recipe or data set.
    """
    completed = 0
    if run.resume:
        saved = read_resume(run.resume, config, free_keys, content)
        try:
            state.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{run.resume}: its state does not fit this config ({first_line(error)})") from error
        completed = saved["step"]
        run.say(f"resuming after step {completed} from {run.resume}")
    elif config.run.resume:
        run.say(f"{run.output}: nothing to resume yet, starting anew")
    if run.world.rank == 0:
        run.checkpoints.set_aside_after(completed)
        write_config(run.output, to_dict(config))
    return completed


def comparable(config, keys: tuple[str, ...]) -> dict[str, float | str]:
    """The values of some knobs as TensorBoard's HParams tab takes them: numbers, or words, `-` where there is none."""
    values = flat(to_dict(config))
    found = {key: "-" if values.get(key) is None else values[key] for key in keys}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in found.items()}


def open_log(config, run: Run, completed: int, total_steps: int, what: str) -> RunLog:
    every, batch = config.logging.every_steps, config.train.batch_size
    log = RunLog(run.output, run.world, every, completed, total_steps, batch, run.loading[0])
    ranks = f"{run.world.size} rank{'s' if run.world.size > 1 else ''} on {run.world.device.type}"
    log.say(
        f"{what}; {total_steps} steps of {config.train.batch_size} images, {ranks}, {run.dtype}".replace("torch.", "")
    )
    return log


def learning_rate_of(config, steps_per_epoch: int):
    """The run's learning rate as a function of the step."""
    return functools.partial(
        learning_rate, steps_per_epoch=steps_per_epoch, peak=config.optimizer.learning_rate, **asdict(config.schedule)
    )


def find_resume(checkpoints: Checkpoints, resume: str | None) -> Path | None:
    """The checkpoint to continue from.

    Args:
        resume: a path, "auto" (the newest of the run's own that is whole, if there is any), or None.
    Raises: UserError if the folder holds checkpoints and nothing is said of resuming, or none of them can be read.
    """
    there = checkpoints.all()
    if there and resume is None:
        raise UserError(
            f"run.output_dir = {checkpoints.folder.parent}: holds checkpoints of an earlier run ({there[-1].name}); "
            "continue it with --resume auto, or give another --output-dir"
        )
    if resume != "auto":
        return resume and Path(resume)
    for path in reversed(there):
        try:
            read_checkpoint(path)
            return path
        except UserError as error:
            print(f"warning: {error}; trying the one before", flush=True)
    if there:
        raise UserError(f"{checkpoints.folder}: none of its checkpoints can be read (see above); start another folder")
    return None


def read_resume(path: Path, config, free_keys: frozenset[str], content: dict) -> dict:
    """The checkpoint to resume, if it belongs to the same computation on the same images.

    Args:
        free_keys: "section.key" of knobs that may differ; with run.allow_config_change all may.
        content: what else checkpoints hold; it must be as it was.
    Raises: UserError listing what differs.
    """
    saved = read_checkpoint(path)
    if not {"model", "optimizer", "step", "config"} <= saved.keys() or not isinstance(saved["config"], dict):
        raise UserError(f"{path}: holds no training state to resume; start from its weights with --weights")
    # A checkpoint from before a knob was made had its default.
    before, now = flat(to_dict(type(config)())) | flat(saved["config"]), flat(to_dict(config))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free_keys]
    if changed and not config.run.allow_config_change:
        listed = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise UserError(
            f"{path}: was trained with another config ({listed}); take it back, or continue with --allow-config-change"
        )
    for key, value in content.items():
        if key != "config" and saved.get(key) != value:
            raise UserError(f"{path}: was trained on other data: {key} differ; resume with the data set it began with")
    return saved


def flat(config: dict) -> dict:
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


@functools.cache
def commit() -> str:
    """Of the code that runs: as at the start, since the checkout may move on meanwhile."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git, or not a clone)"


def provenance() -> dict[str, str]:
    """What ran where: command, commit, versions, machine."""
    return {
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }


def write_config(folder: Path, config: dict) -> None:
    """config.yaml: itself a config, with the provenance in comments above it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "".join(f"# {key}: {' '.join(value.splitlines())}\n" for key, value in provenance().items())
    write_atomically(folder / "config.yaml", lambda file: file.write((header + to_yaml(config)).encode()))


def write_json(path: Path, content: dict) -> None:
    """Indented, with the provenance, replacing the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content | {"provenance": provenance()}, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
