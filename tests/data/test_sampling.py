"""Which image when: a function of seed and step alone, whatever the number of ranks and interruptions."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from data import sampling
from data.sampling import BatchPlan, epoch_order
from utils.errors import UserError

SEED = 5


@dataclass(frozen=True)
class PlannedJob:
    """A job of some ranks."""

    length: int
    batch_size: int
    images_per_device: int
    ranks: int
    epochs: int
    repeats: int = 1
    given_steps: int | None = None  # the length of the training, where it is not in epochs

    @property
    def steps(self):
        if self.given_steps is not None:
            return self.given_steps
        return self.length // self.batch_size * self.epochs

    @property
    def micro_batches_per_step(self):
        return self.batch_size // self.images_per_device

    def plans(self):
        """Each rank's plan."""
        plans = []
        for rank in range(self.ranks):
            plan = BatchPlan.make(
                self.length,
                self.batch_size,
                self.images_per_device,
                epochs=self.epochs,
                seed=SEED,
                rank=rank,
                world_size=self.ranks,
                augmentation_repeats=self.repeats,
                steps=self.given_steps,
            )
            plans.append(plan)
        return plans

    def micro_batches(self, first_step=0):
        """What all ranks together yield, as {(step, number of the micro-batch): keys}."""
        keys_at = {}
        for plan in self.plans():
            for count, keys in enumerate(plan.micro_batches(first_step)):
                step, micro_step = divmod(count, plan.accumulation)
                place = (first_step + step, plan.rank + micro_step * plan.world_size)
                assert place not in keys_at
                keys_at[place] = keys
        return keys_at

    def expected_keys(self):
        """Each epoch's order, every image so often in a row, as many as whole batches take; a batch by repeats.

        The keys of the job's steps: the last epoch is cut, or more epochs follow, where steps are given.
        """
        used = self.length // self.batch_size * self.batch_size
        keys = []
        for epoch in range(max(self.epochs, self.steps)):  # an epoch has one step at least
            of_epoch = []
            for image in epoch_order(self.length, SEED, epoch).tolist():
                of_epoch.append((epoch, image))
                for repeat in range(1, self.repeats):
                    of_epoch.append((epoch, image, repeat))
            for first in range(0, used, self.batch_size):
                keys += sorted(of_epoch[first : first + self.batch_size], key=lambda key: key[2:])
        return keys[: self.steps * self.batch_size]


@st.composite
def jobs(draw):
    images, ranks, micro_steps = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    batch = images * ranks * micro_steps
    length = draw(st.integers(batch, 4 * batch + 7))
    epochs, steps = draw(st.integers(1, 3)), draw(st.none() | st.integers(1, 13))
    return PlannedJob(length, batch, images, ranks, epochs, repeats=draw(st.integers(1, 4)), given_steps=steps)


def in_order(micro_batches):
    """The keys of micro-batches by step and number."""
    keys = []
    for place in sorted(micro_batches):
        keys += micro_batches[place]
    return keys


EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)


@EXAMPLES
@given(jobs())
def test_all_ranks_together_see_each_epochs_whole_batches_once(job):
    micro_batches = job.micro_batches()
    assert in_order(micro_batches) == job.expected_keys()
    assert {len(keys) for keys in micro_batches.values()} == {job.images_per_device}
    assert sorted(micro_batches) == list(itertools.product(range(job.steps), range(job.micro_batches_per_step)))


@EXAMPLES
@given(jobs())
def test_micro_batches_do_not_depend_on_the_number_of_ranks(job):
    assert job.micro_batches() == replace(job, ranks=1).micro_batches()


@EXAMPLES
@given(jobs(), st.data())
def test_resuming_yields_the_tail(job, data):
    for plan in job.plans():
        whole = list(plan.micro_batches())
        first = data.draw(st.integers(0, plan.total_steps), label="completed steps")
        assert list(plan.micro_batches(first)) == whole[first * plan.accumulation :]


@EXAMPLES
@given(jobs(), st.data())
def test_stopping_anywhere_and_going_on_with_other_ranks_sees_each_image_once(job, data):
    stop = data.draw(st.integers(0, job.steps), label="completed steps")
    possible = [ranks for ranks in range(1, 16) if job.micro_batches_per_step % ranks == 0]
    ranks = data.draw(st.sampled_from(possible), label="ranks afterwards")
    before = {place: keys for place, keys in job.micro_batches().items() if place[0] < stop}
    after = replace(job, ranks=ranks).micro_batches(stop)
    assert not before.keys() & after.keys()
    assert in_order(before | after) == job.expected_keys()


def test_a_run_that_is_already_complete_yields_nothing():
    plan = BatchPlan.make(10, 4, 2, epochs=2)
    assert list(plan.micro_batches(first_step=9)) == []


def test_sizes_of_a_plan():
    plan = BatchPlan.make(length=103, batch_size=24, images_per_device=4, rank=2, world_size=3, epochs=5)
    assert (plan.steps_per_epoch, plan.total_steps, plan.accumulation) == (4, 20, 2)
    batches = plan.micro_batches()
    for number in (2, 5):  # of the six micro-batches of the first step
        images = plan.images_of(0)[4 * number : 4 * number + 4].tolist()
        assert next(batches) == [(0, image) for image in images]
    assert BatchPlan.make(103, 24, None, epochs=5, world_size=3).images_per_device == 8


def test_steps_are_a_length_whatever_the_number_of_images():
    for length, passes in ((94, 600), (947, 43), (9469, 5)):  # 1 %, 10 % and all of Imagenette
        plan = BatchPlan.make(length, 64, None, epochs=100, steps=600)
        assert (plan.total_steps, plan.passes) == (600, passes)
    with pytest.raises(UserError, match="train.batch_size = 128: more than the 94 training images; lower it"):
        BatchPlan.make(94, 128, None, epochs=100, steps=600)


def in_order_of_the_folder(length, _seed, _epoch):
    return np.arange(length)


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_images_of_an_epoch_are_those_of_timms_repeated_augmentation(repeats, replicas, monkeypatch):
    """512 images, of which timm's rounding to a multiple of 256 takes nothing away; its ranks take every other slot."""
    length, theirs = 512, np.empty(512, dtype=int)
    for rank in range(replicas):
        theirs[rank::replicas] = list(
            RepeatAugSampler(range(length), replicas, rank, shuffle=False, num_repeats=repeats)
        )
    monkeypatch.setattr(sampling, "epoch_order", in_order_of_the_folder)
    plan = BatchPlan.make(length, 64, None, epochs=1, augmentation_repeats=repeats)
    seen = []
    for step in range(plan.total_steps):
        images = plan.images_of(step)
        np.testing.assert_array_equal(np.sort(images), theirs[64 * step : 64 * (step + 1)])
        assert (images[1:] != images[:-1]).all()  # neighbours are mixed
        seen += images.tolist()
    assert len(set(seen)) == -(-512 // repeats)


def test_repeats_go_on_where_a_batch_ends():
    plan = BatchPlan.make(length=10, batch_size=4, images_per_device=2, epochs=2, augmentation_repeats=3)
    first, second, third, *_ = epoch_order(10, 0, 1).tolist()
    whole = list(plan.micro_batches(first_step=2))
    assert whole[:2] == [[(1, first), (1, second)], [(1, first, 1), (1, first, 2)]]
    assert whole[2:] == [[(1, third), (1, second, 1)], [(1, third, 1), (1, second, 2)]]
    assert plan.images_of(3).tolist() == [third, second, third, second]


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


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_position_in_images_is_the_same_place_for_every_batch_size(length, batch_size, other_size, data):
    """Whatever has been seen of the epoch's order before it, and nothing else, lies before the step that it means."""
    if max(batch_size, other_size) > length:
        return
    plan = BatchPlan.make(length, other_size, None, epochs=3)
    epoch = data.draw(st.integers(0, 2))
    images = batch_size * data.draw(st.integers(0, length // batch_size))
    if images % other_size:
        with pytest.raises(UserError, match=f"train.batch_size = {other_size}: the run is {images} images into epoch"):
            plan.step_at(epoch, images)
        return
    step = plan.step_at(epoch, images)
    assert step == epoch * (length // other_size) + images // other_size
    if step % plan.steps_per_epoch:
        assert plan.images_of(step).tolist() == epoch_order(length, 0, epoch)[images:][:other_size].tolist()


@pytest.mark.parametrize(
    ("batch_size", "ranks", "images_per_device", "images", "nearest"),
    [
        (6, 1, None, 16, "4 or 8"),
        (6, 2, None, 16, "4 or 8"),
        (24, 1, None, 16, "16$"),
        (48, 1, 8, 80, "40 or 80"),
        (10, 2, None, 9, "none: resume from the end of an epoch"),
    ],
)
def test_the_nearest_batch_sizes_for_a_position_are_named(batch_size, ranks, images_per_device, images, nearest):
    plan = BatchPlan.make(100, batch_size, images_per_device, epochs=3, world_size=ranks)
    with pytest.raises(UserError, match=f"images into epoch 1, .*nearest that fit: {nearest}"):
        plan.step_at(1, images)
