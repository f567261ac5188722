"""Randomness without state: every random choice is a pure function of what it belongs to.

A key is the run's seed, a purpose, and the numbers of the thing (epoch and sample, or step and micro-batch).
No generator outlives the choice it was made for, so there is no random state to save, lose or hand to a worker.
"""

import contextlib
import zlib

import numpy as np
import torch


def keyed_sequence(seed: int, purpose: str, *numbers: int) -> np.random.SeedSequence:
    """A hash of the key (numpy's SeedSequence), the source of every generator below."""
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *numbers])


def keyed_numpy(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A numpy generator for one choice."""
    return np.random.default_rng(keyed_sequence(seed, purpose, *numbers))


@contextlib.contextmanager
def keyed_torch(seed: int, purpose: str, *numbers: int):
    """torch's CPU generator, from which torchvision draws, seeded for one choice and given back as it was."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(keyed_sequence(seed, purpose, *numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        generator.set_state(before)
