"""Which image when: a pure function of seed and step, whatever the number of ranks, workers and interruptions."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.seeding import keyed_numpy

# (epoch, image number); when an epoch takes the image once more, (epoch, image number, times before)
SampleKey = tuple[int, int] | tuple[int, int, int]


@dataclass(frozen=True)
class BatchPlan:
    """Which images make up a step's batch, and which of them are this rank's.

    A global batch is cut, in order, into micro-batches. Rank r of W takes micro-batches r, r + W, r + 2W, …
    With images_per_device fixed, any number of ranks that divides the micro-batches computes the same gradient.

    With augmentation_repeats R, an epoch takes each image R times in a row, differently augmented (Hoffer et al., arXiv
    1901.09335). It keeps its length, so it sees one image in R.
    """

    length: int  # training images
    batch_size: int  # images of an optimizer step, all ranks together
    images_per_device: int  # images of a micro-batch
    epochs: int
    seed: int
    rank: int
    world_size: int
    augmentation_repeats: int = 1
    steps: int | None = None  # of the training, in place of whole epochs

    @classmethod
    def make(
        cls,
        length: int,
        batch_size: int,
        images_per_device: int | None,
        *,
        epochs: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augmentation_repeats: int = 1,
        steps: int | None = None,
    ) -> "BatchPlan":
        """Check the numbers and fill in: images_per_device None means batch_size / world_size.

        Raises: UserError with the nearest batch sizes where something does not divide, or on too few images.
        """
        cause = f"{world_size} ranks"
        unit = world_size
        if images_per_device is not None:
            cause += f" × {images_per_device} images_per_device"
            unit *= images_per_device
        if batch_size % unit:
            below = max(batch_size // unit * unit, unit)
            nearest = f"{below} or {below + unit}"
            raise UserError(
                f"train.batch_size = {batch_size}: does not divide into {cause}; nearest that do: {nearest}"
            )
        if length < batch_size:
            raise UserError(f"train.batch_size = {batch_size}: more than the {length} training images; lower it")
        if images_per_device is None:
            images_per_device = batch_size // world_size
        return cls(
            length=length,
            batch_size=batch_size,
            images_per_device=images_per_device,
            epochs=epochs,
            seed=seed,
            rank=rank,
            world_size=world_size,
            augmentation_repeats=augmentation_repeats,
            steps=steps,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size  # the tail of an epoch's order is left out

    @property
    def total_steps(self) -> int:
        if self.steps is not None:
            return self.steps
        return self.steps_per_epoch * self.epochs

    @property
    def passes(self) -> int:
        """Epochs of the order that the training begins: `epochs`, unless `steps` says how long it is."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def accumulation(self) -> int:
        """Micro-batches of this rank in an optimizer step."""
        return self.batch_size // (self.images_per_device * self.world_size)

    def slots_of(self, step: int) -> list[int]:
        """The places of a step's global batch in its epoch, counted from 0.

        An image's repeats lie apart: neighbours in a micro-batch are mixed, and an image should not be its own partner.
        """
        first = step % self.steps_per_epoch * self.batch_size
        return sorted(range(first, first + self.batch_size), key=lambda slot: slot % self.augmentation_repeats)

    def step_at(self, epoch: int, images: int) -> int:
        """How many steps of this plan come before a position: so many images into an epoch, both counted from 0.

        Raises: UserError with the nearest batch sizes if the position lies within one of its batches.
        """
        if images % self.batch_size:
            unit = self.world_size
            if self.accumulation > 1:
                unit *= self.images_per_device
            sizes = [size for size in range(unit, images + 1, unit) if images % size == 0]
            below = [size for size in sizes if size < self.batch_size][-1:]
            above = [size for size in sizes if size > self.batch_size][:1]
            nearest = " or ".join(map(str, below + above)) or "none: resume from the end of an epoch"
            raise UserError(
                f"train.batch_size = {self.batch_size}: the run is {images} images into epoch {epoch}, which is no "
                f"whole number of such batches; nearest that fit: {nearest}"
            )
        return epoch * self.steps_per_epoch + images // self.batch_size

    def images_of(self, step: int) -> np.ndarray:
        """The numbers of the images in a step's global batch, in order: (batch_size,)."""
        order = epoch_order(self.length, self.seed, step // self.steps_per_epoch)
        return order[np.array(self.slots_of(step)) // self.augmentation_repeats]

    def keys_of(self, step: int) -> list[SampleKey]:
        """The keys of the samples in a step's global batch, in order."""
        epoch = step // self.steps_per_epoch
        keys: list[SampleKey] = []
        for slot, image in zip(self.slots_of(step), self.images_of(step).tolist(), strict=True):
            repeat = slot % self.augmentation_repeats
            if repeat == 0:
                keys.append((epoch, image))
            else:
                keys.append((epoch, image, repeat))
        return keys

    def micro_batches(self, first_step: int = 0) -> Iterator[list[SampleKey]]:
        """This rank's micro-batches from one step on, as lists of keys: a batch_sampler."""
        for step in range(first_step, self.total_steps):
            keys = self.keys_of(step)
            first = self.rank * self.images_per_device
            for start in range(first, self.batch_size, self.world_size * self.images_per_device):
                yield keys[start : start + self.images_per_device]


@functools.lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(length)."""
    return keyed_numpy(seed, "order", epoch).permutation(length)
