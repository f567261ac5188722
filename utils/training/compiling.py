"""train.compile: the network of a step as one graph, by torch.compile."""

import torch
from torch import nn

from utils.errors import UserError, first_line

LEAST_CAPABILITY = (7, 0)  # Triton, which inductor writes GPU code in, has no older one


def check_compile(backend: str | None, device: torch.device) -> None:
    """Try the backend on a small function, so that a job does not end in its first step.

    Raises: UserError if torch has no code for the GPU, or the machine lacks what the backend needs, as a compiler.
    """
    if backend is None:
        return
    given = f"train.compile = {backend}"
    if backend == "inductor" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise UserError(
                f"{given}: needs a GPU of compute capability 7.0 or newer, and {name} has "
                f"{capability[0]}.{capability[1]}; leave train.compile out"
            )
    # From its cache inductor could answer without a compiler.
    options = {"fx_graph_cache": False} if backend == "inductor" else None
    try:
        torch.compile(torch.nn.functional.gelu, backend=backend, options=options)(torch.zeros(64, device=device))
    except Exception as error:  # of many types, most of them private to torch
        raise UserError(
            f"{given}: cannot compile on this machine ({first_line(error)[:100]}); it needs a C++ compiler (g++, or "
            "CXX=…), on a GPU Triton and gcc; install them, or leave train.compile out"
        ) from error


def compiled(network: nn.Module, backend: str) -> nn.Module:
    """The network as a graph, made in the first step; the module itself, its names and its tensors stay as they are.

    One graph serves all steps: their micro-batches are equally large.
    """
    return torch.compile(network, backend=backend, dynamic=False)
