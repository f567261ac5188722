"""The method: decoder, crop check, coins, what the network sees, the loss and its metrics, and reconstructions."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import PretrainConfig
from losses.frequency import grayscale
from models.frequency_filter import FrequencyFilter
from models.mfm import MaskedFrequencyModelling, masked_frequency_network, network_from_config
from models.normalize import Normalizer, unit_float
from models.trunk import TRUNKS, Trunk, make_trunk
from tests.support.launch import PRETRAIN, overriding
from utils.config import parse_command_line
from utils.errors import UserError
from utils.pictures import eight_bit, radial_error

CPU = torch.device("cpu")
KNOWN_COINS = [coin == "1" for coin in "100111000010010010000010"]  # of seed 7, two epochs of 12 images


def config_of(*words):
    return parse_command_line(PretrainConfig, overriding(PRETRAIN, *words), "")


def network_of(channels):
    return masked_frequency_network(make_trunk("resnet18"), channels)


def images(height=64, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


# The network.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (64, 96)])
def test_predicts_an_image_of_the_inputs_size(channels, height, width):
    model = network_of(channels)
    assert model(images(height, width)).shape == (2, channels, height, width)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_shuffle_layout(channels):
    """Pixel (32 i + a, 32 j + b) of channel c is the convolution's channel 1024 c + 32 a + b at (i, j)."""
    decoder = network_of(channels).decoder
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


@pytest.mark.parametrize(("target", "channels"), [("gray", 1), ("rgb", 3)])
def test_the_network_predicts_the_channels_of_the_target(target, channels):
    assert network_from_config(config_of(f"loss.target={target}"))(images()).shape == (2, channels, 64, 32)


@pytest.mark.parametrize(
    ("size", "nearest"), [(100, "96 or 128"), (16, "32 or 64"), (225, "224 or 256"), (33, "32 or 64")]
)
def test_a_crop_that_does_not_fit_the_stride_is_refused(size, nearest):
    with pytest.raises(UserError) as caught:
        network_from_config(config_of(f"data.train_crop_size={size}"))
    assert str(caught.value) == (
        f"data.train_crop_size = {size}: must be a multiple of resnet18's stride 32: {nearest}"
    )


def test_the_stride_is_the_trunks_own(monkeypatch):
    def toy(_name, **_unused):
        return Trunk(nn.Sequential(nn.Conv2d(3, 5, 10, stride=10)), stride=10, width=5, classifier=nn.Identity())

    monkeypatch.setitem(TRUNKS, "toy", toy)
    assert network_from_config(config_of("model.name=toy", "data.train_crop_size=50"))(images(50, 50)).shape[-1] == 50
    with pytest.raises(UserError, match="toy's stride 10: 30 or 40"):
        network_from_config(config_of("model.name=toy", "data.train_crop_size=32"))


# The task.


def task_of(*words):
    return MaskedFrequencyModelling.from_config(config_of(*words), CPU)


def test_coins_are_a_function_of_seed_epoch_and_image():
    """Known answers: other coins would make another run of every one that is resumed."""
    task, same, other_seed = (task_of(f"run.seed={seed}", "filter.low_pass_probability=0.3") for seed in (7, 7, 8))
    keys = list(itertools.product(range(2), range(12)))  # (epoch, index)
    coins = [task.draw(epoch, index) for epoch, index in keys]
    assert coins == KNOWN_COINS
    assert coins == [same.draw(epoch, index, 5) for epoch, index in keys]  # whichever image was used in its place
    assert coins != [other_seed.draw(epoch, index) for epoch, index in keys]
    many = [task.draw(0, index) for index in range(1000)]
    assert abs(np.mean(many) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    assert not any(task_of("filter.low_pass_probability=0").draw(0, index) for index in range(50))
    assert all(task_of("filter.low_pass_probability=1").draw(0, index) for index in range(50))


class Recorder:
    """A corruption that notes what it is given, and spoils nothing."""

    kinds = FrequencyFilter.kinds

    def __init__(self):
        self.given = None

    def corrupt(self, given, choices):
        self.given = given
        return given + 1, None


@pytest.mark.parametrize("filter_first", [False, True])
def test_the_corruption_gets_normalised_images_or_pixels(filter_first):
    """CoinCheung/MFM filters what is normalised, the authors' code the pixels."""
    order = "filter_first" if filter_first else "normalize_first"
    words = [f"filter.order={order}", "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.1]"]
    task = dataclasses.replace(task_of(*words), corruption=(recorder := Recorder()))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    clean, corrupted, removed = task.corrupt(pixels, torch.tensor([True, False]))
    assert removed is None
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.1]))
    torch.testing.assert_close(clean, (pixels / 255 - mean) / std)
    if filter_first:
        torch.testing.assert_close(recorder.given, pixels / 255)
        torch.testing.assert_close(corrupted, (pixels / 255 + 1 - mean) / std)
    else:
        torch.testing.assert_close(recorder.given, clean)
        torch.testing.assert_close(corrupted, clean + 1)


