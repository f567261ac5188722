"""LAMB against its formula in slow float64 and against timm's, and what a NaN, a save or a missing gradient may do."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import OptimizerOptions
from utils.distributed import World
from utils.training.lamb import Lamb
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

timm_optim = pytest.importorskip("timm.optim")
CPU = World(0, 1, 1, torch.device("cpu"))
STEPS = 30
OPTIONS = OptimizerOptions(name="lamb", learning_rate=8e-3, weight_decay=0.02, weight_decay_on="matrices")


def convolutional(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).to(dtype)
    nn.init.zeros_(model[4].weight)  # a norm of 0: the step is not scaled
    return model


def set_gradients(model, step):
    """Of unlike scales: the global norm lies below 1 in some steps and far above it in others."""
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(model.parameters()):
        scale = 10.0 ** (step % 6 + number % 3 - 5)
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = drawn.to(parameter.dtype)


def rate(step):
    return 1e-2 / (1 + step % 5)


def train(model, optimizer, steps=range(STEPS)):
    for step in steps:
        set_gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()


def global_norm(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()


def test_an_update_agrees_with_lamb_written_out():
    model = convolutional()
    weights = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    first, second = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    optimizer = make_optimizer(model, OPTIONS)
    clipped = scaled = 0
    for step in range(STEPS):
        train(model, optimizer, [step])
        gradients = [parameter.grad.numpy() for parameter in model.parameters()]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        clipped += norm > 1
        for number, weight in enumerate(weights):
            gradient = gradients[number] / max(1, norm)
            first[number] = 0.9 * first[number] + 0.1 * gradient
            second[number] = 0.999 * second[number] + 0.001 * gradient**2
            unbiased = first[number] / (1 - 0.9 ** (step + 1))
            update = unbiased / (np.sqrt(second[number]) / np.sqrt(1 - 0.999 ** (step + 1)) + 1e-6)
            ratio = 1
            if weight.ndim > 1:
                update = update + 0.02 * weight
                weight_norm, update_norm = np.sqrt((weight**2).sum()), np.sqrt((update**2).sum())
                if weight_norm > 0 and update_norm > 0:
                    ratio, scaled = weight_norm / update_norm, scaled + 1
            weights[number] = weight - rate(step) * ratio * update
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, atol=1e-15)
    assert 0 < clipped < STEPS and scaled == 2 * STEPS - 1  # not in the first step of the matrix that starts at 0


@pytest.mark.parametrize("weight_decay_on", ["matrices", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_every_update_agrees_with_timms(dtype, tolerance, weight_decay_on):
    ours, theirs = convolutional(dtype), convolutional(dtype)
    optimizer = make_optimizer(ours, OptimizerOptions(name="lamb", weight_decay=0.02, weight_decay_on=weight_decay_on))
    parameters = list(theirs.parameters())
    spared = [parameter for parameter in parameters if parameter.dim() == 1 and weight_decay_on == "matrices"]
    decayed = [parameter for parameter in parameters if not any(parameter is one for one in spared)]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": spared, "weight_decay": 0.0}]
    oracle = timm_optim.Lamb([group for group in groups if group["params"]])
    norms = []
    for step in range(STEPS):
        train(ours, optimizer, [step])
        train(theirs, oracle, [step])
        norms.append(global_norm(ours))
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            # Relative to the tensor: single weights cross 0.
            assert (one - other).abs().max() <= tolerance * other.abs().max()
    assert min(norms) < 1 and max(norms) > 100


def test_without_decay_a_step_is_that_of_adam():
    """Small gradients, so that nothing is clipped, and a large eps would show."""
    ours, theirs = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    theirs.load_state_dict(ours.state_dict())
    optimizer = Lamb([{"params": list(ours.parameters())}], lr=1e-3)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3, eps=1e-6)
    for step in range(5):
        for model, stepping in ((ours, optimizer), (theirs, adam)):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1e-3
            stepping.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_a_parameter_without_gradient_is_left_alone_and_counts_its_own_updates():
    model = convolutional()
    optimizer = make_optimizer(model, OPTIONS)
    set_gradients(model, 0)
    model[4].weight.grad = None
    before = model[4].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[4].weight, before)
    train(model, optimizer, [1])
    assert int(optimizer.state[model[4].weight]["step"]) == 1
    assert int(optimizer.state[model[0].weight]["step"]) == 2
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    assert int(optimizer.state[model[0].weight]["step"]) == 2


def test_counts_are_beside_their_parameters_after_loading_too():
    """On a GPU they must not come to lie on the CPU, where the guard against bad steps could not undo them."""
    model = convolutional(torch.float32)
    optimizer = make_optimizer(model, OPTIONS)
    train(model, optimizer, range(3))
    on_meta = copy.deepcopy(model).to("meta")
    resumed = make_optimizer(on_meta, OPTIONS)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for parameter in on_meta.parameters():
        state = resumed.state[parameter]
        assert {name: tensor.device.type for name, tensor in state.items()} == dict.fromkeys(state, "meta")
        assert state["step"].dtype == torch.float32


def test_scaled_float16_gradients_are_clipped_after_they_are_unscaled():
    """The scale of 256 would put every gradient above the norm of 1."""

    def squared_error(model, x, y):
        return nn.functional.mse_loss(model(x).float(), y) * 1e-2, {}

    finals = []
    for precision in (torch.float32, torch.float16):
        model = convolutional(torch.float32)
        state = TrainingState(model, make_optimizer(model, OPTIONS), CPU, precision)
        if precision == torch.float16:
            state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 256.0})
        generator = torch.Generator().manual_seed(0)
        images, targets = torch.randn(6, 3, 4, 4, generator=generator), torch.randn(6, 5, generator=generator)
        for step in range(3):
            metrics = training_step(state, step, 1e-2, [(images, targets)], squared_error)
            assert metrics["grad_norm"][0] < 1
        finals.append(state.optimizer.state[model[4].bias]["exp_avg_sq"])
    assert int(state.bad_steps.total) == 0
    torch.testing.assert_close(finals[1], finals[0], rtol=0.02, atol=1e-9)
