"""How a sample is drawn: a function of seed, epoch and index alone."""

import itertools

import numpy as np
import pytest
import torch

from configs.schema import PretrainConfig
from data.augment import augmentations, evaluation_crops, train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.loader import batch_loader
from data.samples import EvaluationSamples, TrainingSamples, fixed_images
from models.mfm import MaskedFrequencyModelling
from tests.support.helpers import image_folder
from utils.config import parse_command_line
from utils.errors import UserError
from utils.seeding import keyed_torch

SEED = 5
CPU = torch.device("cpu")
CROP_AND_FLIP = {"crop_ratio": (0.2, 1.0), "aspect_ratio": (0.75, 4 / 3), "flip_probability": 0.5}
TRANSFORM = train_transform(
    crop_size=32, **CROP_AND_FLIP, then=augmentations(rand_augment_ops=1, rand_augment_magnitude=9)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ImageFolder(str(image_folder(tmp_path_factory.mktemp("images"), per_class=6)))


def coin(probability=0.5):
    """The coin of pretraining."""
    words = [f"run.seed={SEED}", f"filter.low_pass_probability={probability}"]
    return MaskedFrequencyModelling.from_config(parse_command_line(PretrainConfig, words, "a test"), CPU).draw


def labels_of(folder):
    def class_number(_epoch, _index, used_index):
        return int(folder.labels[used_index])

    return class_number


def samples_of(folder, transform=TRANSFORM, seed=SEED, target_of=None, skip_bad=False):
    return TrainingSamples(folder, transform, seed, target_of or labels_of(folder), skip_bad)


def loaded(samples, batches, workers):
    """All images and all targets of the batches."""
    images, targets = [], []
    for batch in batch_loader(samples, batches, workers, CPU):
        images.append(batch[0])
        targets.append(batch[1])
    return torch.cat(images), torch.cat(targets)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_sample_depends_on_seed_epoch_and_index_only(folder, workers):
    keys = list(itertools.product((0, 3), (5, 0, 11)))  # (epoch, index)
    samples = samples_of(folder, target_of=coin())
    alone = {key: samples[key] for key in keys}
    torch.rand(5)
    batches = [keys[4:], keys[:1], keys[1:4]]  # another order, other batches
    images, keep_low = loaded(samples, batches, workers)
    assert (images.shape, images.dtype, keep_low.dtype) == ((6, 3, 32, 32), torch.uint8, torch.bool)
    keys_as_loaded = batches[0] + batches[1] + batches[2]
    for key, image, low in zip(keys_as_loaded, images, keep_low, strict=True):
        assert torch.equal(image, alone[key][0])
        assert bool(low) == alone[key][1]


def test_seed_epoch_and_index_each_matter(folder):
    def image(seed, epoch, index):
        return samples_of(folder, seed=seed)[epoch, index][0]

    assert torch.equal(image(1, 2, 3), image(1, 2, 3))
    for seed, epoch, index in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert not torch.equal(image(1, 2, 3), image(seed, epoch, index))


def test_a_repeated_sample_is_its_image_by_other_draws(folder):
    samples = samples_of(folder)
    keys = [(2, 7), (2, 7, 1), (2, 7, 2), (2, 8, 1), (3, 7, 1)]
    results = [samples[key] for key in keys]
    for one, other in itertools.combinations(results, 2):
        assert not torch.equal(one[0], other[0])
    assert [target for _, target, _ in results] == [folder.labels[7]] * 3 + [folder.labels[8], folder.labels[7]]
    [images, _] = loaded(samples, [keys[:3], keys[3:]], 2)
    for result, image in zip(results, images, strict=True):
        assert torch.equal(result[0], image)


def test_the_draws_of_a_sample_are_keyed_by_seed_epoch_and_index(folder):
    """What this pins must not change: resumed runs would go on with other crops."""
    numbers = []

    def note_number(image):
        numbers.append(torch.rand(()).item())
        return image

    samples = samples_of(folder, transform=note_number)
    for key in ((2, 7), (2, 7, 1)):
        samples[key]
        with keyed_torch(SEED, "augmentation", *key):
            assert numbers[-1] == torch.rand(()).item()
    assert numbers[0] != numbers[1]


def test_the_main_processs_random_stream_is_left_alone(folder):
    batches = iter(batch_loader(samples_of(folder, target_of=coin()), [[(0, 0)], [(0, 1)]], 0, CPU))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for _ in batches:
        pass
    assert torch.equal(torch.rand(4), expected)


def whole(image):
    return image


def test_coin_and_augmentation_are_independent(folder):
    rarely = samples_of(folder, target_of=coin(0.1))
    often = samples_of(folder, target_of=coin(0.9))
    often_untransformed = samples_of(folder, transform=whole, target_of=coin(0.9))
    for epoch in range(2):
        for index in range(12):
            assert torch.equal(rarely[epoch, index][0], often[epoch, index][0])
            assert often[epoch, index][1] == often_untransformed[epoch, index][1]


def test_coin_does_not_go_with_the_flip(folder):
    flip_only = train_transform(crop_size=32, crop_ratio=(1.0, 1.0), aspect_ratio=(1.0, 1.0), flip_probability=0.5)
    samples = samples_of(folder, transform=flip_only, target_of=coin())
    flips, coins = [], []
    for index in range(12):
        straight = samples[0, index][0]
        for epoch in range(50):
            image, keep_low, _ = samples[epoch, index]
            flips.append(not torch.equal(image, straight))
            coins.append(keep_low)
    assert 0.3 < np.mean(flips) < 0.7
    assert abs(np.corrcoef(flips, coins)[0, 1]) < 0.12


def test_labelled_samples_hold_their_class(folder):
    images, labels = loaded(samples_of(folder), [[(0, index) for index in range(12)]], 0)
    assert images.shape == (12, 3, 32, 32)
    assert (labels.tolist(), labels.dtype) == ([0] * 6 + [1] * 6, torch.int64)


@pytest.fixture
def damaged(tmp_path):
    """Two classes of two images, of which the last one cannot be read."""
    root = image_folder(tmp_path, per_class=2)
    (root / "bee/1.png").write_bytes(b"GIF89a")
    return ImageFolder(str(root))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_an_unreadable_image_is_named(damaged, workers):
    with pytest.raises(UserError, match=r"bee/1\.png: not a readable image"):
        loaded(samples_of(damaged), [[(0, 3)]], workers)


def test_an_unreadable_image_is_replaced_with_its_replacements_target_and_a_note(damaged):
    targets = []
    for epoch in range(12):
        samples = samples_of(damaged, transform=whole, skip_bad=True)
        image, target, note = samples[epoch, 3]
        used_path = note.rpartition("replaced by ")[2]
        used_index = [damaged.path(index) for index in range(3)].index(used_path)
        assert torch.equal(image, decode_image(used_path)) and target == damaged.labels[used_index]
        assert note.startswith(f"{damaged.path(3)}: not a readable image")
        again = samples[epoch, 3]
        assert torch.equal(again[0], image) and again[1:] == (target, note)
        targets.append(target)
    assert set(targets) == {0, 1}


def test_every_repeat_of_an_unreadable_image_has_the_same_replacement(damaged):
    samples = samples_of(damaged, transform=whole, skip_bad=True)
    image, target, note = samples[0, 3]
    for repeat in (1, 2):
        again = samples[0, 3, repeat]
        assert torch.equal(again[0], image) and again[1:] == (target, note)


def test_an_image_that_can_be_read_has_an_empty_note(damaged):
    image, target, note = samples_of(damaged, transform=whole, skip_bad=True)[0, 2]
    assert torch.equal(image, decode_image(damaged.path(2))) and (target, note) == (1, "")


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_samples_hold_every_size_and_no_chance(folder, workers):
    samples = EvaluationSamples(folder, (40, 33), 32, "bilinear")
    crops, labels = loaded(samples, [[3, 11]], workers)
    assert (crops.shape, crops.dtype) == ((2, 2, 3, 32, 32), torch.uint8)
    assert labels.tolist() == [0, 1]
    expected = evaluation_crops(decode_image(folder.path(11)), (40, 33), 32, "bilinear")
    assert torch.equal(crops[1], expected)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 6]), (5, [0, 2, 4, 7, 9]), (99, list(range(12)))])
def test_fixed_images_are_spread_evenly_over_the_folder(folder, count, expected):
    images = fixed_images(folder, count, 32, "bicubic")
    assert (images.shape, images.dtype) == ((len(expected), 3, 32, 32), torch.uint8)
    for image, index in zip(images, expected, strict=True):
        assert torch.equal(image, evaluation_crops(decode_image(folder.path(index)), (32,), 32, "bicubic")[0])


def test_fixed_images_are_those_that_can_be_read(damaged):
    assert len(fixed_images(damaged, 4, 32, "bicubic")) == 3
    for index in range(3):
        with open(damaged.path(index), "wb") as file:
            file.write(b"no image")
    assert fixed_images(damaged, 4, 32, "bicubic").shape == (0, 3, 32, 32)