@pytest.mark.parametrize("target", ["gray", "rgb"])
def test_the_loss_and_its_metrics_are_those_of_each_image_alone(target):
    task = task_of(f"loss.target={target}")
    network = network_from_config(config_of(f"loss.target={target}")).eval()
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    keep_low = torch.tensor([True, False, False, True, False])
    loss, metrics = task.loss(network, pixels, keep_low)
    alone = torch.stack([task.loss(network, pixels[[n]], keep_low[[n]])[0] for n in range(5)])
    torch.testing.assert_close(loss, alone.mean(), rtol=1e-5, atol=1e-6)
    assert list(metrics) == ["loss_low_pass", "loss_high_pass"]
    for name, is_kind in (("loss_low_pass", keep_low), ("loss_high_pass", ~keep_low)):
        total, count = metrics[name]
        torch.testing.assert_close(total, alone[is_kind].sum(), rtol=1e-5, atol=1e-6)
        assert count == is_kind.sum()
        assert not total.requires_grad
    assert loss.requires_grad


# Reconstructions.


def test_a_network_that_fails_in_a_picture_goes_on_in_training_mode():
    network = network_of(1).train()

    def fail(*_):
        raise RuntimeError("no memory")

    network.decoder.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        task_of().show(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert network.training and network.bn1.training


@pytest.mark.parametrize("order", ["normalize_first", "filter_first"])
@pytest.mark.parametrize("target", ["gray", "rgb"])
def test_reconstructions_show_what_the_training_sees(order, target):
    """Originals in true colours; the filtered image is the network's own input; statistics and generator stay."""
    words = [f"filter.order={order}", f"loss.target={target}", "filter.output=real", "filter.clamp=null"]
    config = config_of(*words, "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.1]")
    task = MaskedFrequencyModelling.from_config(config, CPU)
    torch.manual_seed(0)
    network = network_of(1 if target == "gray" else 3).train()
    inputs = []
    network.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    before, random = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    reconstructions = task.show(network, pixels)
    assert network.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert list(reconstructions) == ["low_pass", "high_pass"]
    normalize = Normalizer(config.data.mean, config.data.std)
    for given, (kind, reconstruction) in zip(list(inputs), reconstructions.items(), strict=True):
        pictures = reconstruction.pictures
        assert torch.equal(eight_bit(pictures["original"]), pixels)
        lift = normalize.mean if (kind, order) == ("high_pass", "filter_first") else 0
        torch.testing.assert_close(pictures["filtered"], given * normalize.std + normalize.mean + lift)
        # Both orders, unclipped, are one linear filter: up to the mean colour, which normalisation moves to 0.
        plain = FrequencyFilter(config.filter.radius)(unit_float(pixels), torch.full((3,), kind == "low_pass"))
        mean = normalize.mean if kind == "high_pass" else 0
        torch.testing.assert_close(pictures["filtered"], plain + mean, atol=1e-5, rtol=0)
        assert pictures["combined"].shape[1] == (1 if target == "gray" else 3)
        with torch.no_grad():
            again = radial_error(network.eval()(given), task.target(normalize(unit_float(pixels))))
        torch.testing.assert_close(reconstruction.radial_error["error"], again["error"])
        network.train()


def test_combined_keeps_the_frequencies_of_the_input():
    task = task_of()  # grey target
    torch.manual_seed(0)
    pixels = (100 + 40 * torch.rand(4, 3, 32, 32)).byte()
    reconstructions = task.show(network_of(1), pixels)
    low_pass, keep_low = FrequencyFilter(task.corruption.radius), torch.ones(4, dtype=torch.bool)
    gray = grayscale(unit_float(pixels))
    low = low_pass(gray, keep_low)
    combined = reconstructions["low_pass"].pictures["combined"]
    torch.testing.assert_close(low_pass(combined, keep_low), low, atol=1e-4, rtol=0)
    combined = reconstructions["high_pass"].pictures["combined"]
    torch.testing.assert_close(combined - low_pass(combined, keep_low), gray - low, atol=1e-4, rtol=0)


@pytest.mark.parametrize("outer_radius", [None, 9.0])
def test_the_filter_says_which_bins_it_removes(outer_radius):
    frequency_filter = FrequencyFilter(4.0, outer_radius)
    noise = torch.randn(1, 1, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in FrequencyFilter.kinds:
        filtered, removed = frequency_filter.corrupt(noise, torch.tensor([frequency_filter.example(kind)]))
        spectrum = torch.fft.rfft2(filtered)[0, 0]
        torch.testing.assert_close(spectrum, torch.fft.rfft2(noise)[0, 0] * ~removed[0], atol=1e-9, rtol=0)
        assert frequency_filter.removes_mean(kind) == removed[0, 0, 0]
