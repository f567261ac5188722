"""The loop around the training step: batches in, log and checkpoints out, and a clean stop when asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from utils.run import Run
from utils.run_log import RunLog
from utils.training import TrainingState, training_step

STEPS_BETWEEN_AGREEMENTS = 5  # on whether any rank was asked to stop


def train(
    state: TrainingState,
    micro_batches: Iterator,
    loss_of: Callable,
    learning_rate_of: Callable[[int], float],
    steps: range,
    plan,
    run: Run,
    log: RunLog,
    content: dict,
) -> int:
    """Take these optimizer steps, or fewer on a stop request.

    Args:
        micro_batches: this rank's, tuples of tensors, `plan.accumulation` to a step.
        learning_rate_of: of the step.
        plan: has `steps_per_epoch` and `accumulation` (data.sampling.BatchPlan).
        content: what a checkpoint holds beside the state (config, classes).
    Returns: completed steps of the run; a stop request ends before steps.stop, with a checkpoint.
    Raises: NonFiniteError, found at log intervals on all ranks together.
    """
    for step in steps:
        began = time.monotonic()
        batches = [next(micro_batches) for _ in range(plan.accumulation)]
        waited = time.monotonic() - began
        batches = [[tensor.to(run.world.device, non_blocking=True) for tensor in batch] for batch in batches]
        metrics = training_step(state, step, learning_rate_of(step), batches, loss_of)
        if log.due(step):
            state.check_health()
        log.step(step, step // plan.steps_per_epoch, learning_rate_of(step), metrics, waited)
        done = step + 1
        stopping = done % STEPS_BETWEEN_AGREEMENTS == 0 and run.world.any(run.stop.requested)
        if run.world.rank == 0 and (stopping or done == steps.stop or run.checkpoints.due(done)) and state.is_healthy():
            path = run.checkpoints.save(done, state.state_dict() | content)
            log.say(f"saved {path}")
        if stopping:
            log.say(f"stopped on request after step {done}; continue with --resume auto")
            return done
    return steps.stop
