"""Two sides in two processes, taking turns: what scripts/benchmark/benchmark.py measures with."""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import profile

from utils.process import keep_freed_memory

WARM_UP = 2
PUBLIC = ("pil", "full_spectrum", "torchvision")  # how the names of the public codes' recipes begin


class Contestant:
    """One side in a process of its own; one of ours keeps freed memory there, as pretrain.py and finetune.py do."""

    def __init__(self, make: Callable, settings: dict):
        context = multiprocessing.get_context("spawn")
        self.line, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, make, settings), daemon=True)
        self.process.start()

    def ask(self, what: str):
        """Of "seconds" for a piece of work, "memory" that one task allocates, or "trace FILE" for a profile of one."""
        self.line.send(what)
        try:
            return self.line.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a side of the benchmark ended early; its own message is above") from None


def serve(line, make: Callable, settings: dict) -> None:
    if not make.__name__.startswith(PUBLIC):
        keep_freed_memory()
    torch.set_num_threads(settings["threads"])
    task, work = make(settings)
    while True:
        what, _, path = line.recv().partition(" ")
        began = time.perf_counter()
        if what == "seconds":
            task()
            synchronize(settings)
            line.send((time.perf_counter() - began) / work)
        else:
            line.send(allocated(task, settings, path))


def synchronize(settings: dict) -> None:
    if settings["device"] == "cuda":
        torch.cuda.synchronize()


def allocated(task: Callable, settings: dict, trace: str) -> dict:
    """MB of tensors that a task holds at most, and those left after it, beyond what was there before."""
    with profile(profile_memory=True, acc_events=True) as found:
        result = task()
        synchronize(settings)
        del result
    if trace:
        found.export_chrome_trace(trace)
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]
    held = list(itertools.accumulate(changes, initial=0))
    return {"most_mb": round(max(held) / 1e6, 1), "left_mb": round(held[-1] / 1e6, 1)}


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    found = {"median": median, "quartiles": [low, high], "least": min(values), "most": max(values)}
    return {k: [round(x, digits) for x in v] if k == "quartiles" else round(v, digits) for k, v in found.items()}


def against(ours: Callable, theirs: Callable, settings: dict, memory: bool = False, **other: object) -> dict:
    """Milliseconds of each side for a piece of work, and theirs / ours, pair by pair.

    Args:
        other: settings of `theirs` where they differ.
    """
    sides = {"ours": Contestant(ours, settings), "theirs": Contestant(theirs, settings | other)}
    seconds = {name: [] for name in sides}
    for turn in range(-WARM_UP, settings["pairs"]):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            took = sides[name].ask("seconds")
            seconds[name] += [took] if turn >= 0 else []
    pairs = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    found = {"ours": ours.__name__, "theirs": theirs.__name__, "theirs_over_ours": spread(pairs), "pairs": len(pairs)}
    found |= {f"{name}_ms": spread([1000 * x for x in values], 7) for name, values in seconds.items()}
    if memory:
        found["memory"] = {name: side.ask("memory") for name, side in sides.items()}
    if settings.get("profile"):
        sides["ours"].ask(f"trace {settings['profile']}")
    for side in sides.values():
        side.process.kill()
    return found
