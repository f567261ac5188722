"""The exponential moving average of a model's weights."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.training.flat import by_type, gathered, joined


@dataclass(frozen=True)
class AverageRule:
    """When the average is updated, and how far: a pure function of the step.

    Args:
        decay: share of the average that an update keeps.
        every_steps: an update comes after the first step of each epoch, and after every so many steps of it.
        average_buffers: BatchNorm's statistics are averaged like weights (CoinCheung/MFM), not copied from the model.
        restart_epochs: in so many first epochs an update sets the average to the weights, and the first one after
            them does so too (CoinCheung/MFM: those of the warm-up).
    """

    decay: float
    every_steps: int = 1
    average_buffers: bool = False
    restart_epochs: float = 0.0
    steps_per_epoch: int = 1

    def is_due(self, step: int) -> bool:
        return step % self.steps_per_epoch % self.every_steps == 0

    def restarts(self, step: int) -> bool:
        """Whether the update after this one starts anew."""
        return step // self.steps_per_epoch < self.restart_epochs


class WeightAverage(AveragedModel):
    """The average of a model's weights, and a model of its own, `module`.

    The tensors of `module` of one type are views of one line each, so that an update takes a GPU a few launches.

    Args:
        model: on its device; the average starts as a copy of it.
    """

    def __init__(self, model: nn.Module, rule: AverageRule):
        super().__init__(model, device=next(model.parameters()).device)
        self.rule = rule
        self.weight_lines = {dtype: joined(tensors) for dtype, tensors in by_type(self.module.parameters()).items()}
        self.buffer_lines = {dtype: joined(tensors) for dtype, tensors in by_type(self.module.buffers()).items()}

    def separate_state(self) -> dict[str, torch.Tensor]:
        """A copy of the state dict in which no tensor shares memory with another one, as a file should have it."""
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, bad: torch.Tensor) -> None:
        """Move towards the model if an update is due after this step, unless `bad`, a bool on the device.

        The first good update starts the average with the model's weights. `n_averaged` counts the updates since a
        start. Counts of batches, which are integers, are copied always.
        """
        if not self.rule.is_due(step):
            return
        good = ~bad
        share = (1 - self.rule.decay * (self.n_averaged > 0).double()) * good
        if self.rule.restarts(step):
            self.n_averaged.zero_()
        else:
            self.n_averaged += good
        for dtype, weights in by_type(model.parameters()).items():
            self.weight_lines[dtype].lerp_(gathered(weights), share.to(dtype))
        for dtype, buffers in by_type(model.buffers()).items():
            averaged = self.buffer_lines[dtype]
            if self.rule.average_buffers and dtype.is_floating_point:
                averaged.lerp_(gathered(buffers), share.to(dtype))
            else:
                torch.where(bad, averaged, gathered(buffers), out=averaged)
