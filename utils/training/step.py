"""One optimizer step, shared by pretraining and finetuning, and the state it works on.

A step does not wait for the device, but for the first one of an optimizer that is not a fused Adam: a step whose
numbers are not finite undoes itself, and is reported later.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from utils.distributed import World
from utils.precision import without_algorithm_search
from utils.seeding import keyed_torch
from utils.training.average import AverageRule, update_average
from utils.training.buffers import KeptBuffers, batches_counted_at_once
from utils.training.compiling import compiled
from utils.training.evaluation import in_evaluation
from utils.training.low_precision import weights_cast_together

OVERFLOWS_IN_A_ROW = 20  # of float16, whose scaler halves its scale after each: more than from 65536 down to 1
MICRO_BATCH_PURPOSE = "mixing"  # named after mixup, its first use; another name would change every finetuning
Metrics = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> (sum, count), both scalars on the device
LossFunction = Callable[..., tuple[torch.Tensor, Metrics]]  # (network, *micro_batch) -> mean loss, further metrics


class Task(Protocol):
    """What can be trained: models.mfm.MaskedFrequencyModelling, models.classifier.Classification."""

    def draw(self, epoch: int, index: int, used_index: int) -> bool | int | float:
        """What the loss needs besides an image, in a loader worker; `used_index` may replace an unreadable image."""

    def loss(self, network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Images (B, 3, S, S) uint8 on the device, what was drawn for them (B,) -> mean loss, metrics to log."""


class BadSteps(NamedTuple):
    """Counts of steps that were not finite: scalars int64 on the device, in the order that a checkpoint has them."""

    in_a_row: torch.Tensor  # up to now
    row_start: torch.Tensor  # the first step of that row
    longest_row: torch.Tensor
    longest_row_start: torch.Tensor
    total: torch.Tensor

    @classmethod
    def none(cls, device: torch.device) -> "BadSteps":
        return cls(*torch.zeros(5, dtype=torch.int64, device=device))

    def count(self, step: int, bad: torch.Tensor) -> "BadSteps":
        """With one step more; `bad`, a bool on the device, is not read."""
        row_start = torch.where(bad & (self.in_a_row == 0), step, self.row_start)
        in_a_row = (self.in_a_row + 1) * bad
        longest_row_start = torch.where(in_a_row > self.longest_row, row_start, self.longest_row_start)
        longest_row = torch.maximum(self.longest_row, in_a_row)
        return BadSteps(in_a_row, row_start, longest_row, longest_row_start, self.total + bad)


