"""How fast a device trains, what a step starts on it, and how many images fit."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from scripts.benchmark.side_by_side import launches_of, synchronize
from scripts.machine.environment import GB, RECIPE_IMAGES
from scripts.machine.rows import Row, judged, not_run
from scripts.machine.workload import Training, Workload, config_of
from utils.precision import choose_precision, set_numerics, uses_channels_last
from utils.training.step import low_precision

SPEED = "speed"
MEMORY = "memory"
WARM_UP = {"cpu": 1, "cuda": 5}  # turns that are not counted
SECONDS_OF_A_MEASUREMENT = 2.0
TURNS = {"cpu": (2, 4), "cuda": (5, 30)}  # fewest and most of a measurement
FEWEST_IMAGES = 32  # of a micro-batch: below, BatchNorm errs more (arXiv 1803.08494, figure 1)
USABLE = 0.9  # of a GPU's memory: the allocator's blocks and cuDNN's workspaces take the rest
BETTER = 1.1  # times as fast as the default, before another setting is advised


@dataclass(frozen=True)
class Mode:
    """A precision and a memory layout."""

    precision: str
    channels_last: bool

    @property
    def settings(self) -> dict:
        return {"train.precision": self.precision, "model.channels_last": self.channels_last}

    @property
    def name(self) -> str:
        return f"{self.precision}, {'NHWC' if self.channels_last else 'NCHW'}"


def default_mode(device: torch.device) -> Mode:
    """What `auto` and null come to."""
    dtype = choose_precision("auto", device)
    return Mode(str(dtype).removeprefix("torch."), uses_channels_last(None, dtype, device))


def modes_of(device: torch.device) -> list[Mode]:
    """Each precision that the device is made for, in each layout; the default first."""
    precisions = ["float32"]
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (7, 0):
            precisions.append("float16")
        if capability >= (8, 0):
            precisions.append("bfloat16")
    elif choose_precision("auto", device) == torch.bfloat16:
        precisions.append("bfloat16")
    modes = [default_mode(device)]
    for precision in precisions:
        for channels_last in (True, False):
            mode = Mode(precision, channels_last)
            if mode not in modes:
                modes.append(mode)
    return modes


@contextlib.contextmanager
def numerics_of(mode: Mode, device: torch.device) -> Iterator[None]:
    """Inside, TF32 is on or off as in a training of this precision."""
    set_numerics(choose_precision(mode.precision, device), tf32=None)
    try:
        yield
    finally:
        set_numerics(choose_precision("auto", device), tf32=None)


def speed_rows(work: Workload) -> list[Row]:
    """Every mode's speed, and what a step of the default mode starts."""
    rows = []
    rates: dict[Mode, float] = {}
    default = default_mode(work.device)
    for mode in modes_of(work.device):
        with numerics_of(mode, work.device):
            training = Training.start(work, config_of(work, mode.settings), work.alone)
            rates[mode] = work.images / seconds_of(WholeStep(training), work.device)
            network_alone = work.images / seconds_of(NetworkAlone(training), work.device)
        rows.append(mode_row(mode, network_alone, rates[mode]))
        del training  # before the next mode's is made
    rows.append(fastest_row(rates, default))
    whole_step = WholeStep(Training.start(work, config_of(work, default.settings), work.alone))
    whole_step()  # makes the optimizer's moments
    # The profiler comes last: nothing is timed after it.
    return [*rows, host_row(whole_step, work.device), launch_row(whole_step, work.device)]


def mode_row(mode: Mode, network_alone: float, whole_step: float) -> Row:
    values = {"mode": mode.name, "network_images_per_second": network_alone, "step_images_per_second": whole_step}
    measured = f"{network_alone:.0f}; {whole_step:.0f} images/s"
    return Row(SPEED, f"{mode.name}: network alone; whole step", measured, values=values)


def default_rate(rows: list[Row], device: torch.device) -> float:
    """The images/s of the whole step in the default mode; NaN if they were not measured."""
    for row in rows:
        if row.values.get("mode") == default_mode(device).name:
            return row.values["step_images_per_second"]
    return math.nan


class WholeStep:
    """A training step on images that are on the device."""

    def __init__(self, training: Training):
        self.training, self.micro_batches = training, training.micro_batches(0)

    def __call__(self) -> None:
        self.training.step(0, self.micro_batches)


class NetworkAlone:
    """Forward and backward pass of the network, on normalised images, without filter, loss and update."""

    def __init__(self, training: Training):
        self.state = training.state
        _, self.images, _ = training.task.corrupt(*training.micro_batches(0)[0])

    def __call__(self) -> None:
        with low_precision(self.state):
            self.state.replica(self.images).float().mean().backward()
        self.state.optimizer.zero_grad(set_to_none=True)


