"""Files of weights as other projects write them, and what our reader says of them."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from models.trunk import make_trunk
from models.weights import LoadedWeights, load_from_file
from utils.distributed import World

ALONE = World(0, 1, 1, torch.device("cpu"))


def load(
    network: nn.Module, path: str | Path, name: str = "resnet18", use_ema: bool = False,
    classes: list[str] | None = None,
) -> LoadedWeights:  # fmt: skip
    return load_from_file(network, name, str(path), use_ema, ALONE, classes)


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


def as_timm(state: dict, folder: Path, ema_state: dict | None = None, **more) -> Path:
    """A file by timm's CheckpointSaver itself, as its train.py saves: with the arguments, and a scaler."""
    model = filled_resnet18(state)
    average = None
    if ema_state is not None:
        average = timm.utils.ModelEmaV3(filled_resnet18(ema_state))
    args = argparse.Namespace(model="resnet18", mean=None, std=None, lr=5e-3, amp=True, use_multi_epochs_loader=False)
    saver = timm.utils.CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), args, average,
        amp_scaler=timm.utils.NativeScaler("cpu"), checkpoint_dir=str(folder), recovery_dir=str(folder),
    )  # fmt: skip
    saver.save_checkpoint(epoch=3, metric=71.5)
    return folder / "last.pth.tar"


def filled_resnet18(state: dict) -> nn.Module:
    model = torchvision.models.resnet18(num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    return model


def as_torchvision(state: dict, ema_state: dict | None = None) -> dict:
    """What torchvision's references/classification/train.py saves."""
    optimizer = torch.optim.SGD(filled_resnet18(state).parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])  # holds a Counter
    args = argparse.Namespace(model="resnet18", lr=0.5, val_resize_size=232, weights=None, backend="PIL", use_v2=False)
    content = {
        "model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 599,
        "args": args,
    }  # fmt: skip
    if ema_state is not None:
        average = torch.optim.swa_utils.AveragedModel(filled_resnet18(ema_state), use_buffers=True)
        content["model_ema"] = average.state_dict()
    return content
