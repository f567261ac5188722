"""Buffers, average and weight casts that are handled many at a time: the numbers and names are those of one by one."""

import copy
import io
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import OptimizerOptions
from utils.distributed import World
from utils.training.average import AverageRule, update_average
from utils.training.buffers import KeptBuffers, batches_counted_at_once
from utils.training.flat import as_line, by_type, gathered, scatter
from utils.training.low_precision import weights_cast_together
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

CPU = World(0, 1, 1, torch.device("cpu"))
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def network(layout=torch.contiguous_format, blocks=2, seed=0):
    """Odd numbers of channels, so that nothing starts at a round address."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 5, 3, padding=1)]
    for _ in range(blocks):
        block = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1, bias=False))
        layers.append(block)
    layers += [nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(memory_format=layout)


def batches(step, count=2):
    generator = torch.Generator().manual_seed(step)
    return [
        (torch.randn(4, 3, 6, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(count)
    ]


def squared_error(model, x, y):
    return F.mse_loss(model(x).float(), y), {}


def make_state(model, precision=torch.float32, ema=True):
    rule = AverageRule(0.8) if ema else None
    return TrainingState(model, make_optimizer(model, OptimizerOptions()), CPU, precision, average_rule=rule)


def identical(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@LAYOUTS
def test_tensors_of_any_layout_come_back_from_a_line_as_they_were(layout):
    tensors = [torch.randn(2, 3, 4, 5).to(memory_format=layout), torch.randn(7), torch.tensor(3.0)]
    others = [torch.empty_like(tensor) for tensor in tensors]
    scatter(gathered(tensors), others)
    assert all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))


@LAYOUTS
def test_tensors_made_a_line_keep_shape_strides_and_numbers_and_follow_their_line(layout):
    model = network(layout)
    before = copy.deepcopy(model.state_dict())
    strides = [parameter.stride() for parameter in model.parameters()]
    (line,) = [as_line(tensors) for tensors in by_type(model.parameters()).values()]
    assert identical(before, model.state_dict())
    assert strides == [parameter.stride() for parameter in model.parameters()]
    line.mul_(2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, 2 * before[name])


@pytest.mark.parametrize("bad", [True, False])
def test_buffers_of_all_types_are_put_back_after_a_bad_step_alone(bad):
    model = network()
    model.register_buffer("mask", torch.tensor([True, False]))
    kept, before = KeptBuffers(model), copy.deepcopy(dict(model.named_buffers()))
    for buffer in model.buffers():
        buffer.fill_(1 if buffer.dtype != torch.float32 else float("nan"))
    kept.put_back(torch.tensor(bad))
    for name, buffer in model.named_buffers():
        if bad:
            assert torch.equal(buffer, before[name])
        else:
            assert buffer.isnan().all() if buffer.is_floating_point() else (buffer == 1).all()


def test_batches_are_counted_as_batch_norm_itself_counts_them():
    """Also by layers that do not train, that have no momentum, or no running statistics."""

    def unlike_layers():
        model = network()
        model[1][0].eval()
        model[2][0].momentum = None
        model.append(nn.BatchNorm1d(3, track_running_stats=False))
        return model

    ours, plain = unlike_layers(), unlike_layers()
    both_steps = [*batches(0, count=3), *batches(1, count=3)]
    inputs = [x for x, _ in both_steps]
    for start in (0, 3):
        with batches_counted_at_once(ours, 3):
            for x in inputs[start : start + 3]:
                ours(x)
    for x in inputs:
        plain(x)
    assert identical(plain.state_dict(), ours.state_dict())
    assert [int(ours[number][0].num_batches_tracked) for number in (1, 2)] == [0, 6]


def test_an_error_in_a_step_leaves_every_name_in_its_place():
    state = make_state(network(), torch.bfloat16)
    names, parameters = list(state.model.state_dict()), list(state.model.parameters())

    def fails_after_the_pass(model, x, y):
        model(x)
        raise MemoryError

    def fails_in_the_pass(model, x, y):
        return model(x[:, :2]), {}

    for loss, error in ((fails_after_the_pass, MemoryError), (fails_in_the_pass, RuntimeError)):
        with pytest.raises(error):
            training_step(state, 0, 0.1, batches(0), loss)
    assert list(state.model.state_dict()) == names
    assert all(one is other for one, other in zip(state.model.parameters(), parameters, strict=True))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_cast_together_have_the_gradients_of_autocast(layout, dtype):
    """Frozen weights and unused layers too; and outside the pass every weight is the trained one."""
    ours, plain = network(layout), network(layout)
    for model in (ours, plain):
        model[2][2].weight.requires_grad_(False)
        model.unused = nn.Identity()
        model.unused.layer = nn.Linear(2, 2)
    x, y = batches(0)[0]
    with torch.autocast("cpu", dtype), weights_cast_together(ours, dtype):
        own_loss, _ = squared_error(ours, x, y)
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype):
        plain_loss, _ = squared_error(plain, x, y)
    own_loss.backward()
    plain_loss.backward()
    assert torch.equal(own_loss, plain_loss)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (name.startswith(("2.2", "unused"))), name
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad) and one.grad.stride() == other.grad.stride(), name


class Operations(TorchDispatchMode):
    """Counts operations by name; on a GPU each is at least one launch or copy."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counts[operation._schema.name] += 1
        return operation(*args, **kwargs or {})