def seconds_of(work: Callable[[], object], device: torch.device, turns: int | None = None) -> float:
    """The median time of a call, each waited for.

    Args:
        turns: so many calls, as where the ranks must make equally many; None: as many as a few seconds allow.
    """
    for _ in range(WARM_UP[device.type]):
        work()
    synchronize(device.type)
    fewest, most = TURNS[device.type]
    if turns is not None:
        fewest = most = turns
    seconds: list[float] = []
    while len(seconds) < fewest or (len(seconds) < most and sum(seconds) < SECONDS_OF_A_MEASUREMENT):
        began = time.perf_counter()
        work()
        synchronize(device.type)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def fastest_row(rates: dict[Mode, float], default: Mode) -> Row:
    fastest = max(rates, key=lambda mode: rates[mode])
    remedy = ""
    if rates[fastest] > BETTER * rates[default]:
        layout = "" if fastest.channels_last == default.channels_last else (
            f" model.channels_last={str(fastest.channels_last).lower()}"
        )  # fmt: skip
        remedy = f"train.precision={fastest.precision}{layout} would be faster"
    return Row(SPEED, "the fastest; the default", f"{fastest.name}; {default.name}", remedy=remedy)


def launch_row(whole_step: WholeStep, device: torch.device) -> Row:
    what = "kernels and copies that a step starts"
    counts = launches_of(whole_step, device.type)
    if isinstance(counts, str):
        return not_run(SPEED, what, "CUDA's profiler sees nothing here")
    return Row(SPEED, what, f"{counts['kernels']}; {counts['copies']}", values=counts)


def host_row(whole_step: WholeStep, device: torch.device) -> Row:
    """How long the CPU takes to start a step, beside the time that the step takes."""
    what = "CPU's time to start a step; the step"
    if device.type == "cpu":
        return not_run(SPEED, what, "the CPU computes the step itself")
    starts, wholes = [], []
    for _ in range(TURNS[device.type][0]):
        synchronize(device.type)
        began = time.perf_counter()
        whole_step()
        starts.append(time.perf_counter() - began)
        synchronize(device.type)
        wholes.append(time.perf_counter() - began)
    start, whole = statistics.median(starts), statistics.median(wholes)
    remedy = ""
    if start > 0.8 * whole:
        remedy = "the GPU waits for the CPU: raise train.images_per_device, or try train.compile=inductor"
    return Row(
        SPEED, what, f"{1000 * start:.1f}; {1000 * whole:.1f} ms", remedy=remedy,
        values={"start_ms": 1000 * start, "step_ms": 1000 * whole},
    )  # fmt: skip


def memory_rows(work: Workload) -> list[Row]:
    """Memory an image, from the peaks of two sizes of a micro-batch, and the most images that fit."""
    if work.device.type != "cuda":
        return [not_run(MEMORY, "memory an image", "no GPU")]
    fewer = max(1, work.images // 2)
    small, large = peak_bytes(work, fewer), peak_bytes(work, work.images)
    an_image = (large - small) / (work.images - fewer)
    free, _ = torch.cuda.mem_get_info(work.device)
    available = USABLE * (free + torch.cuda.memory_reserved(work.device))
    return [fitting_row(an_image, large - an_image * work.images, available, work.pixels)]


def peak_bytes(work: Workload, images: int) -> int:
    """The most that tensors take during a step in the default mode."""
    size = {"train.images_per_device": images, "train.batch_size": images}
    training = Training.start(work, config_of(work, default_mode(work.device).settings | size), work.alone)
    whole_step = WholeStep(training)
    whole_step()  # makes the optimizer's moments, and has cuDNN's search, which takes what memory there is
    synchronize(work.device.type)
    torch.cuda.reset_peak_memory_stats(work.device)
    for _ in range(2):
        whole_step()
    synchronize(work.device.type)
    peak = torch.cuda.max_memory_allocated(work.device)
    del training, whole_step
    torch.cuda.empty_cache()
    return peak


def fitting_row(bytes_an_image: float, fixed_bytes: float, available_bytes: float, pixels: int) -> Row:
    """The largest power of two of images that fits, so that the recipes' batch of 2048 divides.

    Args:
        fixed_bytes: of weights, moments and what else does not grow with the images.
    """
    room = available_bytes - fixed_bytes
    largest = 0
    if bytes_an_image > 0 and room >= bytes_an_image:
        largest = 2 ** (int(room / bytes_an_image).bit_length() - 1)
    remedy = f"use a smaller model or crop, or another card: BatchNorm errs with fewer than {FEWEST_IMAGES} images"
    row = judged(
        MEMORY, f"memory an image of {pixels} pixels; the largest train.images_per_device",
        largest >= FEWEST_IMAGES, f"{bytes_an_image / 1e6:.0f} MB; {largest}", f"at least {FEWEST_IMAGES} images",
        remedy, {
            "bytes_an_image": bytes_an_image, "fixed_gb": fixed_bytes / GB, "available_gb": available_bytes / GB,
            "images_per_device": largest,
        },
    )  # fmt: skip
    return with_advice(row, largest)


def with_advice(row: Row, largest: int) -> Row:
    if FEWEST_IMAGES <= largest < RECIPE_IMAGES:
        advice = f"the recipes have {RECIPE_IMAGES}: train.images_per_device={largest}"
        return Row(row.section, row.what, row.measured, row.must_hold, row.result, advice, row.values)
    return row
