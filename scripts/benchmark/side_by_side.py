"""Compares two sides, each in a process of its own: what scripts/benchmark/benchmark.py measures with.

Each side gets its own process because the sides set up their processes differently: the allocator, the number of
threads, TF32. The sides take turns, and a ratio is that of two neighbouring turns, because the speed of a machine that
others use drifts by more than the sides differ. `torch.utils.benchmark.Timer` has neither, and it repeats its own
warm-up before each measurement, so a pair would be longer and less equal.
"""

import itertools
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from utils.process import die_with_parent, keep_freed_memory

WARM_UP = 2  # turns that are not counted


class Task(Protocol):
    """A piece of work. A call does it once."""

    work: int  # units, usually images, that one call does

    def __call__(self) -> object: ...


@dataclass(frozen=True)
class Side:
    """One side of a comparison. Its process builds the task as `make(**arguments)`.

    Args:
        name: of the side in the figures.
        make: a class or function at the top of a module, so that another process can import it.
        keeps_freed_memory: True for this project's code, since pretrain.py and finetune.py set the allocator so.
            False for the public codes, which leave it as it is.
    """

    name: str
    make: Callable[..., Task]
    arguments: dict
    keeps_freed_memory: bool


@dataclass(frozen=True)
class Conditions:
    """What both sides have in common."""

    pairs: int
    threads: int  # of each side on a CPU
    device: str  # "cpu" or "cuda"


class ThisProcess:
    """In the process of a side: its task."""

    task: Task
    device: str


def set_up(side: Side, conditions: Conditions) -> None:
    """In a side's process: build its task as its own runs would have it."""
    die_with_parent(signal.SIGKILL)
    if side.keeps_freed_memory:
        keep_freed_memory()
    torch.set_num_threads(conditions.threads)
    ThisProcess.task, ThisProcess.device = side.make(**side.arguments), conditions.device


def measure_seconds() -> float:
    """In a side's process: seconds for one unit of work."""
    began = time.perf_counter()
    ThisProcess.task()
    synchronize(ThisProcess.device)
    return (time.perf_counter() - began) / ThisProcess.task.work


def measure_memory(trace: str | None) -> dict[str, float]:
    """In a side's process: MB of tensors that a call holds at most, and MB left after it, beyond those before it.

    Args:
        trace: file for a trace of the call, for chrome://tracing.
    """
    with profile(profile_memory=True, acc_events=True) as profiler:
        result = ThisProcess.task()
        synchronize(ThisProcess.device)
        del result
    if trace is not None:
        profiler.export_chrome_trace(trace)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = list(itertools.accumulate([event.nbytes() for event in events], initial=0))
    return {"most_mb": round(max(held) / 1e6, 1), "left_mb": round(held[-1] / 1e6, 1)}


def measure_launches() -> dict[str, int] | str:
    """In a side's process: what a call of its task starts on the GPU."""
    return launches_of(ThisProcess.task, ThisProcess.device)


def launches_of(task: Callable[[], object], device: str) -> dict[str, int] | str:
    """The kernels, and the copies and fills of memory, that a call starts on the GPU.

    Returns: "not available" on a CPU, and where CUDA's profiler sees nothing, as without the rights for it.
    """
    if device != "cuda":
        return "not available"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        task()
        synchronize(device)
    names = []
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            names.append(event.name)
    return counts_of_launches(names)


def counts_of_launches(names: list[str]) -> dict[str, int] | str:
    """Of the names that the profiler gives to what ran on a GPU."""
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    if copies == len(names):
        return "not available"
    return {"kernels": len(names) - copies, "copies": copies}


def synchronize(device: str) -> None:
    """Wait for the device: work on a GPU goes on after the call that started it."""
    if device == "cuda":
        torch.cuda.synchronize()


class Contestant:
    """The parent's handle on a side that works in another process. Use it in a `with`, which ends the process."""

    def __init__(self, side: Side, conditions: Conditions):
        self.name = side.name
        self.process = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        self.ready = self.process.submit(set_up, side, conditions)

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.shutdown()

    def wait_until_ready(self) -> None:
        self.result_of(self.ready)

    def seconds(self) -> float:
        return self.result_of(self.process.submit(measure_seconds))

    def memory(self, trace: str | None = None) -> dict[str, float]:
        return self.result_of(self.process.submit(measure_memory, trace))

    def launches(self) -> dict[str, int] | str:
        return self.result_of(self.process.submit(measure_launches))

    def result_of(self, answer: Future):
        """Raises: what the side raised; RuntimeError if its process ended."""
        try:
            return answer.result()
        except BrokenProcessPool:
            message = f"the process of {self.name} ended early; if it wrote a message, it is above"
            raise RuntimeError(message) from None


def compare(
    ours: Side, theirs: Side, conditions: Conditions, memory: bool = False, launches: bool = False,
    trace: str | None = None,
) -> dict[str, object]:  # fmt: skip
    """Milliseconds of each side for a unit of work, and theirs / ours, pair by pair.

    Args:
        memory: also tell the MB of tensors of each side.
        launches: also tell what a call of each side starts on the GPU.
        trace: file for a trace of one call of our side.
    """
    our_seconds, their_seconds = [], []
    with Contestant(ours, conditions) as our_side, Contestant(theirs, conditions) as their_side:
        our_side.wait_until_ready()
        their_side.wait_until_ready()
        for turn in range(-WARM_UP, conditions.pairs):
            if turn % 2 == 0:
                their_turn = their_side.seconds()
                our_turn = our_side.seconds()
            else:
                our_turn = our_side.seconds()
                their_turn = their_side.seconds()
            if turn >= 0:
                our_seconds.append(our_turn)
                their_seconds.append(their_turn)
        figures = comparison(ours.name, theirs.name, our_seconds, their_seconds)
        if memory:
            figures["memory"] = {"ours": our_side.memory(), "theirs": their_side.memory()}
        if launches:
            figures["launches"] = {"ours": our_side.launches(), "theirs": their_side.launches()}
        if trace is not None:
            our_side.memory(trace)
    return figures


def comparison(our_name: str, their_name: str, our_seconds: list[float], their_seconds: list[float]) -> dict:
    """The figures of pairs of turns: seconds for a unit of work, the same pair at the same place of both lists."""
    ratios = [theirs / ours for ours, theirs in zip(our_seconds, their_seconds, strict=True)]
    return {
        "ours": our_name,
        "theirs": their_name,
        "theirs_over_ours": spread(ratios),
        "pairs": len(ratios),
        "ours_ms": spread([1000 * seconds for seconds in our_seconds], digits=7),
        "theirs_ms": spread([1000 * seconds for seconds in their_seconds], digits=7),
    }


def spread(values: list[float], digits: int = 3) -> dict[str, float | list[float]]:
    """Median, quartiles and extremes of at least one value, rounded."""
    if len(values) > 1:
        lower, median, upper = statistics.quantiles(values, n=4)
    else:
        lower = median = upper = values[0]
    return {
        "median": round(median, digits),
        "quartiles": [round(lower, digits), round(upper, digits)],
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }
