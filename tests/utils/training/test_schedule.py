"""Learning rates against numbers computed by hand and against torch's and timm's own schedulers."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR, StepLR

from configs.schema import ScheduleOptions
from utils.training.schedule import SHAPES, LearningRate, in_steps


def learning_rate(step, steps_per_epoch, epochs, peak, warmup_epochs=0.0, warmup_learning_rate=0.0, **more):
    options = ScheduleOptions(
        epochs=epochs, warmup_epochs=warmup_epochs, warmup_learning_rate=warmup_learning_rate, **more
    )
    return LearningRate(options, peak, steps_per_epoch).at(step)


PEAK, STEPS = 1.2e-3, 625  # ImageNet in batches of 2048
COINCHEUNG = partial(
    learning_rate, steps_per_epoch=STEPS, epochs=300, peak=PEAK, warmup_epochs=20.0, warmup_learning_rate=1.2e-5,
    final_learning_rate=0.0, interval="epoch", cosine_from="warmup",
)  # fmt: skip
AUTHORS = partial(
    learning_rate, steps_per_epoch=STEPS, epochs=300, peak=PEAK, warmup_epochs=20.0, warmup_learning_rate=1e-6,
    final_learning_rate=1e-5, interval="step", cosine_from="start",
)  # fmt: skip
LAST = 300 * STEPS - 1


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 1.2e-5),
        (1, 1.2e-5 + 1.188e-3 / 20),
        (10, 6.06e-4),
        (19, 1.2e-5 + 1.188e-3 * 19 / 20),
        (20, 1.2e-3),
        (90, 1.2e-3 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (160, 6e-4),  # its middle
        (299, 1.2e-3 * math.sin(math.pi / 560) ** 2),  # 1 of its 280 epochs before the end
    ],
)
def test_coincheung_mfm_changes_at_each_epoch(epoch, expected):
    first, last = epoch * STEPS, epoch * STEPS + STEPS - 1
    assert COINCHEUNG(first) == COINCHEUNG(last) == pytest.approx(expected, rel=1e-9)


def test_coincheung_mfm_agrees_with_torchs_schedulers():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    warmup = LinearLR(optimizer, start_factor=0.01, total_iters=20)
    schedule = SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=280)], milestones=[20])
    theirs = []
    for _ in range(300):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose([COINCHEUNG(epoch * STEPS) for epoch in range(300)], theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (1, 1e-6 + 1.199e-3 / 12500),
        (6250, 6.005e-4),
        (12499, 1e-6 + 1.199e-3 * 12499 / 12500),
        (12500, 1e-5 + 1.19e-3 * (1 + math.cos(math.pi / 15)) / 2),  # 20 of 300 epochs into the cosine
        (93750, 6.05e-4),  # its middle
    ],
)
def test_the_authors_code_changes_at_each_step(step, expected):
    assert AUTHORS(step) == pytest.approx(expected, rel=1e-9)


def test_the_authors_code_falls_below_the_peak_after_warmup_and_ends_on_its_floor():
    assert AUTHORS(12500) / PEAK == pytest.approx(0.989, abs=5e-4)
    last = AUTHORS(300 * STEPS - 1)
    assert 1e-5 < last < 1e-5 * (1 + 1e-5)
    after = [AUTHORS(step) for step in range(12500, 300 * STEPS, 1000)]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (1, 1e-6),
        (2, 1e-6 + 1.199e-3 / 12500),
        (12500, 1e-6 + 1.199e-3 * 12499 / 12500),  # the last of the warm-up's line
        (12501, 1e-5 + 1.19e-3 * (1 + math.cos(math.pi / 15)) / 2),
        (LAST, 1e-5 + 1.19e-3 * (1 + math.cos(math.pi * (LAST - 1) / (LAST + 1))) / 2),
    ],
)
def test_the_authors_code_sets_the_rate_after_a_step(step, expected):
    assert AUTHORS(step, delay_steps=1) == pytest.approx(expected, rel=1e-9)
    assert AUTHORS(step, delay_steps=1) == AUTHORS(max(step - 1, 0))


def test_delayed_changes_of_each_epoch_come_at_its_second_step():
    delayed = [COINCHEUNG(step, delay_steps=1) for step in (0, 1, STEPS, STEPS + 1, 20 * STEPS, 20 * STEPS + 1, LAST)]
    first, second = COINCHEUNG(0), COINCHEUNG(STEPS)
    assert delayed == [first, first, first, second, COINCHEUNG(19 * STEPS), PEAK, COINCHEUNG(LAST)]


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("cosine_from", ["warmup", "start"])
def test_without_warmup_it_starts_at_the_peak(interval, cosine_from):
    rates = [learning_rate(step, 4, 10, 0.5, interval=interval, cosine_from=cosine_from) for step in range(40)]
    assert rates[0] == 0.5
    assert rates[20] == pytest.approx(0.25)
    assert len(set(rates)) == (40 if interval == "step" else 10)


def test_warmup_may_end_within_an_epoch():
    rates = [learning_rate(step, 4, 3, 1.0, 0.5, 0.2) for step in range(4)]
    assert rates[:3] == pytest.approx([0.2, 0.6, 1.0])
    assert rates[3] == pytest.approx((1 + math.cos(math.pi * 0.1)) / 2)


def of_torch(make_schedule, epochs):
    """The learning rate of each epoch by one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    schedule = make_schedule(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("make_schedule", "options"),
    [
        (partial(StepLR, step_size=30, gamma=0.1), {"shape": "step", "decay_epochs": 30, "decay_rate": 0.1}),
        (partial(StepLR, step_size=7, gamma=0.97), {"shape": "step", "decay_epochs": 7, "decay_rate": 0.97}),
        (partial(StepLR, step_size=1, gamma=1.0), {"shape": "step", "decay_epochs": 1, "decay_rate": 1.0}),
        (partial(MultiStepLR, milestones=[60, 80], gamma=0.1), {"shape": "multistep"}),
        (
            partial(MultiStepLR, milestones=[50, 3, 50, 99], gamma=0.5),
            {"shape": "multistep", "milestones": (50, 3, 50, 99), "decay_rate": 0.5},
        ),
        (partial(CosineAnnealingLR, T_max=100, eta_min=0.1), {"shape": "cosine", "final_learning_rate": 0.1}),
    ],
)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_each_shape_agrees_with_torchs_scheduler(make_schedule, options, interval):
    """At the start of each epoch, and for steps down at its end too."""
    starts = [learning_rate(7 * epoch, 7, 100, 0.8, interval=interval, **options) for epoch in range(100)]
    np.testing.assert_allclose(starts, of_torch(make_schedule, 100), rtol=1e-9)
    if options["shape"] != "cosine" or interval == "epoch":
        assert starts == [
            learning_rate(7 * epoch + 6, 7, 100, 0.8, interval=interval, **options) for epoch in range(100)
        ]


