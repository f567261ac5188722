"""Batches from the samples: worker processes load them, and a step's micro-batches are copied to the device."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from data.sampling import BatchPlan
from utils.limits import batches_ahead
from utils.process import shield_worker
from utils.waiting import DeviceWait, HostWait, Wait


def batch_loader(
    samples: Dataset, batches: Iterable[list], workers: int, device: torch.device, timeout_minutes: float = 0,
    ranks: int = 1, batch_bytes: int = 0,
) -> DataLoader:  # fmt: skip
    """A loader over lists of keys into `samples`. Its workers ignore the stop signals of the rank, and die with it.

    Args:
        batches: for each batch the keys of its samples.
        workers: loader processes; 0 loads in this process.
        device: where the batches will be used; for a GPU they lie in pinned memory.
        timeout_minutes: a worker that gives no batch for so long is an error; 0: no limit.
        ranks, batch_bytes: on this machine, and of a batch; they bound how far workers work ahead.
    """
    if workers == 0:
        worker_options = {}
    else:
        worker_options = {
            "num_workers": workers,
            "worker_init_fn": shield_worker,
            "prefetch_factor": batches_ahead(workers, ranks, batch_bytes),
            "timeout": 60 * timeout_minutes,
        }
        if sys.platform == "linux":
            # Python 3.14's default, forkserver, would pickle the samples, and all tensors that they refer to.
            worker_options["multiprocessing_context"] = "fork"
    return DataLoader(
        samples, batch_sampler=batches, collate_fn=collate, pin_memory=device.type == "cuda", **worker_options
    )


def collate(samples: list[tuple]) -> list:
    """default_collate's batch, but images (B, …, 3, S, S) are HWC in memory, as decoder and resize leave them."""
    channels_last = []
    for image, *others in samples:
        channels_last.append((image.movedim(-3, -1), *others))
    images, *others = default_collate(channels_last)
    return [images.movedim(-1, -3), *others]


MicroBatch = tuple[torch.Tensor, torch.Tensor]  # images (B, 3, S, S) uint8, targets (B,)


@dataclass(frozen=True)
class StepBatch:
    """What a rank works on in one optimizer step."""

    micro_batches: list[MicroBatch]  # on the device
    notes: list[str]  # of images that were replaced
    waited: Wait  # for the loader


class StepBatches:
    """Takes from a loader, step by step, this rank's micro-batches of `accumulation` batches.

    Args:
        loader: gives batches (images, targets, notes), as `collate` makes them of `TrainingSamples`.
        accumulation: micro-batches of an optimizer step.
    """

    def __init__(self, loader: Iterable[list], accumulation: int, device: torch.device):
        self.batches = iter(loader)
        self.accumulation = accumulation
        self.device = device
        self.copy_stream = None
        if device.type == "cuda":
            self.copy_stream = torch.cuda.Stream(device)

    @classmethod
    def of_plan(
        cls, samples: Dataset, plan: BatchPlan, first_step: int, workers: int, device: torch.device,
        timeout_minutes: float, ranks: int, image_size: int,
    ) -> "StepBatches":  # fmt: skip
        """This rank's micro-batches of every step of the plan from `first_step` on.

        Args:
            image_size: side of an image in pixels. For the others see `batch_loader`.
        """
        loader = batch_loader(
            samples, plan.micro_batches(first_step), workers, device, timeout_minutes, ranks,
            batch_bytes=3 * plan.images_per_device * image_size**2,
        )  # fmt: skip
        return cls(loader, plan.accumulation, device)

    def next_step(self) -> StepBatch:
        """The micro-batches of the next step. Raises: StopIteration after the last step."""
        began = time.monotonic()
        asked = self.event()
        batches = [next(self.batches) for _ in range(self.accumulation)]
        seconds = time.monotonic() - began
        notes = []
        micro_batches = []
        for images, targets, batch_notes in batches:
            micro_batches.append((images, targets))
            notes += [note for note in batch_notes if note]
        on_device = self.on_device(micro_batches)
        waited = HostWait(seconds) if asked is None else DeviceWait(asked, self.event())
        return StepBatch(on_device, notes, waited)

    def event(self) -> torch.cuda.Event | None:
        """The moment at which a GPU comes to this place of its work; its clock is read later. None on a CPU."""
        if self.copy_stream is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def on_device(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Copy micro-batches to the device. On a GPU the copies run in their own stream, beside the step before."""
        copied = []
        with torch.cuda.stream(self.copy_stream):  # None, on a CPU, changes nothing
            for images, targets in micro_batches:
                images = images.to(self.device, non_blocking=True)
                targets = targets.to(self.device, non_blocking=True)
                copied.append((images, targets))
        if self.copy_stream is not None:
            compute_stream = torch.cuda.current_stream(self.device)
            compute_stream.wait_stream(self.copy_stream)
            # Else the allocator could give their memory to the next copies while the step still uses them.
            for images, targets in copied:
                images.record_stream(compute_stream)
                targets.record_stream(compute_stream)
        return copied
