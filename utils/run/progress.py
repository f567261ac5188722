"""What a training says on the console: a paragraph at its start, then a line every so many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from utils.console import fitted, line_width

if TYPE_CHECKING:
    from utils.run.job import Job

LABEL_WIDTH = 11  # characters of a fact's label, with the space after it
LOSS_LABELS = {"loss_low_pass": "low", "loss_high_pass": "high"}  # of the images that keep these frequencies
WAIT_WORTH_TELLING = 0.1  # share of a step's time


class Steps(Protocol):
    """The part of a data.sampling.BatchPlan that the console needs."""

    total_steps: int
    steps_per_epoch: int
    passes: int
    steps: int | None
    batch_size: int
    images_per_device: int
    accumulation: int
    world_size: int


def start_paragraph(
    config: PretrainConfig | FinetuneConfig, job: Job, plan: Steps, first_step: int, *, task: str, model: nn.Module,
    images: Mapping[str, int], source: str, classes: int = 0,
) -> str:  # fmt: skip
    """What is going to be done, a fact a line.

    Args:
        task: "pretraining" or "finetuning".
        images: name of a set, such as train -> its number of images.
        source: the folder, or the list, that has the images of train.
        classes: of the training set; 0: nobody asks for them.
    """
    facts = {
        "model": f"{config.model.name}, {parameters_in_words(model)}",
        "images": images_in_words(images, source, config.data.holdout_fraction, classes),
        "sizes": sizes_in_words(config),
        "epochs": epochs_in_words(plan),
        "batch": batch_in_words(plan),
        "precision": f"{str(job.dtype).removeprefix('torch.')} on {job.world.device.type}",
        "weights": weights_in_words(config),
        "output": str(job.output),
    }
    if first_step > 0:
        epoch = min(first_step // plan.steps_per_epoch + 1, plan.passes)
        facts["goes on"] = f"in epoch {epoch}, after step {first_step}"
    lines = [task]
    for label, fact in facts.items():
        lines.append(fitted(fact, label=f"  {label:{LABEL_WIDTH}}", indent=" " * (LABEL_WIDTH + 2)))
    return "\n".join(lines)


def parameters_in_words(model: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    words = f"{parameters:,} parameters"
    if trained < parameters:
        words += f", {trained:,} of them trained"
    return words


def images_in_words(images: Mapping[str, int], source: str, holdout_fraction: float, classes: int) -> str:
    numbers = []
    for name, count in images.items():
        number = f"{name} {count:,}"
        if name == "train":
            number += f" from {source}"
        numbers.append(number)
    if holdout_fraction and "held out" not in images:  # nothing needs them, so nobody has counted them
        numbers.append(f"held out {holdout_fraction:.3g} of train")
    classes_in_words = f"{classes:,} classes"
    if classes == 0:
        classes_in_words = "no classes used"
    elif classes == 1:
        classes_in_words = "1 class"
    return f"{', '.join(numbers)}; {classes_in_words}"


def epochs_in_words(plan: Steps) -> str:
    """How long the training is; where `schedule.steps` decides that, the last epoch may be a part of one."""
    in_part = ""
    if plan.total_steps % plan.steps_per_epoch:
        in_part = " (the last one in part)"
    words = f"{plan.passes}{in_part} of {plan.steps_per_epoch} steps, {plan.total_steps} steps in all"
    if plan.steps is not None:
        words += " (schedule.steps)"
    return words


def sizes_in_words(config: PretrainConfig | FinetuneConfig) -> str:
    words = f"train crop {config.data.train_crop_size}"
    if isinstance(config, FinetuneConfig):
        resized = ", ".join(map(str, config.data.val_resize_size))
        words += f"; val resized to {resized}, crop {config.data.val_crop_size}"
    return f"{words} pixels"


def batch_in_words(plan: Steps) -> str:
    """The images of an optimizer step, and how they are cut."""
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    return (
        f"{plan.batch_size} images = {ranks} × {plan.images_per_device} images_per_device "
        f"× {plan.accumulation} accumulated"
    )


def weights_in_words(config: PretrainConfig | FinetuneConfig) -> str:
    if config.run.weights is None:
        return "from scratch"
    if config.run.use_ema:
        return f"average (ema) of {config.run.weights}"
    return config.run.weights


def step_in_words(step: int, total_steps: int, steps_per_epoch: int) -> list[str]:
    """Where a training is after `step` completed steps; aligned, so that the numbers of lines stand in columns."""
    epochs = math.ceil(total_steps / steps_per_epoch)
    epoch = (step - 1) // steps_per_epoch + 1
    return [f"epoch {epoch:{len(str(epochs))}}/{epochs}", f"step {step:{len(str(total_steps))}}/{total_steps}"]


def losses_in_words(means: Mapping[str, float]) -> list[str]:
    """Means since the line before: the loss, then that of each kind of corruption, if there are several."""
    words = []
    for name, mean in means.items():
        if name == "loss":
            words.append(f"loss {mean:.4f}")
        else:
            words.append(f"{LOSS_LABELS.get(name, name)} {mean:.3f}")
    return words


def scores_in_words(row: Mapping[str, object]) -> list[str]:
    """Of a row of an evaluation during training: what was evaluated, and its scores."""
    method = f"{row['method']} k {row['k']} of " if "method" in row else ""
    words = [f"val {method}{row['weights']} at {row['val_resize_size']}"]
    words += [f"top-1 {row['top1']:.3f} %", f"top-5 {row['top5']:.3f} %"]
    if "loss" in row:
        words.append(f"loss {row['loss']:.4f}")
    return words


def one_line(fields: list[str]) -> str:
    """The fields beside each other, closer where they would not fit, and in several lines where that is not enough."""
    line = "  ".join(fields)
    if len(line) > line_width():
        line = fitted(" ".join(fields))
    return line


def time_left(seconds: float) -> str:
    """In at most two units and five characters, as 12d, 1d03h, 17h, 3h07m, 12m, 2m05s or 40s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    first, unit = parts[0]
    if first >= 10 or len(parts) == 1:
        return f"{first}{unit}"
    second, second_unit = parts[1]
    return f"{first}{unit}{second:02}{second_unit}"
