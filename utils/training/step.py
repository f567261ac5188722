"""One optimizer step, shared by pretraining and finetuning, and the state it works on.

Nothing here waits for the device: a number that is not finite masks its own update out, and is reported later.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from utils.distributed import World
from utils.training.evaluation import in_evaluation

OVERFLOWS_IN_A_ROW = 20  # of float16, whose scaler halves its scale after each: more than from 65536 down to 1
Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (sum, count), both scalars on the device


def adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, weight_decay_on: str
) -> torch.optim.AdamW:
    """Fused AdamW, whose update can be masked on the device (`found_inf`).

    Args:
        weight_decay_on: "all" parameters (public code A), or "matrices": none on biases and other 1-D parameters.
    """
    decayed = [p for p in model.parameters() if weight_decay_on == "all" or p.dim() > 1]
    spared = [p for p in model.parameters() if weight_decay_on != "all" and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True)


class TrainingState:
    """Everything a step changes: model, optimizer, float16's scaler, and the average of the weights if there is one.

    `replica` is `model` behind DistributedDataParallel where there are several ranks. `health` counts, on the device,
    steps that were not finite: in a row now, the first of those, most in a row, the first of those, in all.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, dtype: torch.dtype,
        clip_grad_norm: float | None = None, ema_decay: float | None = None,
    ):  # fmt: skip
        device = next(model.parameters()).device
        self.model = self.replica = model
        if world.size > 1:
            # Running statistics stay each rank's own: rank 0's are the model's, copied once before an evaluation.
            self.replica = DistributedDataParallel(
                model, device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False, gradient_as_bucket_view=True,
            )  # fmt: skip
            settle_buckets(self.replica, next(model.parameters()))
        self.optimizer, self.dtype, self.ema_decay = optimizer, dtype, ema_decay
        self.clip_grad_norm = clip_grad_norm or float("inf")
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.average = AveragedModel(model) if ema_decay else None
        self.health = torch.zeros(5, dtype=torch.int64, device=device)

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "health": self.health,
        }

    def load_state_dict(self, saved: dict) -> None:
        """Take over weights, moments, scale and average; settings such as weight decay stay this run's."""
        self.model.load_state_dict(saved["model"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        for parameter, moments in self.optimizer.state.items():  # the fused update wants the parameter's memory layout
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
        if saved["scaler"]:  # empty after a run in another precision
            self.scaler.load_state_dict(saved["scaler"])
        if self.average and saved["ema"]:
            self.average.load_state_dict(saved["ema"])
        self.health.copy_(saved.get("health", self.health))

    def first_bad_step(self) -> int | None:
        """Waits for the device. The first step not finite, if any but a few float16 overflows in a row were."""
        _, _, in_a_row, first, _ = self.health.tolist()
        return first if in_a_row > (OVERFLOWS_IN_A_ROW if self.scaler.is_enabled() else 0) else None


def settle_buckets(replica: DistributedDataParallel, like: torch.Tensor) -> None:
    """Have DDP regroup its gradients now, as it does after its first backward pass, on an image that changes nothing.

    Else a resumed run would sum its first gradients in another order than one that went on; three ranks show it.
    """
    with in_evaluation(replica):
        replica(torch.zeros(1, 3, 64, 64, dtype=like.dtype, device=like.device)).sum().backward()
    replica.zero_grad(set_to_none=True)


def training_step(
    state: TrainingState, step: int, learning_rate: float, micro_batches: list,
    loss_of: Callable[..., tuple[torch.Tensor, Metrics]],
) -> Metrics:  # fmt: skip
    """One update from this rank's micro-batches; the gradient is the mean over all ranks' micro-batches.

    Args:
        micro_batches: on the device, each handed to `loss_of(replica, step, turn, *micro_batch)`, which returns the
            mean loss of the micro-batch and further metrics to log.
    Returns: sums and counts of `loss`, the further metrics and `grad_norm`, still on the device.
    """
    totals: Metrics = {}
    before = [buffer.clone() for buffer in state.model.buffers()]  # BatchNorm's statistics
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
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.found_inf = bad.float()  # where it is 1, the fused optimizer leaves weights and moments alone
    state.optimizer.step()
    state.scaler.update()
    for buffer, old in zip(state.model.buffers(), before, strict=True):
        torch.where(bad, old, buffer, out=buffer)
    if state.average:
        update_average(state, bad)
    note_health(state, step, bad)
    totals["grad_norm"] = (grad_norm, torch.ones_like(grad_norm))
    if state.scaler.is_enabled():
        totals["skipped_steps"] = (state.health[4], torch.ones_like(state.health[4]))
    return totals


@torch.no_grad()
def update_average(state: TrainingState, bad: torch.Tensor) -> None:
    """The average moves towards the weights unless `bad`; the first good step's start it; buffers are copied."""
    started = (state.average.n_averaged > 0).double()
    share = (~bad).double() * (1 - state.ema_decay * started)
    state.average.n_averaged += ~bad
    for average, now in zip(state.average.module.parameters(), state.model.parameters(), strict=True):
        average.lerp_(now, share.to(now.dtype))
    for average, now in zip(state.average.module.buffers(), state.model.buffers(), strict=True):
        average.copy_(now)


def note_health(state: TrainingState, step: int, bad: torch.Tensor) -> None:
    """Count a step that was not finite (`bad`: a bool on the device, which is not read)."""
    in_a_row, start, most, first, in_all = state.health.unbind()
    start = torch.where(bad & (in_a_row == 0), step, start)
    in_a_row = (in_a_row + 1) * bad
    first = torch.where(in_a_row > most, start, first)
    state.health = torch.stack([in_a_row, start, torch.maximum(most, in_a_row), first, in_all + bad])