def test_what_surrounds_the_passes_does_not_grow_with_the_depth_of_the_network():
    grown = Counter()
    for blocks, sign in ((2, -1), (12, 1)):
        state = make_state(network(blocks=blocks), torch.bfloat16)
        training_step(state, 0, 0.1, batches(0, 1), squared_error)
        with Operations() as operations:
            training_step(state, 1, 0.1, batches(1, 1), squared_error)
        for name, count in operations.counts.items():
            grown[name] += sign * count
    of_each_tensor = ("where", "clone", "lerp_", "copy_", "add_", "mul_", "zero_", "cat", "stack")
    assert {name: grown[f"aten::{name}"] for name in of_each_tensor if grown[f"aten::{name}"]} == {}
    assert grown["aten::native_batch_norm"] == 10  # it does see what grows


# Files and copies.


def saved_and_loaded(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_has_torchs_own_names_and_a_piece_of_memory_for_each_tensor():
    state = make_state(network())
    training_step(state, 0, 0.1, batches(0), squared_error)
    saved = saved_and_loaded(state.state_dict())
    assert list(saved["model"]) == list(network().state_dict())
    assert list(saved["ema"]) == list(AveragedModel(network()).state_dict())
    for part in ("model", "ema"):
        places = [tensor.untyped_storage().data_ptr() for tensor in saved[part].values()]
        assert len(set(places)) == len(places)


@LAYOUTS
def test_the_average_of_an_older_checkpoint_goes_on(layout):
    """Its tensors are torch's own, in another memory layout perhaps: they are copied into the lines."""
    other = AveragedModel(network(seed=5))
    model = network(layout)
    average = AveragedModel(model)
    update_average(average, AverageRule(0.75), model, 0, torch.tensor(False))
    average.load_state_dict(saved_and_loaded(other.state_dict()))
    average.n_averaged.fill_(1)
    update_average(average, AverageRule(0.75), model, 1, torch.tensor(False))
    pairs = zip(average.module.parameters(), other.module.parameters(), model.parameters(), strict=True)
    for now, before, weight in pairs:
        torch.testing.assert_close(now, 0.75 * before + 0.25 * weight, rtol=1e-6, atol=1e-7)


CHANGES = {
    "deep copy": copy.deepcopy,
    "other layout": lambda model: model.to(memory_format=torch.channels_last),
    "other type and back": lambda model: model.double().float(),
    "one tensor alone": lambda model: setattr(model.module[0].weight, "data", model.module[0].weight.clone()) or model,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_average_that_was_copied_or_moved_goes_on(change):
    model, rule = network(), AverageRule(0.5)
    average = AveragedModel(model)
    update_average(average, rule, model, 0, torch.tensor(False))
    changed = change(average)
    changed.n_averaged.zero_()
    other = network(seed=1)
    if changed.module[0].weight.stride() != other[0].weight.stride():
        other = network(torch.channels_last, seed=1)
    update_average(changed, rule, other, 1, torch.tensor(False))
    assert identical(other.state_dict(), changed.module.state_dict())
    if changed is not average:
        assert identical(network().state_dict(), average.module.state_dict())
