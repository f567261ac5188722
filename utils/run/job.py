"""One start of a run: its ranks, device, precision and folder, which pretraining and finetuning open alike."""

import errno
import fcntl
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol, TypeVar

import torch
from torch import nn

from configs.schema import FinetuneConfig, ModelOptions, OptimizerOptions, PretrainConfig, ScheduleOptions, TrainOptions
from utils import restart
from utils.console import fitted, say
from utils.distributed import World, join
from utils.errors import UserError
from utils.limits import available_cores, check_loader_limits
from utils.precision import choose_precision, set_determinism, set_numerics, uses_channels_last
from utils.run.agreement import check_ranks_agree, facts_of_files, facts_of_start
from utils.run.checkpoint import Checkpoints
from utils.run.provenance import write_json
from utils.run.reading import read_json
from utils.run.resume import find_resume
from utils.training.average import AverageRule
from utils.training.compiling import check_compile
from utils.training.micro_batch import check_micro_batch
from utils.training.optimizer import make_optimizer
from utils.training.schedule import in_steps
from utils.training.step import TrainingState

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


class HasRemarks(Protocol):
    """The part of a data.folder.ImageFolder that the job needs."""

    def remarks(self) -> list[str]: ...


Folder = TypeVar("Folder", bound=HasRemarks)


@dataclass(frozen=True)
class Job:
    """Everything known about this start of a run before its first step."""

    world: World
    dtype: torch.dtype  # of autocast
    output: Path  # the run's folder
    checkpoints: Checkpoints
    resume: Path | None  # the checkpoint to continue from
    workers: int  # loader processes of each rank
    lock: IO | None  # rank 0's hold on the folder
    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        """A line on the console, from rank 0 only."""
        if self.world.rank == 0:
            say(line)

    def warn(self, warning: str | None) -> None:
        """A warning, if there is one."""
        if warning:
            self.say(warning)

    def open_folder(self, make: Callable[[], Folder]) -> Folder:
        """A folder of images, listed by one rank of each machine before the others; what is odd about it is said."""
        folder = self.world.in_turn(make)
        for line in folder.remarks():
            self.say(fitted(line))
        return folder

    def write_result(self, name: str, content: dict) -> None:
        """A JSON file in the run's folder, with what it took and where it ran; by rank 0 only."""
        if self.world.rank == 0:
            seconds = round(time.monotonic() - self.started, 1)
            write_json(self.output / name, content | {"seconds": seconds, "resumed": self.resume is not None})

    def has_finished(self, first_step: int, total_steps: int) -> bool:
        """Whether nothing is left to do: all steps were taken, and their result is written. All ranks ask together."""
        has_result = False
        if self.world.rank == 0:  # which wrote it; a longer schedule of an earlier start may have left another one
            has_result = steps_of_result(self.output / "result.json") == total_steps
        return self.world.gather(has_result)[0] and first_step == total_steps

    def check_files_agree(self, data: dict[str, dict], weights: str | None) -> None:
        """Raises: UserError on all ranks unless they see the same images, initial weights and checkpoint.

        Args:
            data: {"train": data.identity.identity(folder), …}.
        """
        if self.world.size == 1:
            return
        if self.resume is not None:
            weights = None  # nothing reads them
        check_ranks_agree(self.world, facts_of_files(data, weights, self.resume))


