"""Which image when: a pure function of seed and step, whatever the number of ranks, workers and interruptions."""

import functools
from collections.abc import Iterator
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
    epochs: int
    seed: int
    rank: int
    world_size: int

    @classmethod
    def make(cls, length, batch_size, images_per_device, epochs, seed=0, rank=0, world_size=1) -> "BatchPlan":
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
        return cls(length, batch_size, images_per_device or batch_size // world_size, epochs, seed, rank, world_size)

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

    def images_of(self, step: int) -> np.ndarray:
        """The numbers of the images in a step's global batch, in order: (batch_size,)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.length, self.seed, epoch)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def micro_batches(self, first_step: int = 0) -> Iterator[list[tuple[int, int]]]:
        """This rank's, from one step on to the last, as lists of (epoch, image number): a batch_sampler."""
        for step in range(first_step, self.total_steps):
            cut = self.images_of(step).reshape(-1, self.images_per_device)
            for images in cut[self.rank :: self.world_size].tolist():
                yield [(step // self.steps_per_epoch, image) for image in images]


@functools.lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(length)."""
    return keyed_numpy(seed, "order", epoch).permutation(length)
