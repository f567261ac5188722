"""Learning rate as a pure function of the step: linear warmup, then a cosine."""

import math
from dataclasses import dataclass

from configs.schema import ScheduleOptions


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run.

    Args:
        options: with interval "step" the rate changes each step, with "epoch" at the start of each epoch
            (CoinCheung/MFM). With cosine_from "warmup" the cosine spans the epochs after warmup (CoinCheung/MFM), with
            "start" all epochs, so that it continues below the peak after warmup (the authors' code).
        peak: learning rate at the end of the warmup.
    """

    options: ScheduleOptions
    peak: float
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        options = self.options
        if options.interval == "epoch":
            epochs_done = step // self.steps_per_epoch
        else:
            epochs_done = step / self.steps_per_epoch
        if epochs_done < options.warmup_epochs:
            rise = self.peak - options.warmup_learning_rate
            return options.warmup_learning_rate + rise * epochs_done / options.warmup_epochs
        start = options.warmup_epochs if options.cosine_from == "warmup" else 0
        share = (epochs_done - start) / (options.epochs - start)
        height = self.peak - options.final_learning_rate
        return options.final_learning_rate + height * (1 + math.cos(math.pi * share)) / 2
