"""The trunk is torchvision's to the last name and bit; the decoder turns each feature into its square of pixels."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from models.trunk import masked_frequency_model, resnet
from utils.errors import UserError


def images(height=64, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (64, 96)])
def test_predicts_an_image_of_the_inputs_size(channels, height, width):
    model = masked_frequency_model("resnet18", channels)
    assert model(images(height, width)).shape == (2, channels, height, width)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_shuffle_layout(channels):
    """Pixel (32 i + a, 32 j + b) of channel c is the convolution's channel 1024 c + 32 a + b at (i, j)."""
    decoder = masked_frequency_model("resnet18", channels).decoder
    features = torch.randn(2, 512, 2, 3, generator=torch.Generator().manual_seed(1))
    convolution = next(module for module in decoder.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        output = decoder(features).numpy()
        flat = F.conv2d(features, convolution.weight, convolution.bias).numpy()
    assert flat.shape == (2, channels * 1024, 2, 3)
    i, j, a, b = np.ogrid[0:2, 0:3, 0:32, 0:32]
    for c in range(channels):
        np.testing.assert_array_equal(
            output[:, c][:, 32 * i + a, 32 * j + b], flat[:, 1024 * c + 32 * a + b, i, j], strict=True
        )


def last_batch_norms(model):
    """The last BatchNorm of each block, and all others."""
    blocks = [block for n in range(1, 5) for block in getattr(model, f"layer{n}")]
    last = [[m for m in block.children() if isinstance(m, nn.BatchNorm2d)][-1] for block in blocks]
    others = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not any(m is one for one in last)]
    return last, others


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
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
    assert "vgg" not in str(caught.value).partition("ResNet")[2]