@pytest.mark.parametrize(
    "options", [{"shape": "step", "decay_epochs": 10}, {"shape": "multistep", "milestones": (10, 20)}]
)
def test_steps_down_count_the_epochs_of_the_warm_up(options):
    """As timm's step schedule does."""
    rates = [learning_rate(epoch, 1, 30, 1.0, 5.0, 0.0, interval="epoch", **options) for epoch in range(30)]
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert rates[9:11] == pytest.approx([1, 0.1]) and rates[19:21] == pytest.approx([0.1, 0.01])


def test_a_cosine_each_epoch_from_the_start_is_timms():
    """As in RSB A3: 5 warm-up epochs, and the cosine of all 100 epochs after them."""
    scheduler = pytest.importorskip("timm.scheduler").CosineLRScheduler
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=8e-3)
    schedule = scheduler(optimizer, t_initial=100, lr_min=1e-6, warmup_t=5, warmup_lr_init=8e-7)
    for epoch in range(100):
        expected = optimizer.param_groups[0]["lr"]
        got = learning_rate(
            3 * epoch + 1, 3, 100, 8e-3, 5.0, 8e-7, final_learning_rate=1e-6, interval="epoch", cosine_from="start"
        )
        assert got == pytest.approx(expected, rel=1e-12)
        schedule.step(epoch + 1)


LENGTHS = [
    {"shape": "cosine"}, {"shape": "cosine", "cosine_from": "start"}, {"shape": "step", "decay_epochs": 30},
    {"shape": "multistep"},
]  # fmt: skip


@pytest.mark.parametrize("options", LENGTHS)
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("delay_steps", [0, 1])
def test_given_steps_are_epochs_of_other_steps(options, interval, delay_steps):
    """600 steps of 100 epochs have the rates of 100 epochs of 6 steps, however many steps an epoch of images has."""
    more = {**options, "interval": interval, "delay_steps": delay_steps, "warmup_epochs": 5.0}
    expected = [learning_rate(step, 6, 100, 0.5, **more) for step in range(600)]
    for steps_per_epoch in (1, 14, 147):
        rates = [learning_rate(step, steps_per_epoch, 100, 0.5, **more, steps=600) for step in range(600)]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_steps_need_no_whole_number_for_an_epoch(interval):
    rates = [learning_rate(step, 147, 100, 0.5, 10.0, interval=interval, steps=77) for step in range(77)]
    assert rates[0] == 0 and max(rates) == pytest.approx(0.5, rel=5e-3)
    assert rates.index(max(rates)) == 8  # the first step after 10 of 100 epochs, which are 7.7 steps
    assert rates[8:] == sorted(rates[8:], reverse=True) and 0 < rates[-1] < 2e-3


def test_what_is_given_in_epochs_keeps_its_share_of_the_steps():
    plain, given = ScheduleOptions(epochs=100), ScheduleOptions(epochs=100, steps=1470)
    assert in_steps(10, plain, 147) == 1470 and in_steps(0.5, plain, 147) == 74 and in_steps(0, plain, 147) == 0
    assert in_steps(10, given, 1) == in_steps(10, given, 147) == 147
    assert in_steps(1, ScheduleOptions(epochs=100, steps=7), 147) == 1  # never none


def test_every_shape_in_the_schema_is_in_the_table():
    (field,) = (field for field in dataclasses.fields(ScheduleOptions) if field.name == "shape")
    assert set(field.metadata["choices"]) == SHAPES.keys()
