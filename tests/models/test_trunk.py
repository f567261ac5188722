"""The trunk is torchvision's to the last name and bit, and says what it is: stride, width, names."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from models.mfm import masked_frequency_network
from models.trunk import TRUNKS, Trunk, make_trunk, trunk_children
from utils.errors import UserError

LARGE = pytest.param("resnet50", marks=pytest.mark.process)  # seconds together
LARGE_GROUPED = pytest.param("resnext50_32x4d", marks=pytest.mark.process)


def resnet(name, num_classes=1000, zero_init=False):
    return make_trunk(name, num_classes, zero_init_last_batch_norm=zero_init).classifier


def masked_frequency_model(name, channels, zero_init_last_batch_norm=False):
    return masked_frequency_network(make_trunk(name, zero_init_last_batch_norm=zero_init_last_batch_norm), channels)


def images(height=64, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", LARGE, LARGE_GROUPED])
def test_state_dict_is_torchvisions(name):
    ours = resnet(name, num_classes=7).eval()
    theirs = models.get_model(name, weights=None, num_classes=7).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        assert ours(images(32)).shape == (2, 7)
        assert torch.equal(ours(images(32)), theirs(images(32)))


def test_class_number_defaults_to_imagenets():
    assert resnet("resnet18").fc.out_features == 1000


@pytest.mark.parametrize("name", ["resnet18", LARGE])
def test_trunk_features_are_torchvisions(name):
    model, theirs = masked_frequency_model(name, 1), models.get_model(name, weights=None)
    trunk = {key: value for key, value in model.state_dict().items() if not key.startswith("decoder.")}
    missing, unexpected = theirs.load_state_dict(trunk, strict=False)
    assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])
    features = create_feature_extractor(theirs, ["layer4"])
    for training in (True, False):  # in training mode the running statistics move
        model.train(training)
        features.train(training)
        with torch.no_grad():
            torch.testing.assert_close(model[:-1](images()), features(images())["layer4"], rtol=0, atol=0)
    torch.testing.assert_close(model.layer4[-1].bn2.running_var, theirs.layer4[-1].bn2.running_var, rtol=0, atol=0)


def last_batch_norms(model):
    """The last BatchNorm of each block, and all others."""
    blocks = [block for n in range(1, 5) for block in getattr(model, f"layer{n}")]
    last = [[m for m in block.children() if isinstance(m, nn.BatchNorm2d)][-1] for block in blocks]
    others = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not any(m is one for one in last)]
    return last, others


@pytest.mark.parametrize("name", ["resnet18", LARGE])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_of_each_blocks_last_batch_norm(name, zero):
    for model in (resnet(name, 5, zero), masked_frequency_model(name, 1, zero_init_last_batch_norm=zero)):
        last, others = last_batch_norms(model)
        assert len(last) == {"resnet18": 8, "resnet50": 16}[name]
        assert all((norm.weight == (0 if zero else 1)).all() for norm in last)
        assert all((norm.weight == 1).all() for norm in others)


def test_initialisation_follows_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return masked_frequency_model("resnet18", 1).state_dict()

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.0.weight"], other["decoder.0.weight"])
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet19", "ResNet50", "vgg16", "quantized_resnet18", "fcn_resnet50", ""])
def test_unknown_names_are_told_with_the_known_ones(name):
    with pytest.raises(UserError) as caught:
        masked_frequency_model(name, 1)
    assert f"model.name = {name}:" in str(caught.value)
    for known in ("resnet18", "resnet50", "resnet152", "resnext50_32x4d", "wide_resnet50_2"):
        assert known in str(caught.value)
    assert "vgg" not in str(caught.value).partition("there are")[2]


@pytest.mark.parametrize("name", ["resnet18", LARGE, LARGE_GROUPED])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_stride_and_width_are_those_of_the_features(name, height, width):
    trunk = make_trunk(name)
    with torch.no_grad():
        features = trunk.module(images(height, width))
    assert features.shape == (2, trunk.width, height // trunk.stride, width // trunk.stride)


def test_trunk_and_classifier_are_the_same_tensors():
    trunk = make_trunk("resnet18", 3)
    whole = dict(trunk.classifier.named_parameters())
    for name, parameter in trunk.module.named_parameters():
        assert parameter is whole[name]


@pytest.mark.parametrize("name", ["resnet18", LARGE_GROUPED])
def test_children_are_the_first_parts_of_the_tensors_names(name):
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    children = trunk_children(name)
    assert torch.equal(torch.rand(1), expected)  # naming them draws no random number
    assert children == make_trunk(name).children
    assert {key.split(".")[0] for key in make_trunk(name).module.state_dict()} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4",
    }  # fmt: skip
    assert {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"} <= children
    assert not {"fc", "avgpool", "decoder"} & children


def test_another_trunk_is_one_row_of_the_table(monkeypatch):
    """The decoder takes stride and width from it, and its tensors keep their names."""

    def toy(_name, num_classes, **_unused):
        module = nn.Sequential(OrderedDict(patches=nn.Conv2d(3, 5, 8, stride=8)))
        return Trunk(module, stride=8, width=5, classifier=nn.Sequential(module, nn.Linear(5, num_classes)))

    monkeypatch.setitem(TRUNKS, "toy", toy)
    network = masked_frequency_network(make_trunk("toy"), 3)
    assert network(images(24, 40)).shape == (2, 3, 24, 40)
    assert set(network.state_dict()) == {"patches.weight", "patches.bias", "decoder.0.weight", "decoder.0.bias"}
    assert trunk_children("toy") == {"patches"}
