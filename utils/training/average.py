"""The exponential moving average of a model's weights."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True)
class AverageRule:
    """When the average is updated, and how far: a pure function of the step.

    Args:
        decay: share of the average that an update keeps.
        every_steps: an update comes after the first step of each epoch, and after every so many steps of it.
        average_buffers: BatchNorm's statistics are averaged like weights (CoinCheung/MFM), not copied from the model.
        restart_steps: in so many first steps an update sets the average to the weights, and the first one after
            them does so too (CoinCheung/MFM: those of the warm-up).
    """

    decay: float
    every_steps: int = 1
    average_buffers: bool = False
    restart_steps: int = 0
    steps_per_epoch: int = 1

    def is_due(self, step: int) -> bool:
        return step % self.steps_per_epoch % self.every_steps == 0

    def restarts(self, step: int) -> bool:
        """Whether the update after this one starts anew."""
        return step < self.restart_steps


@torch.no_grad()
def update_average(average: AveragedModel, rule: AverageRule, model: nn.Module, step: int, bad: torch.Tensor) -> None:
    """Move the average towards the model if an update is due after this step, unless `bad`, a bool on the device.

    The first good update starts the average with the model's weights. `n_averaged` counts the updates since a start.
    Counts of batches, which are integers, are copied always.
    """
    if not rule.is_due(step):
        return
    started = (average.n_averaged > 0).double()
    share = (~bad).double() * (1 - rule.decay * started)
    if rule.restarts(step):
        average.n_averaged.zero_()
    else:
        average.n_averaged += ~bad
    for averaged, weight in zip(average.module.parameters(), model.parameters(), strict=True):
        averaged.lerp_(weight, share.to(weight.dtype))
    for averaged, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
        if rule.average_buffers and buffer.is_floating_point():
            averaged.lerp_(buffer, share.to(buffer.dtype))
        else:
            torch.where(bad, averaged, buffer, out=averaged)
