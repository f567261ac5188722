"""Which parameters weight decay reaches, and by how much."""

import dataclasses

import pytest
import torch
from torch import nn

from configs.schema import OptimizerOptions
from models.trunk import make_trunk
from utils.training.optimizer import OPTIMIZERS, make_optimizer


def adamw(model, learning_rate, betas, weight_decay, weight_decay_on):
    return make_optimizer(model, OptimizerOptions(
        learning_rate=learning_rate, betas=betas, weight_decay=weight_decay, weight_decay_on=weight_decay_on
    ))  # fmt: skip


def groups_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


def test_all_parameters_decay_in_one_group():
    model = make_trunk("resnet18", 5).classifier
    optimizer = adamw(model, 1e-3, (0.9, 0.95), 0.05, "all")
    assert groups_by_name(model, optimizer) == [{name for name, _ in model.named_parameters()}]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05]


def test_biases_and_batch_norms_are_spared():
    model = make_trunk("resnet18", 5).classifier
    optimizer = adamw(model, 1e-3, (0.9, 0.95), 0.05, "matrices")
    decayed, spared = groups_by_name(model, optimizer)
    expected = {name for name, _ in model.named_parameters() if name.endswith(".bias") or "bn" in name}
    expected |= {f"layer{n}.0.downsample.1.weight" for n in (2, 3, 4)}  # BatchNorms too
    assert spared == expected
    assert decayed == {name for name, _ in model.named_parameters()} - expected
    assert {"fc.weight", "conv1.weight"} <= decayed
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


@pytest.mark.parametrize("weight_decay_on", ["all", "matrices"])
def test_a_step_without_gradient_only_decays(weight_decay_on):
    """AdamW's decay is decoupled: p ← p (1 − lr · weight_decay), whatever the moments."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = adamw(model, 0.1, (0.9, 0.999), 0.5, weight_decay_on)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        spared = weight_decay_on == "matrices" and parameter.dim() == 1
        torch.testing.assert_close(parameter.detach(), old if spared else old * 0.95, rtol=1e-12, atol=0)


def test_settings_arrive():
    optimizer = adamw(nn.Linear(2, 2), 3e-4, (0.8, 0.95), 0.1, "all")
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (3e-4, (0.8, 0.95), 0.1, 1e-8)


def test_a_model_of_biases_has_one_group():
    assert len(adamw(nn.BatchNorm1d(3), 1e-3, (0.9, 0.999), 0.05, "matrices").param_groups) == 1


def test_an_update_agrees_with_adamw_written_out():
    model = nn.Linear(3, 2).double()
    optimizer = adamw(model, 1e-2, (0.7, 0.9), 0.05, "matrices")
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            first, second = (0.7 * moments[name][0] + 0.3 * gradient, 0.9 * moments[name][1] + 0.1 * gradient**2)
            moments[name] = first, second
            direction = (first / (1 - 0.7**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
            decay = 0.05 if name == "weight" else 0.0
            expected[name] = expected[name] * (1 - 1e-2 * decay) - 1e-2 * direction
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=0)


def test_every_name_in_the_schema_is_in_the_table():
    (field,) = (field for field in dataclasses.fields(OptimizerOptions) if field.name == "name")
    assert set(field.metadata["choices"]) == OPTIMIZERS.keys()


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_update_agrees_with_sgd_written_out(nesterov):
    """Weight decay is part of the gradient; Nesterov's step, the default, looks ahead along the momentum."""
    assert OptimizerOptions().nesterov
    model = nn.Linear(3, 2).double()
    options = OptimizerOptions(
        name="sgd", learning_rate=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.05, weight_decay_on="matrices"
    )
    optimizer = make_optimizer(model, options)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            decay = 0.05 if name == "weight" else 0.0
            gradient = parameter.grad + decay * expected[name]
            momentum[name] = 0.8 * momentum[name] + gradient
            direction = gradient + 0.8 * momentum[name] if nesterov else momentum[name]
            expected[name] = expected[name] - 0.1 * direction
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=0)