class TrainingState:
    """Everything a step changes: model, optimizer, float16's scaler, and the average of the weights if there is one.

    Args:
        model: on its device. `replica` is what a step runs: the same behind DistributedDataParallel where there are
            several ranks, and compiled if that is asked for. Whatever else needs the model takes it bare.
        seed: of the random numbers that are drawn in a forward pass.
        image_size: side of an image that the model takes, in pixels.
        clip_grad_norm: largest gradient norm of a step.
        average_rule: of the average of the weights; None: there is none.
        compile_with: backend of torch.compile; None: the replica is not compiled.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, dtype: torch.dtype,
        seed: int = 0, image_size: int = 64, clip_grad_norm: float | None = None,
        average_rule: AverageRule | None = None, compile_with: str | None = None,
    ):  # fmt: skip
        self.device = next(model.parameters()).device
        self.model = self.replica = model
        self.world, self.optimizer, self.dtype, self.seed = world, optimizer, dtype, seed
        self.exchanges_gradients = world.size > 1
        if self.exchanges_gradients:
            # Running statistics stay each rank's own: rank 0's are the model's, copied once before an evaluation.
            self.replica = DistributedDataParallel(
                model, device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False, gradient_as_bucket_view=True,
            )  # fmt: skip
            warm_up_ddp_buckets(self.replica, image_size)
        self.is_compiled = compile_with is not None
        if compile_with is not None:
            self.replica = compiled(self.replica, compile_with)
        self.clip_grad_norm = clip_grad_norm
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.average_rule = average_rule
        self.average = None if average_rule is None else AveragedModel(model, device=self.device)
        self.bad_steps = BadSteps.none(self.device)
        self.has_updated = False  # the optimizer, in this process

    def state_dict(self) -> dict:
        average = None
        if self.average is not None:  # copied, since in a file no tensor should share memory with another one
            average = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": average,
            "health": torch.stack(self.bad_steps),
        }

    def load_state_dict(self, saved: dict) -> None:
        """Take over weights, moments, scale and average; settings such as weight decay stay this run's."""
        self.model.load_state_dict(saved["model"])
        load_optimizer(self.optimizer, saved["optimizer"])
        if saved["scaler"]:  # empty after a run in another precision
            self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None and saved["ema"]:
            self.average.load_state_dict(saved["ema"])
        if "health" in saved:
            self.bad_steps = BadSteps(*saved["health"].to(self.device))

    def first_bad_step(self) -> int | None:
        """Waits for the device. The first step not finite, if any but a few float16 overflows in a row were."""
        allowed = OVERFLOWS_IN_A_ROW if self.scaler.is_enabled() else 0
        length, start = torch.stack([self.bad_steps.longest_row, self.bad_steps.longest_row_start]).tolist()
        return start if length > allowed else None


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Take over a saved optimizer's state, whatever its names; the settings that it was made with stay."""
    settings = []
    for group in optimizer.param_groups:
        settings.append({name: value for name, value in group.items() if name != "params"})
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # Fused updates take for granted that moments have the parameter's memory layout.
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def warm_up_ddp_buckets(replica: DistributedDataParallel, image_size: int) -> None:
    """DDP rebuilds its gradient buckets after the first backward pass. Have it do so on a black image.

    So a resumed run sums its gradients in the same order as one that was never interrupted; from three ranks on the
    order shows.
    """
    weight = next(replica.parameters())
    with in_evaluation(replica), without_algorithm_search():
        image = torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
        replica(image).sum().backward()
    replica.zero_grad(set_to_none=True)


def training_step(
    state: TrainingState, step: int, learning_rate: float, micro_batches: Sequence[Sequence[torch.Tensor]],
    loss_of: LossFunction,
) -> Metrics:  # fmt: skip
    """One update from this rank's micro-batches; the gradient is the mean over all ranks' micro-batches.

    Args:
        step: number of the step, counted from 0.
        learning_rate: of every group of parameters, or of those without a scale (utils/training/layer_decay.py).
        micro_batches: on the device, each handed to `loss_of(replica, *micro_batch)`.
        loss_of: returns the mean loss of the micro-batch and further metrics to log. Whatever is drawn in it, on the
            CPU or the device, is keyed by (seed, step, number of the micro-batch within the global batch).
    Returns: sums and counts of `loss`, the further metrics and `grad_norm`, still on the device.
    """
    metrics: Metrics = {}
    buffers_before = KeptBuffers(state.model)
    state.optimizer.zero_grad(set_to_none=True)
    with batches_counted_at_once(state.model, len(micro_batches)):
        for micro_step in range(len(micro_batches)):
            loss, further_metrics = forward_and_backward(state, step, micro_step, micro_batches, loss_of)
            add_metrics(metrics, {"loss": (loss, torch.ones_like(loss)), **further_metrics})

    state.scaler.unscale_(state.optimizer)
    grad_norm = clipped_grad_norm(state)
    bad = ~grad_norm.isfinite()
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_scale", 1.0)
    guarded_update(state, bad)
    state.scaler.update()
    buffers_before.put_back(bad)
    if state.average is not None:
        update_average(state.average, state.average_rule, state.model, step, bad)
    state.bad_steps = state.bad_steps.count(step, bad)
    metrics["grad_norm"] = (grad_norm, torch.ones_like(grad_norm))
    if state.scaler.is_enabled():
        metrics["skipped_steps"] = (state.bad_steps.total, torch.ones_like(state.bad_steps.total))
    return metrics


