"""Layer-wise learning rates: SparK's groups of a ResNet, and that each group takes its share of every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import FinetuneOptimizerOptions
from models.trunk import make_trunk
from utils.distributed import World
from utils.training.layer_decay import layers_of
from utils.training.optimizer import OPTIMIZERS, make_optimizer
from utils.training.step import TrainingState, training_step

RATE, DECAY = 0.05, 0.6
# How many groups stand between a parameter and the head, by the beginning of its name; SparK's for a ResNet-50.
RESNET50 = {
    "conv1.": 7, "bn1.": 7, "layer1.": 6, "layer2.0.": 5, "layer2.1.": 5, "layer2.2.": 4, "layer2.3.": 4,
    "layer3.0.": 3, "layer3.1.": 3, "layer3.2.": 3, "layer3.3.": 2, "layer3.4.": 2, "layer3.5.": 2, "layer4.": 1,
    "fc.": 0,
}  # fmt: skip
RESNET18 = {"conv1.": 5, "bn1.": 5, "layer1.": 4, "layer2.": 3, "layer3.": 2, "layer4.": 1, "fc.": 0}


class TinyResNet(nn.Module):
    """Of few channels, with a ResNet's names and one block a stage."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        for stage in (1, 2, 3, 4):
            self.add_module(f"layer{stage}", nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def tiny_model():
    torch.manual_seed(0)
    return TinyResNet()


def expected_scale(name, groups):
    [distance] = [distance for beginning, distance in groups.items() if name.startswith(beginning)]
    return DECAY**distance


def options_of(name, learning_rate=RATE, layer_decay=DECAY, weight_decay_on="matrices"):
    return FinetuneOptimizerOptions(
        name=name, learning_rate=learning_rate, layer_decay=layer_decay, weight_decay_on=weight_decay_on
    )


@pytest.mark.parametrize(("name", "groups"), [("resnet50", RESNET50), ("resnet34", None), ("resnet18", RESNET18)])
@pytest.mark.parametrize("drop_path", [0.0, 0.1])
@pytest.mark.parametrize("weight_decay_on", ["all", "matrices"])
def test_every_parameter_is_in_one_group_with_its_share_and_its_weight_decay(name, groups, drop_path, weight_decay_on):
    groups = groups or RESNET50  # a ResNet-34 has as many blocks as a ResNet-50
    with torch.device("meta"):
        model = make_trunk(name, 5, drop_path=drop_path).classifier
    optimizer = make_optimizer(model, options_of("sgd", weight_decay_on=weight_decay_on))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.append(names[id(parameter)])
            assert group["learning_rate_scale"] == pytest.approx(expected_scale(seen[-1], groups))
            decays = weight_decay_on == "all" or parameter.dim() > 1
            assert group["weight_decay"] == (0.05 if decays else 0)
    assert sorted(seen) == sorted(names.values())


@pytest.mark.parametrize(
    ("name", "parts"),
    [("resnet101", [1, 1, 2, 8, 1, 1]), ("resnet152", [1, 1, 2, 9, 1, 1])],  # of stem, four stages and head
)
def test_stages_of_larger_resnets_have_as_many_parts_as_in_spark(name, parts):
    with torch.device("meta"):
        assert len(layers_of(make_trunk(name, 5).classifier)) == sum(parts)


def new_state(options):
    model = tiny_model()
    return TrainingState(model, make_optimizer(model, options), World(0, 1, 1, torch.device("cpu")), torch.float32)


def cross_entropy(network, images, labels):
    return F.cross_entropy(network(images), labels), {}


def take(state, steps, rate=RATE, value=1.0):
    """Training steps on noise; `value` multiplies it, which may be NaN."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = value * torch.randn(4, 3, 8, 8, generator=generator)
        training_step(state, step, rate, [(images, torch.arange(4))], cross_entropy)


def copies(state):
    tensors = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            if value is not None:
                tensors[f"{number}.{name}"] = torch.as_tensor(value).clone()
    return tensors


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_moves_as_the_whole_model_does_at_its_share_of_the_rate(name):
    state = new_state(options_of(name))
    take(state, 1)
    moved = dict(state.model.named_parameters())
    for beginning, distance in RESNET18.items():
        alone = new_state(options_of(name, layer_decay=None))
        take(alone, 1, rate=RATE * DECAY**distance)
        for parameter_name, parameter in alone.model.named_parameters():
            if parameter_name.startswith(beginning):
                torch.testing.assert_close(moved[parameter_name], parameter, rtol=1e-6, atol=1e-9)
    start = dict(tiny_model().named_parameters())
    assert all(not torch.equal(moved[name], start[name]) for name in ("conv1.weight", "layer3.0.bias", "fc.bias"))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_decay_of_1_changes_no_bit(name):
    with_ones, without = new_state(options_of(name, layer_decay=1.0)), new_state(options_of(name, layer_decay=None))
    for state in (with_ones, without):
        take(state, 3)
    for one, other in zip(with_ones.model.state_dict().values(), without.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_without_it_groups_are_those_of_pretraining():
    optimizer = make_optimizer(tiny_model(), options_of("adamw", layer_decay=None))
    assert len(optimizer.param_groups) == 2
    assert all("learning_rate_scale" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(name):
    state = new_state(options_of(name))
    take(state, 2)
    before = copies(state)
    take(state, 1, value=float("nan"))
    after = copies(state)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert state.first_bad_step() is not None
