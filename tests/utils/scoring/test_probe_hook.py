"""The probe during pretraining sees the layout of an evaluation, and leaves the model in training as it was."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from configs.schema import PretrainConfig
from data.folder import ImageFolder
from models.mfm import network_from_config
from tests.support.helpers import data_set
from utils.config import parse_command_line
from utils.distributed import World
from utils.run.checkpoint import Checkpoints
from utils.run.job import Job
from utils.scoring.probe_hook import NeighbourProbe, images_to_probe

ALONE = World(0, 1, 1, torch.device("cpu"))


@pytest.mark.parametrize("channels_last", [False, None])
def test_the_probe_sees_the_layout_of_an_evaluation_and_the_training_keeps_its_own(channels_last, tmp_path):
    """false stands for null on a GPU, where float32 is faster without it; on a CPU null is on."""
    root = data_set(tmp_path / "images")
    words = ["--data-path", str(root), "model.name=resnet18", "data.train_crop_size=32", "filter.radius=3"]
    option = "null" if channels_last is None else "false"
    words += ["run.probe_every_epochs=1", f"model.channels_last={option}"]
    config = parse_command_line(PretrainConfig, words, "")
    checkpoints = Checkpoints(tmp_path / "checkpoints", **asdict(config.checkpoint))
    job = Job(ALONE, torch.float32, tmp_path, checkpoints, resume=None, workers=0, lock=None)
    model = network_from_config(config).to(memory_format=torch.channels_last)
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    seen = []

    def note_layout(module: nn.Conv2d, _: object) -> None:
        seen.append(module.weight.is_contiguous())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note_layout)
    train = ImageFolder(str(root / "train"))
    log = SimpleNamespace(steps_per_epoch=1, total_steps=1)
    hook = NeighbourProbe(config, job, log, model, images_to_probe(config, job, train))
    row = hook.score()
    assert row["images"] == 9 and seen
    in_both_layouts = 2 * 3  # 1 × 1 kernels, of three shortcuts, for train and for val
    assert seen.count(True) == (len(seen) if channels_last is False else in_both_layouts)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1], name
