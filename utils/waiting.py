"""How long steps waited for their images, and how many loader processes would keep up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LONGEST_WAIT = 0.02  # share of a step's time
FEWEST_STEPS_FOR_ADVICE = 10  # a slow image or two tell nothing of the others


class Wait(Protocol):
    @property
    def seconds(self) -> float:
        """Of a step. To be read only once the step is done."""


@dataclass(frozen=True)
class HostWait:
    """On a CPU this process waits itself, so its clock tells how long."""

    seconds: float


class Event(Protocol):
    """The part of a torch.cuda.Event that is needed here."""

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds until another event."""


@dataclass(frozen=True)
class DeviceWait:
    """How long a GPU had nothing to do for want of images.

    This process runs ahead of the GPU. How long it waits itself, for a loader that is just fast enough, is nearly all
    of a step's time, in which the GPU works.

    Args:
        asked: recorded on the GPU's stream when the images were asked for: it has done all steps before.
        ready: recorded there once it may use the images.
    """

    asked: Event
    ready: Event

    @property
    def seconds(self) -> float:
        return self.asked.elapsed_time(self.ready) / 1000


def wait_share(waits: Sequence[Wait], interval_seconds: float) -> float:
    """The share of an interval that its steps waited for images, below 1."""
    waited = sum(wait.seconds for wait in waits)
    return min(waited / interval_seconds, 0.999)


def workers_needed(workers: int, share: float, steps: int) -> int:
    """Loader processes with which a step would not wait: those there are, if it waits at most 2 % of its time.

    While a step waits, `workers` make images as fast as they can; without waiting it takes 1 / (1 − share) times as
    many. With none, the step's own process spends that share on them.

    Args:
        share: of the time of so many steps. Few steps show nothing, so the answer is then `workers`.
    """
    if share <= LONGEST_WAIT or steps < FEWEST_STEPS_FOR_ADVICE:
        return workers
    return math.ceil((workers or share) / (1 - share))
