"""Files of weights as other projects write them, and what our reader says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.trunk import make_trunk
from models.weights import LoadedWeights, load_from_file
from utils.distributed import World

ALONE = World(0, 1, 1, torch.device("cpu"))


def load(network: nn.Module, path: str | Path, name: str = "resnet18", use_ema: bool = False) -> LoadedWeights:
    return load_from_file(network, name, str(path), use_ema, ALONE)


def classifier(name: str, num_classes: int = 1000) -> nn.Module:
    return make_trunk(name, num_classes).classifier


def lively(network: nn.Module) -> nn.Module:
    """Running statistics unlike a fresh network's, so that a lost buffer shows."""
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.add_(0.1 * torch.rand_like(buffer))
    return network.eval()


@dataclass(frozen=True)
class Counts:
    """Tensors that a report counts."""

    matched: int
    left_over: int  # of the file
    new: int  # of the model


def counts(report: str) -> Counts:
    numbers = re.search(r"(\d+) tensors matched, (\d+)\b.* of the file left over, (\d+)\b.* of the model stay", report)
    assert numbers, report
    return Counts(*map(int, numbers.groups()))
