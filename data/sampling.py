"""Which image when: a pure function of seed and step, whatever the number of ranks, workers and interruptions."""

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.seeding import keyed_numpy


@dataclass(frozen=True)
class BatchPlan:
    """How global batches are cut: in order into micro-batches; rank r of W takes micro-batches r, r + W, r + 2W, …

    With images_per_device fixed, any number of ranks that divides the micro-batches computes the same gradient.
    """

    length: int  # training images
    batch_size: int  # images of an optimizer step, all ranks together
    images_per_device: int  # images of a micro-batch
    rank: int
    world_size: int
    epochs: int

    @classmethod
    def make(cls, length, batch_size, images_per_device, rank, world_size, epochs) -> "BatchPlan":
        """Check and fill in: images_per_device None means batch_size / world_size.

        Raises: UserError with the nearest batch sizes where something does not divide, or on too few images.
        """
        unit = (images_per_device or 1) * world_size
        if batch_size % unit:
            below = batch_size // unit * unit or unit
            cause = f"{world_size} ranks" + (f" × {images_per_device} images_per_device" if images_per_device else "")
            near = f"{below} or {below + unit}"
            raise UserError(f"train.batch_size = {batch_size}: does not divide into {cause}; nearest that do: {near}")
        if length < batch_size:
            raise UserError(f"train.batch_size = {batch_size}: more than the {length} training images; lower it")
        return cls(length, batch_size, images_per_device or batch_size // world_size, rank, world_size, epochs)

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size  # the tail of an epoch's order is left out

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def accumulation(self) -> int:
        """Micro-batches of this rank an optimizer step."""
        return self.batch_size // (self.images_per_device * self.world_size)

    def micro_batch_number(self, turn: int) -> int:
        """Number within the global batch of this rank's micro-batch `turn`."""
        return self.rank + turn * self.world_size


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(length)."""
    return keyed_numpy(seed, "order", epoch).permutation(length)


class MicroBatches:
    """This rank's micro-batches from one step on to the last, as lists of (epoch, sample index): a batch_sampler."""

    def __init__(self, plan: BatchPlan, seed: int, first_step: int = 0):
        self.plan, self.seed, self.first_step = plan, seed, first_step

    def __iter__(self):
        plan, ordered_epoch = self.plan, None
        for step in range(self.first_step, plan.total_steps):
            epoch, batch = divmod(step, plan.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = epoch_order(plan.length, self.seed, epoch), epoch
            for turn in range(plan.accumulation):
                start = batch * plan.batch_size + plan.micro_batch_number(turn) * plan.images_per_device
                yield [(epoch, int(index)) for index in order[start : start + plan.images_per_device]]
