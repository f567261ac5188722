"""Constants of a task are made with it: a step copies nothing from the host to the device but its batch."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import FinetuneConfig, PretrainConfig
from models.classifier import Classification
from models.mfm import MaskedFrequencyModelling
from utils.config import parse_command_line

META = torch.device("meta")  # stands for a GPU: it has shapes and no numbers


class CopiesFromHost(TorchDispatchMode):
    """Notes every operation that makes a tensor on the device of one on the CPU."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if operation == torch.ops.aten.copy_.default else args[0]
            if isinstance(source, torch.Tensor) and source.device.type == "cpu" and result.device.type == "meta":
                self.copies.append((operation, tuple(result.shape)))
        return result


@pytest.fixture
def without_autocast(monkeypatch):
    """Torch has none for this device."""
    monkeypatch.setattr(torch, "autocast", lambda *_arguments, **_options: contextlib.nullcontext())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["loss.reduction=batch", "loss.target=rgb", "filter.order=filter_first"],
        ["filter.outer_radius=40", "loss.outer_radius=30"],
        ["loss.scope=all", "loss.patch_factor=2", "loss.average_spectrum=true"],
        ["loss.focal_alpha=1"],
    ],
    ids=" ".join,
)
def test_a_pretraining_step_copies_no_constant(words, without_autocast):
    config = parse_command_line(PretrainConfig, ["data.train_crop_size=96", *words], "")
    task = MaskedFrequencyModelling.from_config(config, META)
    network = nn.Conv2d(3, 3 if config.loss.target == "rgb" else 1, 1, device=META)
    images = torch.zeros(4, 3, 96, 96, dtype=torch.uint8, device=META)
    choices = torch.zeros(4, dtype=torch.bool, device=META)
    with CopiesFromHost() as mode:
        loss, _ = task.loss(network, images, choices)
        loss.backward()
    assert mode.copies == []
    assert network.weight.grad is not None


def test_a_copy_would_be_noticed(without_autocast):
    """Other images than those of training have constants of their own, made when they come."""
    config = parse_command_line(PretrainConfig, ["data.train_crop_size=96"], "")
    task = MaskedFrequencyModelling.from_config(config, META)
    images = torch.zeros(4, 3, 104, 104, dtype=torch.uint8, device=META)
    with CopiesFromHost() as mode:
        task.corrupt(images, torch.zeros(4, dtype=torch.bool, device=META))
    assert len(mode.copies) > 0


def test_a_finetuning_step_copies_no_constant(without_autocast):
    config = parse_command_line(FinetuneConfig, ["loss.multi_label=true"], "")
    task = Classification.from_config(config, np.zeros(4, dtype=np.int64), 10, META)
    network = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()).to(META)
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=META)
    with CopiesFromHost() as mode:
        loss, _ = task.loss(network, images, torch.zeros(4, dtype=torch.int64, device=META))
        loss.backward()
    assert mode.copies == []
