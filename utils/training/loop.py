"""The loop around the training step: batches in, log and checkpoints out, and a clean stop when asked to."""

import itertools
import time
from collections.abc import Callable, Iterator

import torch

from utils.errors import UserError
from utils.process import StopRequest
from utils.run.job import Run, write_json
from utils.run.log import RunLog
from utils.training.step import TrainingState, training_step


def train(
    state: TrainingState, micro_batches: Iterator, loss_of: Callable, learning_rate_of: Callable[[int], float],
    steps: range, plan, run: Run, log: RunLog, content: dict, show: Callable[[int], None] = lambda done: None,
) -> tuple[int, bool]:  # fmt: skip
    """Take these optimizer steps, or fewer on a stop request.

    Args:
        micro_batches: this rank's, `plan.accumulation` to a step: tensors, and last what to tell of each image.
        plan: the data.sampling.BatchPlan.
        content: what a checkpoint holds beside the state (config, classes).
        show: called with the number of completed steps after each, to show what the model does where it is due.
    Returns: completed steps of the run, and whether a stop request ended it, with a checkpoint.
    Raises: UserError if loss or gradient is not finite, on all ranks together, at the next log line.
    """
    copies = torch.cuda.Stream(run.world.device) if run.world.device.type == "cuda" else None
    with StopRequest() as stop:
        for step in steps:
            began = time.monotonic()
            batches = [next(micro_batches) for _ in range(plan.accumulation)]
            waited = time.monotonic() - began
            told = [text for batch in batches for text in batch.pop() if text]
            batches = on_device(batches, run.world.device, copies)
            metrics = training_step(state, step, learning_rate_of(step), batches, loss_of)
            done = step + 1
            # Two numbers through the CPU: no device is waited for.
            stopping, telling = run.world.sum(torch.tensor([stop.requested, len(told)])).tolist()
            if telling:
                log.replaced_images(done, sorted(itertools.chain(*run.world.gather(told))))
            last = stopping or done == steps.stop
            if log.due(step) or last:
                refuse_bad_numbers(state, plan, run)
            log.step(step, step // plan.steps_per_epoch, learning_rate_of(step), metrics, waited)
            if (last or run.checkpoints.due(done)) and run.world.rank == 0 and state.first_bad_step() is None:
                must = stopping or done == plan.total_steps
                log.say(run.checkpoints.attempt(done, state.state_dict() | content, must))
            show(done)
            if stopping:
                log.say(f"stopped on request after step {done} of {plan.total_steps}; continue with --resume auto")
                return done, True
    return steps.stop, False


def on_device(batches: list, device: torch.device, copies) -> list:
    """Micro-batches on the device; on a GPU their copies, in a stream of their own, go beside the step before."""
    with torch.cuda.stream(copies):
        there = [[tensor.to(device, non_blocking=True) for tensor in batch] for batch in batches]
    if copies:
        work = torch.cuda.current_stream(device)
        work.wait_stream(copies)
        for tensor in itertools.chain(*there):
            tensor.record_stream(work)  # its memory is free for another copy only when the step has used it
    return there


def refuse_bad_numbers(state: TrainingState, plan, run: Run) -> None:
    """Waits for the device. Raises: UserError on a step not finite, with its images and the last good checkpoint."""
    step = state.first_bad_step()
    if step is None:
        return
    images, path = plan.images_of(step).tolist(), run.output / "not_finite.json"
    epoch, good = step // plan.steps_per_epoch, str(run.checkpoints.newest() or "none yet")
    if run.world.rank == 0:
        write_json(path, {"step": step + 1, "epoch": epoch, "images": images, "checkpoint": good})
    raise UserError(
        f"loss or gradient is not finite in step {step + 1} (epoch {epoch}, images number {str(images[:8])[1:-1]}, …: "
        f"all in {path}); no weight and no checkpoint holds a trace of it (last good one: {good}); try a lower "
        "optimizer.learning_rate, optimizer.clip_grad_norm or train.precision=float32, and go on with --resume auto"
    )