def forward_and_backward(
    state: TrainingState, step: int, micro_step: int, micro_batches: Sequence[Sequence[torch.Tensor]],
    loss_of: LossFunction,
) -> tuple[torch.Tensor, Metrics]:  # fmt: skip
    """Add a micro-batch's share to the gradients; the last one of a step also exchanges them between the ranks."""
    number = state.world.rank + micro_step * state.world.size
    with contextlib.ExitStack() as stack:
        stack.enter_context(keyed_torch(state.seed, MICRO_BATCH_PURPOSE, step, number, device=state.device))
        if state.exchanges_gradients and micro_step < len(micro_batches) - 1:
            stack.enter_context(state.replica.no_sync())
        with low_precision(state):
            loss, further_metrics = loss_of(state.replica, *micro_batches[micro_step])
        # A loss that is not finite makes its gradient so, and with it every rank's: all ranks undo the step alike.
        gradient_of_loss = (1 + 0 * loss.detach()) / len(micro_batches)
        state.scaler.scale(loss).backward(gradient_of_loss)
    return loss.detach(), further_metrics


@contextlib.contextmanager
def low_precision(state: TrainingState) -> Iterator[None]:
    """Autocast to the state's format; nothing where that is float32."""
    with contextlib.ExitStack() as stack:
        if state.dtype != torch.float32:
            stack.enter_context(torch.autocast(state.device.type, state.dtype))
            if not state.is_compiled:  # in a graph the casts are part of what uses the weights
                stack.enter_context(weights_cast_together(state.model, state.dtype))
        yield


def clipped_grad_norm(state: TrainingState) -> torch.Tensor:
    """The norm of all gradients together, which are scaled down to state.clip_grad_norm if it is larger."""
    parameters = list(state.model.parameters())
    if state.clip_grad_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, state.clip_grad_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def add_metrics(totals: Metrics, metrics: Metrics) -> None:
    for name, (total, count) in metrics.items():
        if name in totals:
            sum_before, count_before = totals[name]
            total, count = sum_before + total, count_before + count
        totals[name] = total, count


@torch.no_grad()
def guarded_update(state: TrainingState, bad: torch.Tensor) -> None:
    """The optimizer's update, without effect where `bad`, a bool on the device, is true.

    A fused Adam leaves weights and moments alone by itself where `found_inf` is 1. Around any other optimizer, the
    weights and the tensors in its state are copied before and put back, which costs two passes over them. What it
    keeps elsewhere does advance: Python numbers, and on a GPU the counts of steps that torch keeps on the CPU.
    """
    optimizer = state.optimizer
    if masks_its_update(optimizer):
        optimizer.found_inf = bad.float()
        optimizer.step()
        return
    if not state.has_updated:
        # The first update may make the moments, so there is nothing to put back yet: here alone the flag is read.
        if not bad.item():
            optimizer.step()
            state.has_updated = True
        return
    before = {key: tensor.clone() for key, tensor in changed_by(optimizer).items()}
    optimizer.step()
    for key, tensor in changed_by(optimizer).items():
        # A moment that this update has made, of a parameter without gradients so far, starts from zero.
        old = before[key] if key in before else torch.zeros_like(tensor)
        torch.where(bad, old, tensor, out=tensor)


def masks_its_update(optimizer: torch.optim.Optimizer) -> bool:
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return False
    return all(group["fused"] for group in optimizer.param_groups)


def changed_by(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], torch.Tensor]:
    """The weights, and the tensors of the optimizer's state that are on their device, by parameter and name."""
    tensors = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tensors[id(parameter), "weight"] = parameter
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.device == parameter.device:
                    tensors[id(parameter), f"state {name}"] = value
    return tensors
