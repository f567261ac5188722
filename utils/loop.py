"""The loop around the training step: batches in, log and checkpoints out, and a clean stop when asked to."""

import signal
import time
from collections.abc import Callable, Iterator

from utils.run import Run
from utils.run_log import RunLog
from utils.training import TrainingState, training_step

STOPPED = 75  # exit code after a stop on request: saved, to be continued with --resume auto (EX_TEMPFAIL)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Inside `with`, SIGTERM, SIGUSR1 and Ctrl-C are noted instead of ending at once; a second Ctrl-C does end."""

    def __enter__(self):
        self.requested = False
        self.before = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        return self

    def note(self, _number, _frame) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(
    state: TrainingState, micro_batches: Iterator, loss_of: Callable, learning_rate_of: Callable[[int], float],
    steps: range, plan, run: Run, log: RunLog, content: dict,
) -> int:  # fmt: skip
    """Take these optimizer steps, or fewer on a stop request.

    Args:
        micro_batches: this rank's, tuples of tensors, `plan.accumulation` to a step.
        plan: has `steps_per_epoch` and `accumulation` (data.sampling.BatchPlan).
        content: what a checkpoint holds beside the state (config, classes).
    Returns: completed steps of the run; a stop request ends before steps.stop, with a checkpoint.
    Raises: UserError if loss or gradient is not finite, on all ranks together, when a log line or checkpoint is due.
    """
    with StopRequest() as stop:
        for step in steps:
            began = time.monotonic()
            batches = [next(micro_batches) for _ in range(plan.accumulation)]
            waited = time.monotonic() - began
            batches = [[tensor.to(run.world.device, non_blocking=True) for tensor in batch] for batch in batches]
            metrics = training_step(state, step, learning_rate_of(step), batches, loss_of)
            done = step + 1
            stopping = run.world.any(stop.requested)  # one number through the CPU: no device is waited for
            if log.due(step) or stopping or done == steps.stop:
                state.check_health()
            log.step(step, step // plan.steps_per_epoch, learning_rate_of(step), metrics, waited)
            due = stopping or done == steps.stop or run.checkpoints.due(done)
            if due and run.world.rank == 0 and state.is_healthy():
                log.say(f"saved {run.checkpoints.save(done, state.state_dict() | content)}")
            if stopping:
                log.say(f"stopped on request after step {done}; continue with --resume auto")
                return done
    return steps.stop
