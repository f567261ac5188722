"""One optimizer step, shared by pretraining and finetuning, and the state it works on.

Nothing here waits for the device: a number that is not finite masks its own update out, and is reported later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from utils.distributed import World
from utils.errors import UserError

OVERFLOWS_IN_A_ROW = 20  # of float16, whose scaler halves its scale after each: more than from 65536 down to 1
Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (sum, count), both scalars on the device


class NonFiniteError(UserError):
    """The loss or its gradient was not a number."""


@dataclass
class TrainingState:
    """Everything a step changes. `replica` is `model` behind DistributedDataParallel where there are several ranks."""

    model: nn.Module
    replica: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    dtype: torch.dtype
    clip_grad_norm: float
    health: torch.Tensor  # (3,) int64: bad steps in a row, first of them, bad steps in all

    @classmethod
    def make(cls, model, optimizer, world: World, dtype: torch.dtype, clip_grad_norm=None, ema_decay=None):
        device = next(model.parameters()).device
        replica = model
        if world.size > 1:
            # Running statistics stay each rank's own: rank 0's are the model's, copied once before an evaluation.
            replica = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False, gradient_as_bucket_view=True,
            )  # fmt: skip
        average = None
        if ema_decay:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
            average.n_averaged = average.n_averaged.cpu()  # torch reads it at each update, which would wait for a GPU
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        health = torch.zeros(3, dtype=torch.int64, device=device)
        return cls(model, replica, optimizer, scaler, average, dtype, clip_grad_norm or float("inf"), health)

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
        }

    def load_state_dict(self, saved: dict) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average:
            self.average.load_state_dict(saved["ema"])

    def is_healthy(self) -> bool:
        """Waits for the device: whether the last step was finite, or one of a few float16 overflows."""
        return int(self.health[0]) <= (OVERFLOWS_IN_A_ROW if self.scaler.is_enabled() else 0)

    def check_health(self) -> None:
        """Waits for the device. Raises: NonFiniteError with the first bad step."""
        if not self.is_healthy():
            bad, first, _ = self.health.tolist()
            raise NonFiniteError(
                f"loss or gradient is not finite from step {first + 1} on ({bad} steps in a row); no weight and "
                "no checkpoint holds a trace of it; try a lower optimizer.learning_rate, optimizer.clip_grad_norm or "
                "train.precision=float32, and go on with --resume auto"
            )


def training_step(
    state: TrainingState,
    step: int,
    learning_rate: float,
    micro_batches: list,
    loss_of: Callable[..., tuple[torch.Tensor, Metrics]],
) -> Metrics:
    """One update from this rank's micro-batches; the gradient is the mean over all ranks' micro-batches.

    Args:
        micro_batches: on the device, each handed to `loss_of(replica, step, turn, *micro_batch)`, which returns the
            mean loss of the micro-batch and further metrics to log.
    Returns: sums and counts of `loss`, the further metrics and `grad_norm`, still on the device.
    """
    totals: Metrics = {}
    statistics = [buffer for buffer in state.model.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]
    state.optimizer.zero_grad(set_to_none=True)
    for turn, micro_batch in enumerate(micro_batches):
        last = turn == len(micro_batches) - 1
        with contextlib.nullcontext() if last or state.replica is state.model else state.replica.no_sync():
            with torch.autocast(state.health.device.type, state.dtype, enabled=state.dtype != torch.float32):
                loss, metrics = loss_of(state.replica, step, turn, *micro_batch)
            # A loss that is not finite makes its gradient so, and with it that of every rank: all skip the step alike.
            poison = 1 + 0 * loss.detach()
            state.scaler.scale(loss * poison / len(micro_batches)).backward()
        for name, (total, count) in {"loss": (loss.detach(), torch.ones_like(loss)), **metrics}.items():
            so_far = totals.get(name, (0, 0))
            totals[name] = (so_far[0] + total, so_far[1] + count)
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), state.clip_grad_norm)
    bad = ~grad_norm.isfinite()
    update(state, learning_rate, bad)
    for buffer, old in zip(statistics, before, strict=True):
        torch.where(bad, old, buffer, out=buffer)
    in_a_row, first, in_all = state.health.unbind()
    first = torch.where(bad & (in_a_row == 0), step, first)
    state.health = torch.stack([(in_a_row + 1) * bad, first, in_all + bad])
    return totals | {"grad_norm": (grad_norm, torch.ones_like(grad_norm))}


def update(state: TrainingState, learning_rate: float, bad: torch.Tensor) -> None:
    """Let the optimizer step unless `bad` (a bool on the device, which is not read)."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = bad.float()  # the fused optimizer leaves weights and moments alone where it is 1
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average:
        state.average.update_parameters(state.model)
