"""Learning rate as a pure function of the step: linear warm-up, then a cosine or steps down."""

import math
from bisect import bisect_right
from dataclasses import dataclass

from configs.schema import ScheduleOptions


def cosine(options: ScheduleOptions, peak: float, epochs_done: float) -> float:
    """With cosine_from "warmup" over the epochs after the warm-up (CoinCheung/MFM), with "start" over all epochs.

    So with "start" it continues below the peak after the warm-up (the authors' code, timm).
    """
    start = options.warmup_epochs if options.cosine_from == "warmup" else 0
    share = (epochs_done - start) / (options.epochs - start)
    height = peak - options.final_learning_rate
    return options.final_learning_rate + height * (1 + math.cos(math.pi * share)) / 2


def even_steps(options: ScheduleOptions, peak: float, epochs_done: float) -> float:
    """Times decay_rate after every decay_epochs epochs, those of the warm-up counted."""
    return peak * options.decay_rate ** (epochs_done // options.decay_epochs)


def milestones(options: ScheduleOptions, peak: float, epochs_done: float) -> float:
    """Times decay_rate at each milestone."""
    return peak * options.decay_rate ** bisect_right(sorted(options.milestones), epochs_done)


def in_steps(epochs: float, options: ScheduleOptions, steps_per_epoch: int) -> int:
    """A length that a setting gives in epochs, as the nearest number of steps, at least one if it is not 0.

    With `options.steps` the training is so long, and every such length keeps its share of `options.epochs`.

    Args:
        steps_per_epoch: of one pass over the training images.
    """
    if not epochs:
        return 0
    if options.steps is None:
        return max(1, round(epochs * steps_per_epoch))
    return max(1, round(epochs * options.steps / options.epochs))


SHAPES = {"cosine": cosine, "step": even_steps, "multistep": milestones}


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a run.

    Args:
        options: with interval "step" the rate changes each step, with "epoch" at the start of each epoch
            (CoinCheung/MFM, timm). `options.shape` says what follows the warm-up. With delay_steps 1 a step has the
            rate of the step before it, as the authors' code sets the rate after a step; the first two have the same.
        peak: learning rate at the end of the warm-up.
        steps_per_epoch: of one pass over the training images. With `options.steps` it plays no part: the rate of a
            step is then the same for any number of images.
    """

    options: ScheduleOptions
    peak: float
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        options = self.options
        step = max(step - options.delay_steps, 0)
        epochs, steps = 1, self.steps_per_epoch  # so many epochs of the schedule take so many steps
        if options.steps is not None:
            epochs, steps = options.epochs, options.steps
        if options.interval == "epoch":
            epochs_done = step * epochs // steps
        else:
            epochs_done = step * epochs / steps
        if epochs_done < options.warmup_epochs:
            rise = self.peak - options.warmup_learning_rate
            return options.warmup_learning_rate + rise * epochs_done / options.warmup_epochs
        return SHAPES[options.shape](options, self.peak, epochs_done)
