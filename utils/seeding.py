"""Randomness without state: every random choice is a pure function of what it belongs to.

A key is the run's seed, a purpose, and the numbers of the thing (epoch and sample, or step and micro-batch).
No generator outlives the choice it was made for, so there is no random state to save, lose or hand to a worker.
"""

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np
import torch


def keyed_sequence(seed: int, purpose: str, *numbers: int) -> np.random.SeedSequence:
    """A hash of the key (numpy's SeedSequence), the source of every generator below."""
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers])


def keyed_numpy(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator for one choice."""
    return np.random.default_rng(keyed_sequence(seed, purpose, *numbers))


@contextlib.contextmanager
def keyed_torch(seed: int, purpose: str, *numbers: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside `with`, torch's default generators are seeded for one choice; afterwards they go on as before.

    The CPU's generator is what torchvision draws from.

    Args:
        device: where a model draws (dropout, drop path, noise). If it is a CUDA device, its generator is seeded too.
            This does not wait for the device.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(cuda_generator(device))
    states = [generator.get_state() for generator in generators]
    sequence = keyed_sequence(seed, purpose, *numbers)
    number = int(sequence.generate_state(1, np.uint64)[0]) >> 1  # 63 bits: torch takes signed seeds
    for generator in generators:
        generator.manual_seed(number)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def cuda_generator(device: torch.device) -> torch.Generator:
    """The default generator of a CUDA device."""
    torch.cuda.init()  # before that there are no generators
    index = device.index
    if index is None:
        index = torch.cuda.current_device()
    return torch.cuda.default_generators[index]
