"""A model's buffers, such as BatchNorm's running statistics, during a step that may have to be undone."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from utils.training.flat import by_type, gathered, lines, scatter

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # SyncBatchNorm insists on counting by itself


class KeptBuffers:
    """The buffers of a model as they are now, to be put back if the step turns out to be bad."""

    def __init__(self, model: nn.Module):
        self.lines = {dtype: lines(tensors) for dtype, tensors in by_type(model.buffers()).items()}
        self.before = {dtype: gathered(tensors) for dtype, tensors in self.lines.items()}

    @torch.no_grad()
    def put_back(self, bad: torch.Tensor) -> None:
        """If `bad`, a bool on the device that is not read, is true."""
        for dtype, tensors in self.lines.items():
            scatter(torch.where(bad, self.before[dtype], gathered(tensors)), tensors)


@contextlib.contextmanager
def batches_counted_at_once(model: nn.Module, batches: int) -> Iterator[None]:
    """BatchNorm's counts of its batches grow by `batches` at the end, and not one by one in each forward pass.

    They take part in nothing but the state dict, and would take a GPU a launch a layer and pass. Inside, a model in
    training mode must be run once for each of the batches.
    """
    norms = []
    for module in model.modules():
        # Without a momentum the running statistics are means over all batches, for which the count is needed.
        if isinstance(module, BATCH_NORMS) and module.training and module.momentum is not None:
            if module.num_batches_tracked is not None:
                norms.append(module)
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm._buffers["num_batches_tracked"] = None  # torch's word for "do not count"
    try:
        yield
    finally:
        for norm, count in zip(norms, counts, strict=True):
            norm._buffers["num_batches_tracked"] = count
    if counts:
        torch._foreach_add_(counts, batches)