def open_job(config: PretrainConfig | FinetuneConfig, writes_checkpoints: bool = True) -> Job:
    """Join the ranks, set the numerics, take hold of the run's folder.

    Raises: UserError if the ranks differ in config, code or versions, the folder cannot be one of a run, another job
        has it, or it holds checkpoints and run.resume does not say to continue.
    """
    if writes_checkpoints:
        restart.note_training()
    set_determinism(config.run.deterministic)
    world = join(config.run.device, config.run.timeout_minutes)
    dtype = choose_precision(config.train.precision, world.device)
    set_numerics(dtype, config.train.tf32)
    check_ranks_agree(world, facts_of_start(config, device=world.device.type, precision=str(dtype)))
    output = Path(config.run.output_dir)
    checkpoints = Checkpoints(output / "checkpoints", **asdict(config.checkpoint))
    lock = resume = None
    if world.rank == 0:
        check_output_folder(config.run.output_dir, config.data.data_path)
    if world.rank == 0 and writes_checkpoints:
        lock = lock_folder(output)
        resume = find_resume(checkpoints, config.run.resume)
    workers = config.data.workers
    if workers is None:
        workers = max(1, available_cores() // world.local_size)
    check_loader_limits(workers, world.local_size, largest_batch_bytes(config, world.size))
    return Job(
        world=world, dtype=dtype, output=output, checkpoints=checkpoints, resume=world.gather(resume)[0],
        workers=workers, lock=lock,
    )  # fmt: skip


def largest_batch_bytes(config: PretrainConfig | FinetuneConfig, ranks: int) -> int:
    """Of the images of a batch that a loader worker hands over at once, in training or in an evaluation."""
    if isinstance(config, FinetuneConfig):
        if config.run.eval_only:
            return evaluation_batch_bytes(config)
        return max(training_batch_bytes(config, ranks), evaluation_batch_bytes(config))
    return training_batch_bytes(config, ranks)


def training_batch_bytes(config: PretrainConfig | FinetuneConfig, ranks: int) -> int:
    images = max(1, config.train.batch_size // ranks)
    if config.train.images_per_device is not None:
        images = min(images, config.train.images_per_device)
    return 3 * images * config.data.train_crop_size**2


def evaluation_batch_bytes(config: FinetuneConfig) -> int:
    """There is a crop of each image for each resize size."""
    options = config.data
    return 3 * options.val_batch_size * len(options.val_resize_size) * options.val_crop_size**2


def steps_of_result(path: Path) -> int | None:
    """The steps of the run whose result.json this is; None if there is none, or it cannot be read."""
    try:
        return read_json(path).get("steps")
    except ValueError:
        return None


def check_output_folder(output_dir: str, data_path: str) -> None:
    """Raises: UserError if this cannot be the folder of a run: no name, a file, or a place among the images."""
    given = f"run.output_dir = {output_dir}"
    if not output_dir.strip():
        raise UserError(f"run.output_dir = {output_dir!r}: must name a folder, as in --output-dir runs/first")
    output = Path(output_dir).resolve()
    for path in (output / "checkpoints", output, *output.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{given}: must be a folder, but {path} is a file; give another --output-dir")
    if output == Path(data_path).resolve():
        raise UserError(
            f"{given}: is the folder of the images (data.data_path) itself; give an --output-dir of its own"
        )
    parts = [part for part in (Path(data_path, "train"), Path(data_path, "val")) if part.is_dir()]
    for images in parts or [Path(data_path)]:  # each may be a link to elsewhere
        if images.is_dir() and output.is_relative_to(images.resolve()):
            raise UserError(
                f"{given}: lies inside {images}, where a run's files can be taken for data; give an --output-dir "
                "outside of it"
            )


def lock_folder(folder: Path) -> IO | None:
    """A file in the folder, locked until this process ends in whatever way, that says who holds it.

    A POSIX lock: loader workers do not inherit it, and over NFS it holds between machines unless mounted `nolock`.
    Returns: None, after a warning, where the file system has no locks.
    Raises: UserError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "run.lock", "a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            say(f"warning: {folder}: no locks there ({error.strerror}): two jobs could write into it")
            return None
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{folder}: in use by {holder}; end that job, or give another --output-dir") from error
    holder = f"host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n"
    try:
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), holder.encode())
    except OSError as error:  # as on a full disk: the lock holds all the same
        say(f"warning: {folder / 'run.lock'}: cannot say who holds it ({error.strerror})")
    return file


def with_resolved_choices(config: Config, images_per_device: int, job: Job) -> Config:
    """The config with `auto` and null filled in, as it is saved and compared on resuming.

    model.channels_last stays null, since training and evaluation choose differently: see `uses_channels_last`.
    Args:
        images_per_device: of the plan of batches; if it is below what the config allows, a line says so.
    """
    limit = config.train.images_per_device
    if limit is not None and images_per_device < limit:
        job.say(lowered_line(config.train, images_per_device, job.world.size))
    precision = str(job.dtype).removeprefix("torch.")
    return replace(config, train=replace(config.train, images_per_device=images_per_device, precision=precision))


def lowered_line(options: TrainOptions, images_per_device: int, ranks: int) -> str:
    """That micro-batches are smaller than they may be, and what would make them fit."""
    share = options.batch_size // ranks
    line = (
        f"train.images_per_device {options.images_per_device} → {images_per_device}: a rank's share of the batch, "
        f"{share} images, divides into no larger micro-batches; BatchNorm sees {images_per_device} at a time"
    )
    if 2 * images_per_device <= min(options.images_per_device, share):
        unit = options.images_per_device * ranks
        below = max(options.batch_size // unit * unit, unit)
        line = f"warning: {line}; a batch of {below} or {below + unit} would be cut as asked"
    return fitted(line)


def to_device(model: nn.Module, device: torch.device, options: ModelOptions, dtype: torch.dtype) -> nn.Module:
    """The model on its device, in the memory layout that `options` and the format it computes in ask for."""
    memory_format = torch.contiguous_format
    if uses_channels_last(options.channels_last, dtype, device):
        memory_format = torch.channels_last
    return model.to(device, memory_format=memory_format)


def sync_batch_norm_line(model: nn.Module) -> str:
    """What SyncBatchNorm costs beside its exchanges. The number is of torch's own code."""
    layers = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    waits = 3 * layers
    return f"model.sync_batch_norm: torch's SyncBatchNorm waits for the GPU {waits} times a forward pass, and is slow"


def make_state(
    config: PretrainConfig | FinetuneConfig, job: Job, model: nn.Module, steps_per_epoch: int
) -> TrainingState:
    """The model on its device with its optimizer, behind the ranks' gradient exchange.

    Args:
        config: as `with_resolved_choices` has it.
    Raises: UserError if a micro-batch has too few images for the model or for mixing, or nothing can be compiled here.
    """
    check_micro_batch(config, model, job.world.size)
    check_compile(config.train.compile, job.world.device)
    if config.model.sync_batch_norm:
        if job.world.device.type == "cpu":
            raise UserError("model.sync_batch_norm = true: torch has it for GPUs only; set it to false")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        job.say(fitted(sync_batch_norm_line(model)))
    model = to_device(model, job.world.device, config.model, job.dtype)
    return TrainingState(
        model, make_optimizer(model, config.optimizer), job.world, job.dtype,
        seed=config.run.seed, image_size=config.data.train_crop_size, clip_grad_norm=config.optimizer.clip_grad_norm,
        average_rule=average_rule(config.optimizer, config.schedule, steps_per_epoch),
        compile_with=config.train.compile,
    )  # fmt: skip


def average_rule(options: OptimizerOptions, schedule: ScheduleOptions, steps_per_epoch: int) -> AverageRule | None:
    """The rule of the average of the weights, if there is to be one."""
    if options.ema_decay is None:
        return None
    restart_steps = 0
    if options.ema_restart_in_warmup:
        restart_steps = in_steps(math.ceil(schedule.warmup_epochs), schedule, steps_per_epoch)
    return AverageRule(
        decay=options.ema_decay, every_steps=options.ema_every_steps,
        average_buffers=options.ema_buffers == "averaged", restart_steps=restart_steps,
        steps_per_epoch=in_steps(1, schedule, steps_per_epoch),
    )  # fmt: skip
