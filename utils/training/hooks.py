"""What happens every so many steps, on all ranks: the hooks of the training loop.

The loop asks each hook after each step: `if hook.due(step): hook.run(step)`, where `step` counts completed steps. A new
hook is a class with these two methods, and a line in the list of hooks in pretrain.py or finetune.py. A hook that takes
minutes is also given to SaveCheckpoint and StopOnBadNumbers as `before`. One that evaluates the model first copies rank
0's BatchNorm statistics to the other ranks, as utils.training.evaluation.evaluate does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn

from utils.errors import UserError
from utils.figures import radial_curves
from utils.pictures import Reconstruction, eight_bit, log_magnitude, sheet
from utils.precision import without_algorithm_search
from utils.process import EXIT_REQUEUE, must_finish
from utils.run.provenance import write_json
from utils.run.resume import position_after
from utils.training.step import TrainingState

if TYPE_CHECKING:
    from utils.run.job import Job
    from utils.run.log import RunLog


class Hook(Protocol):
    def due(self, step: int) -> bool:
        """Whether to run after `step` completed steps; for hooks that exchange something, alike on all ranks."""

    def run(self, step: int) -> None: ...


@dataclass(frozen=True)
class Every:
    """Every `steps` completed steps, and after the last one; None: after the last one alone."""

    steps: int | None
    last: int

    def due(self, step: int) -> bool:
        if self.steps is not None and step > 0 and step % self.steps == 0:
            return True
        return step == self.last


def run_due(hooks: list[Hook], step: int) -> None:
    for hook in hooks:
        if hook.due(step):
            hook.run(step)


def stop_on_request(
    step: int, stop_on_bad_numbers: "StopOnBadNumbers", save_checkpoint: "SaveCheckpoint", log: "RunLog"
) -> int:
    """What the loop does before it ends early: nothing bad is saved, and nothing good is lost. Returns: exit code."""
    with must_finish():
        stop_on_bad_numbers.run(step)
        save_checkpoint.run(step, required=True)
        log.say(f"stopped on request after step {step} of {log.total_steps}; continue with --resume auto")
        log.close()
    return EXIT_REQUEUE


class StopOnBadNumbers:
    """Before each line of the log: ends the run on all ranks after a step that was not finite. Waits for the device.

    Args:
        images_of: the numbers of the images of a step, counted from 0.
        before: other hooks before which to look, such as an evaluation.
    """

    def __init__(
        self, log: "RunLog", state: TrainingState, job: "Job", images_of: Callable[[int], np.ndarray],
        before: tuple[Hook, ...] = (),
    ):  # fmt: skip
        self.log, self.state, self.job, self.images_of = log, state, job, images_of
        self.before = before

    def due(self, step: int) -> bool:
        return self.log.due(step) or any(hook.due(step) for hook in self.before)

    def run(self, _step: int) -> None:
        """Raises: UserError with the bad step, its images and the last good checkpoint."""
        bad_step = self.state.first_bad_step()
        if bad_step is None:
            return
        images = self.images_of(bad_step).tolist()
        epoch = bad_step // self.log.steps_per_epoch
        newest = self.job.checkpoints.newest()
        good = "none yet" if newest is None else newest.name
        path = self.job.output / "not_finite.json"
        if self.job.world.rank == 0:
            write_json(
                path, {"step": bad_step + 1, "epoch": epoch, "images": images, "checkpoint": str(newest or good)}
            )
        remedy = "lower optimizer.learning_rate, or set optimizer.clip_grad_norm or train.precision=float32"
        if bad_step == 0:  # the learning rate has had no effect yet
            remedy = "look at --weights, data.mean and data.std, or set train.precision=float32"
        raise UserError(
            f"loss or gradient is not finite in step {bad_step + 1} (its images: {path}); no weight was changed; "
            f"{remedy}, then --resume auto (last good checkpoint: {good})"
        )


class SaveCheckpoint:
    """Saves every so many steps or minutes, after the last step, and before another hook that takes long.

    Args:
        extra_state: what a checkpoint holds beside the training state.
        before: hooks before which a checkpoint is saved, such as an evaluation, so that nothing is lost in them.
    """

    def __init__(
        self, log: "RunLog", state: TrainingState, job: "Job", extra_state: dict, before: tuple[Hook, ...] = ()
    ):
        self.log, self.state, self.checkpoints, self.rank = log, state, job.checkpoints, job.world.rank
        self.extra_state, self.before = extra_state, before

    def due(self, step: int) -> bool:
        if step == self.log.total_steps or self.checkpoints.due(step):
            return True
        return any(hook.due(step) for hook in self.before)

    def run(self, step: int, required: bool = False) -> None:
        """Rank 0 saves, unless a step was not finite. With `required`, as at the end, a failure ends the run."""
        if self.rank != 0 or step == self.checkpoints.saved_step:
            return
        if self.state.first_bad_step() is not None:
            return  # StopOnBadNumbers will say so
        required = required or step == self.log.total_steps
        position = position_after(step, self.log.steps_per_epoch, self.log.batch_size)
        content = self.state.state_dict() | self.extra_state | {"position": position}
        self.log.say(self.checkpoints.attempt(step, content, required))


class ShowsReconstructions(Protocol):
    """The part of a task that the pictures need: see models.mfm.MaskedFrequencyModelling.show."""

    def show(self, network: nn.Module, images: torch.Tensor) -> Mapping[str, Reconstruction]: ...


class ShowReconstructions:
    """Rank 0 shows in TensorBoard the predictions for the same few images, and how far off they are by frequency.

    Nothing that training uses is changed, and no random number is drawn.

    Args:
        images: (B, 3, H, W) uint8 on the model's device.
        radii: of the filter, marked in the curves; none where no radius decides.
    """

    def __init__(
        self, every: Every, task: ShowsReconstructions, model: nn.Module, images: torch.Tensor,
        radii: tuple[float, ...], log: "RunLog",
    ):  # fmt: skip
        self.every, self.task, self.model, self.images = every, task, model, images
        self.radii, self.log = radii, log

    def due(self, step: int) -> bool:
        return self.log.board.active and len(self.images) > 0 and self.every.due(step)

    def run(self, step: int) -> None:
        with self.log.board.guard(step), without_algorithm_search():
            reconstructions = self.task.show(self.model, self.images)
            for kind, reconstruction in reconstructions.items():
                self.show_pictures(kind, reconstruction.pictures, step)
            self.show_errors("error", "mean |error|", reconstructions, step)
            title = "mean |error| / mean |target|: 1 is predicting nothing"
            self.show_errors("relative", title, reconstructions, step)

    def show_pictures(self, kind: str, pictures: dict[str, torch.Tensor], step: int) -> None:
        columns = " | ".join(pictures)
        for name, shade in (("reconstruction", eight_bit), ("log_magnitude", log_magnitude)):
            image = sheet([shade(batch) for batch in pictures.values()])
            self.log.board.add("image", f"pictures/{name}_{kind}: {columns}", image, step)

    def show_errors(self, name: str, title: str, reconstructions: Mapping[str, Reconstruction], step: int) -> None:
        board = self.log.board
        curves = {f"{kind} input": one.radial_error[name] for kind, one in reconstructions.items()}
        board.add_drawing(f"pictures/radial_{name}", lambda: radial_curves(curves, title, self.radii), step)
        for kind, one in reconstructions.items():
            board.add("tensor", f"radial_error/{name}/{kind}", one.radial_error[name], step)
