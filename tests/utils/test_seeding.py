"""Randomness without state: a stream is a function of its key, and leaves every other stream alone."""

import itertools
import random

import numpy as np
import pytest
import torch

from utils.seeding import keyed_numpy, keyed_sequence, keyed_torch

KEY = (3, "augmentation", 7, 12)
OTHERS = [
    (4, "augmentation", 7, 12),
    (3, "coin", 7, 12),
    (3, "augmentation", 8, 12),
    (3, "augmentation", 7, 13),
    (3, "augmentation", 12, 7),
    (3, "augmentation", 7),
    (7, "augmentation", 3, 12),
    (3, "augmentation", 0, 7, 12),
]


def numpy_stream(key):
    return tuple(keyed_numpy(*key).integers(2**62, size=3).tolist())


def torch_stream(key):
    with keyed_torch(*key):
        return tuple(torch.randint(2**62, (3,)).tolist())


STREAMS = pytest.mark.parametrize("stream", [numpy_stream, torch_stream])


@STREAMS
def test_same_key_same_stream_whatever_the_global_seeds(stream):
    before = stream(KEY)
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        assert stream(KEY) == before


@STREAMS
def test_every_part_of_the_key_matters(stream):
    streams = [stream(key) for key in (KEY, *OTHERS)]
    assert len({number for drawn in streams for number in drawn}) == 3 * len(streams)


@STREAMS
def test_neighbouring_keys_share_nothing(stream):
    drawn = [stream((seed, "coin", epoch, index)) for seed, epoch, index in itertools.product(range(6), repeat=3)]
    assert len({number for numbers in drawn for number in numbers}) == 3 * 6**3


@STREAMS
def test_large_seeds_work_and_differ(stream):
    assert len({stream((seed, "order", 2**33)) for seed in (2**32 - 1, 2**32, 2**63, 2**70)}) == 4


def test_first_numbers_are_uniform():
    """The first number of each key, as the filter coin is drawn."""
    coins = np.array([keyed_numpy(0, "coin", epoch, i).random() for epoch in range(20) for i in range(100)])
    assert abs(coins.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(coins[:-1], coins[1:])[0, 1]) < 0.06


@pytest.mark.parametrize("raises", [False, True])
def test_torchs_own_stream_goes_on_undisturbed(raises):
    torch.manual_seed(5)
    expected = torch.rand(6)
    torch.manual_seed(5)
    first = torch.rand(3)
    with pytest.raises(ZeroDivisionError) if raises else keyed_torch(0, "outer"), keyed_torch(*KEY):
        torch.rand(1000)
        if raises:
            raise ZeroDivisionError
    assert torch.equal(torch.cat([first, torch.rand(3)]), expected)


def test_nested_keys_do_not_disturb_each_other():
    with keyed_torch(*KEY):
        expected = torch.rand(4)
    with keyed_torch(*KEY):
        first = torch.rand(2)
        torch_stream(OTHERS[0])
        second = torch.rand(2)
    assert torch.equal(torch.cat([first, second]), expected)


def test_numpys_and_pythons_own_streams_are_left_alone():
    np.random.seed(1)
    random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    numpy_stream(KEY)
    torch_stream(KEY)
    assert (np.random.rand(), random.random()) == expected


@pytest.mark.parametrize(
    ("key", "recorded"),
    [((0, "order", 1), [16767603, 2808022884]), ((2**40, "augmentation", 1, 2), [192868634, 1632292805])],
)
def test_hashes_stay_what_they_are(key, recorded):
    """Another hash would turn every resumed run into another one."""
    assert keyed_sequence(*key).generate_state(2).tolist() == recorded


@pytest.mark.parametrize(
    ("key", "seed", "first_numbers"),
    [
        ((0, "order", 1), 6030183226608184633, [1509765228, 2142199336]),
        ((2**40, "augmentation", 1, 2), 3505322107581986957, [157629888, 442019034]),
    ],
)
def test_torchs_numbers_stay_what_they_are(key, seed, first_numbers):
    """Other numbers would give every resumed run another initialisation, other crops and other mixing."""
    with keyed_torch(*key):
        assert torch.initial_seed() == seed
        assert torch.randint(2**31, (2,)).tolist() == first_numbers


@pytest.fixture
def gpu_generators(monkeypatch):
    """Stand-ins for the default generators of two GPUs, the second of which is the current one."""
    generators = (torch.Generator(), torch.Generator())
    for number, generator in enumerate(generators):
        generator.manual_seed(100 + number)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    return generators


@pytest.mark.parametrize(
    ("device", "number"), [(torch.device("cuda", 0), 0), (torch.device("cuda", 1), 1), (torch.device("cuda"), 1)]
)
def test_a_gpus_generator_is_seeded_alike_and_given_back(gpu_generators, device, number):
    before = [generator.get_state() for generator in gpu_generators]
    with keyed_torch(*KEY, device=device):
        assert gpu_generators[number].initial_seed() == torch.initial_seed()
        assert torch.equal(torch.rand(3, generator=gpu_generators[number]), torch.rand(3))
        assert torch.equal(gpu_generators[1 - number].get_state(), before[1 - number])
    for generator, state in zip(gpu_generators, before, strict=True):
        assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_a_cpu_run_seeds_the_cpus_generator_alone_with_the_same_numbers(gpu_generators, device):
    before = [generator.get_state() for generator in gpu_generators]
    with keyed_torch(*KEY, device=device):
        for generator, state in zip(gpu_generators, before, strict=True):
            assert torch.equal(generator.get_state(), state)
        numbers = torch.randint(2**62, (3,)).tolist()
    assert tuple(numbers) == torch_stream(KEY)
