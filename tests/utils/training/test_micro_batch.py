"""Micro-batches of one image: refused where BatchNorm or mixing needs two."""

import pytest
import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from utils.config import with_value
from utils.errors import UserError
from utils.training.micro_batch import check_micro_batch, fewest_values


def config(config_class=FinetuneConfig, images=1, size=64, **data):
    values = {"train.images_per_device": images, "data.train_crop_size": size}
    values |= {"data.mixup_alpha": 0.0, "data.cutmix_alpha": 0.0} if config_class is FinetuneConfig else {}
    values |= {f"data.{key}": value for key, value in data.items()}
    made = config_class()
    for key, value in values.items():
        made = with_value(made, key, value)
    return made


RESNET = make_trunk("resnet18").classifier


@pytest.mark.parametrize("size", [8, 32, 33, 40, 64, 65, 96])
def test_the_values_of_a_channel_are_those_of_the_last_stage(size):
    """Each of five halvings rounds up. torch itself refuses exactly where there is one."""
    side = -(-size // 32)
    assert fewest_values(RESNET, size) == side**2
    RESNET.train()
    if side == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            RESNET(torch.zeros(1, 3, size, size))
        with pytest.raises(UserError, match=rf"images_per_device = 1 .*BatchNorm needs two .* of {size} pixels"):
            check_micro_batch(config(size=size), RESNET, 1)
    else:
        RESNET(torch.zeros(1, 3, size, size))
        check_micro_batch(config(size=size), RESNET, 1)
    check_micro_batch(config(size=size, images=2), RESNET, 1)


def test_a_pretraining_network_is_looked_at_alike():
    network = masked_frequency_network(make_trunk("resnet18"), 1)
    with pytest.raises(UserError, match="BatchNorm needs two"):
        check_micro_batch(config(PretrainConfig, size=32), network, 1)
    check_micro_batch(config(PretrainConfig, size=64), network, 1)


def test_batch_norm_over_several_ranks_has_more_values():
    synchronised = with_value(config(size=32), "model.sync_batch_norm", True)
    check_micro_batch(synchronised, RESNET, 2)
    with pytest.raises(UserError, match="BatchNorm needs two"):
        check_micro_batch(synchronised, RESNET, 1)


@pytest.mark.parametrize("key", ["mixup_alpha", "cutmix_alpha"])
def test_an_image_alone_cannot_be_mixed(key):
    with pytest.raises(UserError, match=rf"data\.{key} = 0\.3: an image alone .*data\.{key}=0"):
        check_micro_batch(config(**{key: 0.3}), RESNET, 1)
    check_micro_batch(config(images=2, **{key: 0.3}), RESNET, 1)


def test_looking_changes_nothing():
    before = {name: tensor.clone() for name, tensor in RESNET.state_dict().items()}
    random = torch.get_rng_state()
    RESNET.train()
    fewest_values(RESNET, 64)
    assert RESNET.training and torch.equal(torch.get_rng_state(), random)
    for name, tensor in RESNET.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.device.type == "cpu"
    assert all(not module._forward_pre_hooks for module in RESNET.modules())


def test_a_model_without_batch_norm_may_have_one_image():
    assert fewest_values(nn.Conv2d(3, 4, 3), 32) == float("inf")
    check_micro_batch(config(PretrainConfig, size=32), nn.Conv2d(3, 4, 3), 1)
