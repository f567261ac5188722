"""The config in a checkpoint is checked as a YAML is, whatever stands in its place."""

from __future__ import annotations

import pytest
import torch

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import from_dict, to_dict
from utils.errors import UserError
from utils.run.reading import checkpoint_config


def repeated_list(times: int) -> list:
    """A list whose members, counted one by one, are 2^times."""
    nested: list = []
    for _ in range(times):
        nested = [nested, nested]
    return nested


ODD = {
    "a list": ([1], "its config is a list"),
    "text": ("x", "its config is a str"),
    "a section that is none": ({"run": 3}, "run in its config must be a section"),
    "a section without a name": ({3: {}}, "a int in its config must be a section"),
    "a key that is no text": ({"run": {(1, 2): 3}}, r"run\.a tuple in its config"),
    "a tensor": ({"data": {"mean": torch.zeros(3)}}, r"data\.mean in its config holds a Tensor"),
    "a dict": ({"run": {"seed": {}}}, r"run\.seed in its config holds a dict"),
    "a list of lists": ({"data": {"mean": [[1.0]]}}, r"data\.mean in its config holds a list"),
    "a repeated list": ({"data": {"mean": repeated_list(60)}}, r"data\.mean in its config holds a list"),
    "a long list": ({"data": {"mean": [0.1] * 2000}}, r"data\.mean in its config is no setting"),
    "wrong type": ({"train": {"batch_size": "8"}}, r"train\.batch_size = 8: must be a whole number"),
    "true for a number": ({"train": {"batch_size": True}}, r"train\.batch_size = true: must be a whole number"),
    "not finite": ({"data": {"mean": [0.1, float("nan"), 0.1]}}, r"data\.mean = .*: must be a finite number"),
    "a huge number": ({"schedule": {"warmup_epochs": 10**400}}, r"schedule\.warmup_epochs = 1000.*must be a number"),
    "out of range": ({"data": {"holdout_fraction": 7.0}}, r"data\.holdout_fraction = 7\.0: must be"),
    "unknown": ({"run": {"sed": 1}}, r"run\.sed = 1: unknown key"),
    "control characters": ({"run": {"a\nerror: b\x1b[2J": 1}}, r"run\.a\\nerror: b\\x1b\[2J = 1: unknown key"),
    "control characters in a value": ({"data": {"interpolation": "a\nb"}}, r"data\.interpolation = a\\nb: must be"),
}


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize("saved, reason", ODD.values(), ids=ODD)
def test_what_no_yaml_could_hold_is_refused_by_name(saved, reason, config_class):
    with pytest.raises(UserError, match=rf"^old\.pt: {reason}") as raised:
        from_dict(config_class, saved, "old.pt")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_many_things_wrong_are_told_in_three_lines():
    saved = {"run": {f"key{number}": number for number in range(500)}}
    with pytest.raises(UserError) as raised:
        from_dict(FinetuneConfig, saved, "old.pt")
    lines = str(raised.value).splitlines()
    assert len(lines) == 3 and lines[2] == "and 498 more"


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
def test_a_checkpoints_own_config_is_read(config_class):
    config = config_class()
    assert checkpoint_config("old.pt", {"config": to_dict(config)}) == config
    for content in ({}, {"config": None}, {"config": [1]}):
        with pytest.raises(UserError, match=r"old\.pt: holds no config"):
            checkpoint_config("old.pt", content)
