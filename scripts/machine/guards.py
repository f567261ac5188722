"""Whether a bad step changes nothing, equal steps end equal, and a resumed run goes on as if nothing had happened."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from models.mfm import MaskedFrequencyModelling
from scripts.machine.rows import Row, judged, not_run
from scripts.machine.workload import Training, Workload, config_of, unlike
from utils.errors import listed
from utils.precision import set_determinism
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.training.step import Metrics

BAD_STEPS = "bad steps"
REPEATS = "deterministic"
OVERFLOW = 1e38  # times a loss, in float32; more than float16's gradients can hold
LEAST_CAPABILITY_OF_FLOAT16 = (7, 0)  # a P40 computes it at 1/64 of its float32
STEPS, STEPS_BEFORE_RESUME = 6, 3
AVERAGED = {"optimizer.ema_decay": 0.9}


class SpoiltLoss:
    """The task's loss, times a number that spoils it."""

    def __init__(self, task: MaskedFrequencyModelling, factor: float):
        self.task, self.factor = task, factor

    def __call__(self, network: nn.Module, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        loss, metrics = self.task.loss(network, images, choices)
        return loss * self.factor, metrics


def bad_step_rows(work: Workload) -> list[Row]:
    """A loss that is NaN, in the precision of training; an overflow of float16."""
    return [nan_row(work), overflow_row(work)]


def nan_row(work: Workload) -> Row:
    what = "a NaN step leaves weights, buffers, moments and average as they were"
    training = small_training(work)
    training.step(0)
    before, counted_before = training.tensors(), int(training.state.bad_steps.total)  # the first may overflow float16
    training.step(1, loss_of=SpoiltLoss(training.task, float("nan")))
    changed = unlike(before, training.tensors())
    is_counted = int(training.state.bad_steps.total) == counted_before + 1
    measured = f"{len(changed)} of {len(before)} tensors changed; {'counted' if is_counted else 'not counted'}"
    remedy = "do not train: NaN would enter the weights; report it with the versions"
    if changed:
        remedy += f" and the tensors: {listed(changed, most=80)}"
    return judged(BAD_STEPS, what, not changed and is_counted, measured, "none changed, the step counted", remedy)


def overflow_row(work: Workload) -> Row:
    what = "a float16 overflow halves the scale, and leaves every tensor as it was"
    if work.device.type == "cuda" and torch.cuda.get_device_capability(work.device) < LEAST_CAPABILITY_OF_FLOAT16:
        return not_run(BAD_STEPS, what, "this GPU trains in float32")
    training = small_training(work, {"train.precision": "float16"})
    training.step(0)
    before, scale = training.tensors(), training.state.scaler.get_scale()
    training.step(1, loss_of=SpoiltLoss(training.task, OVERFLOW))
    changed, scale_after = unlike(before, training.tensors()), training.state.scaler.get_scale()
    return judged(
        BAD_STEPS, what, not changed and scale_after == scale / 2,
        f"scale {scale:.0f} to {scale_after:.0f}; {len(changed)} of {len(before)} tensors changed",
        "half the scale, none changed", "use train.precision=bfloat16 or float32, and report it with the versions",
        {"scale_before": scale, "scale_after": scale_after},
    )  # fmt: skip


def small_training(work: Workload, settings: dict | None = None) -> Training:
    """Two micro-batches of a few images a step, with an average of the weights."""
    size = {"train.images_per_device": work.few_images, "train.batch_size": 2 * work.few_images}
    return Training.start(work, config_of(work, AVERAGED | size | (settings or {})), work.alone, accumulation=2)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Inside, the process computes as with run.deterministic; afterwards as without it, at its full speed."""
    environment = dict(os.environ)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    set_determinism(True)
    try:
        yield
    finally:
        set_determinism(False)
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]  # NCCL may read its choice of algorithms later, and is to be measured without it


def repeat_rows(work: Workload) -> list[Row]:
    """Six steps twice, and three steps, a checkpoint, and three steps of another start; all with run.deterministic."""
    remedy = "runs repeat only roughly on this device; compare several seeds, and do not rely on resuming bit for bit"
    with deterministic():
        first = after_steps(small_training(work), 0, STEPS)
        again = after_steps(small_training(work), 0, STEPS)
        resumed = after_resuming(work)
    rows = []
    for what, other in ((f"{STEPS} steps twice", again), (f"{STEPS_BEFORE_RESUME} steps, resume, the rest", resumed)):
        changed = unlike(first, other)
        measured = f"{len(changed)} of {len(first)} tensors differ"
        rows.append(judged(REPEATS, f"{what}: equal bit for bit", not changed, measured, "none differs", remedy))
    return rows


def after_steps(training: Training, first: int, last: int) -> dict[str, torch.Tensor]:
    """Every tensor once the steps from `first` to before `last` are taken."""
    for step in range(first, last):
        training.step(step)
    return training.tensors()


def after_resuming(work: Workload) -> dict[str, torch.Tensor]:
    """The same after a checkpoint in between, which another start has loaded from its file."""
    training = small_training(work)
    after_steps(training, 0, STEPS_BEFORE_RESUME)
    folder = work.folder / f"rank_{work.world.rank}"
    checkpoints = Checkpoints(folder, keep=1, every_steps=None, every_minutes=15)
    path = checkpoints.save(STEPS_BEFORE_RESUME, training.state.state_dict())
    resumed = small_training(work)
    resumed.state.load_state_dict(read_checkpoint(path))
    shutil.rmtree(folder)
    return after_steps(resumed, STEPS_BEFORE_RESUME, STEPS)
