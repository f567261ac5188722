"""Drop path in the trunk: torchvision's names, timm's network, the right share of images, none in evaluation."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from configs.schema import PretrainConfig
from models.mfm import network_from_config
from models.trunk import DropPathBlock, make_trunk
from utils.config import parse_command_line

LARGE = pytest.param("resnet50", marks=pytest.mark.process)  # seconds
LARGE_GROUPED = pytest.param("resnext50_32x4d", marks=pytest.mark.process)
BOTH_KINDS = pytest.mark.parametrize("name", ["resnet18", LARGE, LARGE_GROUPED])


def classifier(name, drop_path, dtype=torch.float64):
    torch.manual_seed(0)
    return make_trunk(name, 7, drop_path=drop_path).classifier.to(dtype)


def images(count=4, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def blocks(network):
    found = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        found += layer
    return found


def outputs_and_gradients(network, seed=5):
    torch.manual_seed(seed)
    out = network(images())
    out.square().mean().backward()
    return out, [parameter.grad for parameter in network.parameters()]


def test_without_drop_path_the_modules_are_torchvisions_own():
    ours, theirs = make_trunk("resnet18").classifier, models.resnet18()
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


@BOTH_KINDS
def test_the_state_dict_and_initial_weights_are_torchvisions(name):
    ours, plain = classifier(name, 0.1), classifier(name, 0.0)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), plain.parameters(), strict=True))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    models.get_model(name, weights=None, num_classes=7).load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_that_drops_nothing_is_torchvisions_to_the_bit(name):
    ours, plain = classifier(name, 1e-300), classifier(name, 0.0)  # so low a rate that it is never drawn
    (out, gradients), (expected, expected_gradients) = (outputs_and_gradients(one) for one in (ours, plain))
    assert torch.equal(out, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["resnet18", LARGE])
def test_outputs_and_gradients_agree_with_timms_where_the_masks_do(name):
    """Both draw a Bernoulli number an image in every block from the second on, in the same order."""
    ours = classifier(name, 0.6)
    theirs = timm.create_model(name, num_classes=7, drop_path_rate=0.6).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    rates = [0.0 if block.drop_path is None else block.drop_path.drop_prob for block in blocks(theirs)]
    assert [block.rate for block in blocks(ours)] == pytest.approx(rates, rel=1e-12)
    (out, gradients), (expected, expected_gradients) = (outputs_and_gradients(one) for one in (ours, theirs))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10 * other.abs().max().item())
    assert not torch.equal(outputs_and_gradients(ours, seed=6)[0], out)


def test_rates_rise_linearly_from_0_in_the_first_block_to_the_last():
    with torch.device("meta"):
        network = make_trunk("resnet50", drop_path=0.05).classifier
    assert [block.rate for block in blocks(network)] == pytest.approx([0.05 * n / 15 for n in range(16)])


class Constant(nn.Module):
    """Adds what does not depend on the input: the residual branch is 1 everywhere."""

    def forward(self, x):
        return torch.zeros_like(x) + 1


def block_with_constant_branch(rate):
    block = models.resnet18().layer1[0]
    for name in ("conv1", "bn1", "conv2", "bn2"):
        setattr(block, name, Constant())
    return DropPathBlock(block, rate)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_share_of_dropped_images_is_the_rate_and_the_others_are_scaled(rate):
    torch.manual_seed(0)
    count = 20000
    out = block_with_constant_branch(rate)(torch.zeros(count, 2, 1, 3, dtype=torch.float64))
    first = out[:, 0, 0, 0]
    assert torch.equal(out, first[:, None, None, None].expand_as(out))  # an image is dropped whole
    dropped = first == 0
    torch.testing.assert_close(first[~dropped], torch.full_like(first[~dropped], 1 / (1 - rate)), rtol=1e-12, atol=0)
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert abs(dropped.double().mean().item() - rate) < 4 * deviation


def test_the_shortcut_stays_where_the_branch_is_dropped():
    torch.manual_seed(0)
    inputs = torch.rand(64, 2, 1, 1, dtype=torch.float64)
    out = block_with_constant_branch(0.5)(inputs)
    added = out - inputs
    assert sorted(added.round(decimals=9).unique().tolist()) == [0, 2]


@BOTH_KINDS
def test_in_evaluation_nothing_is_dropped_or_drawn(name):
    ours, plain = classifier(name, 0.9).eval(), classifier(name, 0.0).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(ours(images()), plain(images()))
    assert torch.equal(torch.get_rng_state(), state)
    ours.train()
    with torch.no_grad():
        ours(images())
    assert not torch.equal(torch.get_rng_state(), state)


def test_the_pretraining_network_has_it_too():
    words = ["model.name=resnet18", "data.train_crop_size=32", "model.drop_path=0.3"]
    config = parse_command_line(PretrainConfig, words, "")
    network = network_from_config(config)
    assert [block.rate for block in blocks(network)] == pytest.approx([0.3 * n / 7 for n in range(8)])
    assert list(network.state_dict())[-1] == "decoder.0.bias" and "layer1.0.conv1.weight" in network.state_dict()
    torch.manual_seed(0)
    first = network(images().float())
    assert not torch.equal(network(images().float()), first)


def test_it_stays_after_the_conversion_to_sync_batch_norm_and_a_copy():
    """The average of the weights is a deep copy; the conversion replaces the BatchNorms by others."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(classifier("resnet18", 0.7, torch.float32))
    assert isinstance(network.layer4[1].bn2, nn.SyncBatchNorm)
    for one in (network, copy.deepcopy(network)):
        assert [block.rate for block in blocks(one)] == pytest.approx([0.7 * n / 7 for n in range(8)])
        assert all(isinstance(block, DropPathBlock) for block in blocks(one))


def test_torch_compile_takes_it_as_one_graph():
    network = classifier("resnet18", 0.5)
    compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)
    expected, _ = outputs_and_gradients(network)
    out, _ = outputs_and_gradients(compiled)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
