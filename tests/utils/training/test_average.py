"""The average of the weights against a slow loop written from its rule, and against torch's own average."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from configs.schema import OptimizerOptions, ScheduleOptions
from utils.distributed import World
from utils.run.job import average_rule
from utils.training.average import AverageRule
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

CPU = World(0, 1, 1, torch.device("cpu"))
STEPS_PER_EPOCH, EPOCHS = 5, 4
STEPS = range(STEPS_PER_EPOCH * EPOCHS)


def make_state(rule, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    return TrainingState(model, make_optimizer(model, OptimizerOptions()), CPU, torch.float32, average_rule=rule)


def take(state, step, bad=False):
    generator = torch.Generator().manual_seed(step)
    dtype = state.model[0].weight.dtype
    x, y = (torch.randn(5, width, generator=generator, dtype=torch.float64).to(dtype) for width in (4, 3))

    def squared_error(model, x, y):
        return F.mse_loss(model(x), y) * (float("nan") if bad else 1), {}

    training_step(state, step, 0.05, [(x, y)], squared_error)


def arrays(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


class SlowAverage:
    """The rule in float64, tensor by tensor, as loops over epochs and their steps have it."""

    def __init__(self, rule, start):
        self.rule, self.average, self.since_start = rule, start, 0

    def update(self, epoch, step_of_epoch, now, is_parameter):
        if step_of_epoch % self.rule.every_steps != 0:
            return
        for name, value in now.items():
            averaged = is_parameter[name] or (self.rule.average_buffers and "num_batches" not in name)
            if averaged and self.since_start > 0:
                value = self.rule.decay * self.average[name] + (1 - self.rule.decay) * value
            self.average[name] = value
        self.since_start += 1
        if epoch * STEPS_PER_EPOCH < self.rule.restart_steps:
            self.since_start = 0


RULES = {
    "plain": AverageRule(0.8, steps_per_epoch=STEPS_PER_EPOCH),
    "every 2 steps of an epoch": AverageRule(0.8, every_steps=2, steps_per_epoch=STEPS_PER_EPOCH),
    "once an epoch": AverageRule(0.8, every_steps=32, steps_per_epoch=STEPS_PER_EPOCH),
    "averaged buffers": AverageRule(0.8, average_buffers=True, steps_per_epoch=STEPS_PER_EPOCH),
    "restarts": AverageRule(0.8, restart_steps=2 * STEPS_PER_EPOCH, steps_per_epoch=STEPS_PER_EPOCH),
    "CoinCheung/MFM": AverageRule(
        0.8, 2, average_buffers=True, restart_steps=2 * STEPS_PER_EPOCH, steps_per_epoch=STEPS_PER_EPOCH
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("bad_steps", [(), (0, 4, 5, 8, 10, 11, 14)], ids=["good", "bad"])
def test_average_is_that_of_a_slow_loop_after_every_step(rule, bad_steps):
    """A bad step leaves no trace in it, be it the first, the last of the restarts, or one at which it is not due."""
    state = make_state(rule)
    is_parameter = dict.fromkeys(arrays(state.model), False) | {
        name: True for name, _ in state.model.named_parameters()
    }
    slow = SlowAverage(rule, arrays(state.model))
    for step in STEPS:
        before = {name: tensor.clone() for name, tensor in state.average.state_dict().items()}
        take(state, step, bad=step in bad_steps)
        if step in bad_steps:
            after = state.average.state_dict()
            assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
            continue
        slow.update(step // STEPS_PER_EPOCH, step % STEPS_PER_EPOCH, arrays(state.model), is_parameter)
        for name, value in arrays(state.average.module).items():
            np.testing.assert_allclose(value, slow.average[name], rtol=1e-12, atol=1e-15, err_msg=f"{name}, {step}")
    assert int(state.bad_steps.total) == len(bad_steps)
    assert not torch.equal(state.average.module[0].weight, state.model[0].weight)


def test_averaged_buffers_are_those_of_torchs_average():
    """torch's, with its count set to 0 in the first two epochs, as torchvision's training script does."""
    rule = RULES["CoinCheung/MFM"]
    state = make_state(rule)
    theirs = AveragedModel(state.model, avg_fn=get_ema_avg_fn(rule.decay), use_buffers=True)
    for step in STEPS:
        take(state, step)
        if step % STEPS_PER_EPOCH % 2 == 0:
            theirs.update_parameters(state.model)
            if step < 2 * STEPS_PER_EPOCH:
                theirs.n_averaged.zero_()
        for name, tensor in theirs.module.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(state.average.module.state_dict()[name], tensor, rtol=1e-12, atol=1e-15)
    assert state.average.module[1].num_batches_tracked == 1 + STEPS[-1]  # due after the last of 5 steps


@pytest.mark.parametrize("cut", [3, 9, 12])
def test_a_resumed_average_goes_on_bit_for_bit(cut):
    """Before, in and after the restarts, and between two updates: what is due is a function of the step."""
    rule = RULES["CoinCheung/MFM"]
    whole, first, resumed = (make_state(rule, torch.float32) for _ in range(3))
    for step in STEPS:
        take(whole, step)
    for step in STEPS[:cut]:
        take(first, step)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in STEPS[cut:]:
        take(resumed, step)
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(resumed.average.state_dict()[name], tensor), name


def test_the_knobs_make_the_rule():
    plain = OptimizerOptions(ema_decay=0.9)
    five = ScheduleOptions(epochs=100, warmup_epochs=5.0)
    assert average_rule(OptimizerOptions(), five, 625) is None
    assert average_rule(plain, five, 625) == AverageRule(0.9, steps_per_epoch=625)
    coincheung = OptimizerOptions(
        ema_decay=0.98689, ema_every_steps=32, ema_buffers="averaged", ema_restart_in_warmup=True
    )
    assert average_rule(coincheung, five, 625) == AverageRule(0.98689, 32, True, 5 * 625, 625)
    begun = ScheduleOptions(epochs=100, warmup_epochs=4.5)  # the fifth epoch begins in the warm-up
    assert average_rule(coincheung, begun, 625) == AverageRule(0.98689, 32, True, 5 * 625, 625)


@pytest.mark.parametrize("steps_per_epoch", [1, 147])
def test_with_steps_the_rule_is_the_same_for_any_number_of_images(steps_per_epoch):
    options = OptimizerOptions(ema_decay=0.9, ema_restart_in_warmup=True)
    schedule = ScheduleOptions(epochs=100, warmup_epochs=5.0, steps=600)
    assert average_rule(options, schedule, steps_per_epoch) == AverageRule(0.9, restart_steps=30, steps_per_epoch=6)


def test_its_count_of_updates_is_on_the_device_of_the_model():
    """So a flag that lies on a GPU can be added to it."""
    model = nn.Linear(2, 2, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState(model, optimizer, CPU, torch.float32, average_rule=AverageRule(0.9))
    assert state.average.n_averaged.device.type == "meta"
