"""Many tensors as one, so that what is done to all of them takes a GPU a few launches instead of one or two each.

A ResNet-50 has 161 weights and 159 buffers. Most are small, and a launch costs the CPU more time than the GPU needs
for the work.
"""

from collections.abc import Iterable

import torch


def by_type(tensors: Iterable[torch.Tensor]) -> dict[torch.dtype, list[torch.Tensor]]:
    """The tensors of each type, in their order."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups


def lines(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor as a line (N,), a view in the order of its memory; the tensors must have no gaps."""
    views = []
    for tensor in tensors:
        if tensor.dim() != 1:
            tensor = tensor.detach().as_strided((tensor.numel(),), (1,))
        views.append(tensor)
    return views


@torch.no_grad()
def gathered(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A copy of tensors of one type as one line, each in the order of its memory."""
    return torch.cat(lines(tensors))


@torch.no_grad()
def scatter(line: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Write a line, as `gathered` made it, back into the tensors."""
    torch._foreach_copy_(lines(tensors), pieces_of(line, tensors))


def pieces_of(line: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The part of a line that belongs to each of the tensors, in one dimension."""
    return list(line.split([tensor.numel() for tensor in tensors]))


def as_line(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The line of which tensors of one type are views, one after the other: to change it is to change them.

    If they are not yet, or no longer, as after a deep copy, they become so; their shapes, layouts and numbers stay.
    """
    storage = tensors[0].untyped_storage()
    address, offset = storage.data_ptr(), 0
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != address or tensor.storage_offset() != offset:
            return join(tensors)
        offset += tensor.numel()
    if storage.nbytes() != offset * tensors[0].element_size():
        return join(tensors)
    return tensors[0].detach().as_strided((offset,), (1,))


def join(tensors: list[torch.Tensor]) -> torch.Tensor:
    line = gathered(tensors)
    for tensor, piece in zip(tensors, pieces_of(line, tensors), strict=True):
        tensor.data = piece.as_strided(tensor.shape, tensor.stride())
    return line
