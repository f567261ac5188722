"""Which image when, and how a sample is drawn: functions of seed, step, epoch and index alone."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import evaluation_crops, train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.samples import EvaluationSamples, TrainingSamples, batch_loader, filter_coin, label
from data.sampling import BatchPlan, epoch_order
from tests.support.helpers import image_folder
from utils.errors import UserError

SEED = 5


@st.composite
def jobs(draw):
    """(length, batch size, images_per_device, world size, epochs)."""
    images, ranks, turns = (draw(st.integers(1, high)) for high in (4, 5, 3))
    batch = images * ranks * turns
    return draw(st.integers(batch, 4 * batch + 7)), batch, images, ranks, draw(st.integers(1, 3))


def rank_plans(length, batch, images, ranks, epochs):
    return [BatchPlan.make(length, batch, images, epochs, SEED, rank, ranks) for rank in range(ranks)]


def merged(plans, first_step=0):
    """What all ranks yield, as {(step, number of the micro-batch): keys}."""
    found = {}
    for plan in plans:
        for count, keys in enumerate(plan.micro_batches(first_step)):
            step, turn = divmod(count, plan.accumulation)
            place = (first_step + step, plan.micro_batch_number(turn))
            assert place not in found
            found[place] = keys
    return found


def in_order(micro_batches):
    return [key for place in sorted(micro_batches) for key in micro_batches[place]]


EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)


@EXAMPLES
@given(jobs())
def test_all_ranks_together_see_each_epochs_whole_batches_once(job):
    length, batch, images, _, epochs = job
    used = length // batch * batch
    expected = [(epoch, i) for epoch in range(epochs) for i in epoch_order(length, SEED, epoch)[:used].tolist()]
    found = merged(rank_plans(*job))
    assert in_order(found) == expected
    assert {len(keys) for keys in found.values()} == {images}
    assert sorted(found) == [(s, n) for s in range(length // batch * epochs) for n in range(batch // images)]


@EXAMPLES
@given(jobs())
def test_micro_batches_do_not_depend_on_the_number_of_ranks(job):
    length, batch, images, _, epochs = job
    assert merged(rank_plans(*job)) == merged(rank_plans(length, batch, images, 1, epochs))


@EXAMPLES
@given(jobs(), st.data())
def test_resuming_yields_the_tail(job, data):
    for plan in rank_plans(*job):
        whole = list(plan.micro_batches())
        first = data.draw(st.integers(0, plan.total_steps), label="completed steps")
        assert list(plan.micro_batches(first)) == whole[first * plan.accumulation :]


@EXAMPLES
@given(jobs(), st.data())
def test_stopping_anywhere_and_going_on_with_other_ranks_sees_each_image_once(job, data):
    length, batch, images, _, epochs = job
    steps = length // batch * epochs
    stop = data.draw(st.integers(0, steps), label="completed steps")
    turns = batch // images
    others = data.draw(st.sampled_from([n for n in range(1, turns + 1) if turns % n == 0]), label="ranks afterwards")
    before = {place: keys for place, keys in merged(rank_plans(*job)).items() if place[0] < stop}
    after = merged(rank_plans(length, batch, images, others, epochs), stop)
    assert not before.keys() & after.keys()
    used = length // batch * batch
    expected = [(epoch, i) for epoch in range(epochs) for i in epoch_order(length, SEED, epoch)[:used].tolist()]
    assert in_order(before | after) == expected


def test_a_run_that_is_already_complete_yields_nothing():
    plan = BatchPlan.make(10, 4, 2, epochs=2)
    assert list(plan.micro_batches(first_step=9)) == []


def test_sizes_of_a_plan():
    plan = BatchPlan.make(length=103, batch_size=24, images_per_device=4, rank=2, world_size=3, epochs=5)
    assert (plan.steps_per_epoch, plan.total_steps, plan.accumulation) == (4, 20, 2)
    assert [plan.micro_batch_number(turn) for turn in range(2)] == [2, 5]
    assert BatchPlan.make(103, 24, None, 5, world_size=3).images_per_device == 8


@pytest.mark.parametrize(
    ("batch", "images", "ranks", "complaint"),
    [
        (10, None, 4, "train.batch_size = 10: .* 4 ranks; .*: 8 or 12$"),
        (3, None, 4, ": 4 or 8$"),
        (100, 16, 3, "train.batch_size = 100: .* 3 ranks × 16 images_per_device; .*: 96 or 144$"),
        (8, 16, 1, "16 images_per_device; .*: 16 or 32$"),
        (2048, None, 2, "train.batch_size = 2048: more than the 103 training images"),
        (104, 8, 1, "more than the 103 training images"),
    ],
)
def test_batch_sizes_that_do_not_work(batch, images, ranks, complaint):
    with pytest.raises(UserError, match=complaint):
        BatchPlan.make(103, batch, images, epochs=1, world_size=ranks)


def test_a_batch_of_all_images_works():
    assert BatchPlan.make(103, 103, None, epochs=2).total_steps == 2


@EXAMPLES
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 1000))
def test_epoch_order_is_a_permutation(length, seed, epoch):
    order = epoch_order(length, seed, epoch)
    assert sorted(order.tolist()) == list(range(length))
    np.testing.assert_array_equal(order, epoch_order(length, seed, epoch))
    if length > 20:
        assert (order != epoch_order(length, seed, epoch + 1)).any()
        assert (order != epoch_order(length, seed + 1, epoch)).any()
        assert (epoch_order(length, seed, epoch + 1) != epoch_order(length, seed + 1, epoch)).any()


# Samples.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ImageFolder(str(image_folder(tmp_path_factory.mktemp("images"), per_class=6)))


TRANSFORM = train_transform(32, (0.2, 1.0), (0.75, 4 / 3), 0.5, rand_augment=(1, 9, 10))
CPU = torch.device("cpu")


def loaded(samples, keys, workers):
    return [torch.cat(parts) for parts in list(zip(*batch_loader(samples, keys, workers, CPU), strict=True))[:2]]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_sample_depends_on_seed_epoch_and_index_only(folder, workers):
    keys = [(epoch, index) for epoch in (0, 3) for index in (5, 0, 11)]
    samples = TrainingSamples(folder, TRANSFORM, SEED, partial(filter_coin, SEED, 0.5))
    alone = [samples[key] for key in keys]
    torch.rand(5)
    batches = [keys[4:], keys[:1], keys[1:4]]  # another order, other batches
    images, keep_low = loaded(samples, batches, workers)
    places = [keys.index(key) for batch in batches for key in batch]
    assert (images.shape, images.dtype, keep_low.dtype) == ((6, 3, 32, 32), torch.uint8, torch.bool)
    for place, image, low in zip(places, images, keep_low, strict=True):
        assert torch.equal(image, alone[place][0])
        assert bool(low) == alone[place][1]


def test_seed_epoch_and_index_each_matter(folder):
    def draw(seed, epoch, index):
        return TrainingSamples(folder, TRANSFORM, seed, partial(label, folder))[epoch, index][0]

    base = draw(1, 2, 3)
    assert torch.equal(base, draw(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert not torch.equal(base, draw(*other))


def test_the_main_processs_random_stream_is_left_alone(folder):
    samples = TrainingSamples(folder, TRANSFORM, SEED, partial(filter_coin, SEED, 0.5))
    batches = iter(batch_loader(samples, [[(0, 0)], [(0, 1)]], 0, CPU))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for _ in batches:
        pass
    assert torch.equal(torch.rand(4), expected)


def whole(image):
    return image


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """Images of one pixel, quick to decode."""
    return ImageFolder(str(image_folder(tmp_path_factory.mktemp("dots"), per_class=20, size=(1, 1))))


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (1.0, 3000, 3000), (0.3, 810, 990)])
def test_coin_falls_as_often_as_told(dots, probability, least, most):
    samples = TrainingSamples(dots, whole, SEED, partial(filter_coin, SEED, probability))
    coins = np.array([[samples[epoch, index][1] for index in range(40)] for epoch in range(75)])
    assert least <= coins.sum() <= most
    if 0 < probability < 1:
        assert 4 < coins.sum(0).min() and coins.sum(0).max() < 44  # each image changes sides,
        assert 1 < coins.sum(1).min() and coins.sum(1).max() < 28  # each epoch holds both


def test_coins_of_two_seeds_differ():
    drawn = [[filter_coin(seed, 0.5, 0, i, i) for i in range(40)] for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_coin_and_augmentation_are_independent(folder):
    keys = [(epoch, index) for epoch in range(2) for index in range(12)]
    one, other = (TrainingSamples(folder, TRANSFORM, SEED, partial(filter_coin, SEED, p)) for p in (0.1, 0.9))
    assert all(torch.equal(one[key][0], other[key][0]) for key in keys)
    plain = TrainingSamples(folder, whole, SEED, partial(filter_coin, SEED, 0.9))
    assert all(other[key][1] == plain[key][1] for key in keys)


def test_coin_does_not_go_with_the_flip(folder):
    flip = train_transform(32, (1.0, 1.0), (1.0, 1.0), 0.5)
    samples, images = TrainingSamples(folder, flip, SEED, partial(filter_coin, SEED, 0.5)), {}
    pairs = []
    for epoch in range(50):
        for index in range(12):
            image, keep_low, _ = samples[epoch, index]
            straight = images.setdefault(index, image)
            pairs.append((not torch.equal(image, straight), keep_low))
    flips, coins = np.array(pairs, dtype=float).T
    assert 0.3 < flips.mean() < 0.7
    assert abs(np.corrcoef(flips, coins)[0, 1]) < 0.12


def test_labelled_samples_hold_their_class(folder):
    samples = TrainingSamples(folder, TRANSFORM, SEED, partial(label, folder))
    images, labels = loaded(samples, [[(0, i) for i in range(12)]], 0)
    assert images.shape == (12, 3, 32, 32)
    assert (labels.tolist(), labels.dtype) == ([0] * 6 + [1] * 6, torch.int64)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_samples_hold_every_size_and_no_chance(folder, workers):
    samples = EvaluationSamples(folder, (40, 33), 32, "bilinear")
    assert len(samples.folder) == 12
    crops, labels = loaded(samples, [[3, 11]], workers)
    assert (crops.shape, crops.dtype) == ((2, 2, 3, 32, 32), torch.uint8)
    assert labels.tolist() == [0, 1]
    expected = evaluation_crops(decode_image(folder.path(11)), (40, 33), 32, "bilinear")
    assert torch.equal(crops[1], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path, workers):
    root = image_folder(tmp_path, per_class=2)
    (root / "bee/1.png").write_bytes(b"GIF89a")
    samples = TrainingSamples(ImageFolder(str(root)), TRANSFORM, SEED, partial(label, ImageFolder(str(root))))
    with pytest.raises(UserError, match=r"bee/1\.png: not a readable image"):
        loaded(samples, [[(0, 3)]], workers)
