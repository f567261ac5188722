"""A checkpoint's training state: what no training may go on with is named, and what fits today still resumes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.utils.training.test_step import assert_identical, make_state, take, tensors
from utils.errors import UserError
from utils.run.state_checks import refuse_unusable_state
from utils.training.lamb import Lamb

PATH = Path("runs/x/checkpoints/step_00000003.pt")
OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "adamw, not fused": lambda model: torch.optim.AdamW(model.parameters()),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True),
    "sgd without momentum": lambda model: torch.optim.SGD(model.parameters()),
    "lamb": lambda model: Lamb([{"params": list(model.parameters()), "weight_decay": 0.05}], lr=1e-3),
}


def trained(optimizer=OPTIMIZERS["adamw"]):
    """A state after three steps, with an average."""
    state = make_state(optimizer=optimizer, ema_decay=0.9)
    take(state, range(3), dtype=torch.float32)
    return state


@pytest.fixture(scope="module")
def saved() -> dict:
    return trained().state_dict()


def with_number(value: float):
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.flatten()[-1:] = value
        return spoilt

    return spoil


NAN = with_number(float("nan"))
SPOILT = {  # keys of the tensor in the checkpoint, what is done to it, what the error says
    "weight": (("model", "0.weight"), NAN, "model.0.weight holds 1 of 32 numbers that are not finite"),
    "statistics": (("model", "1.running_var"), NAN, "model.1.running_var holds 1 of 8 numbers that are not finite"),
    "variance": (("model", "1.running_var"), with_number(-1), "model.1.running_var holds a negative variance"),
    "integers": (("model", "0.weight"), lambda tensor: tensor.long(), "model.0.weight is torch.int64"),
    "complex": (("model", "3.bias"), lambda tensor: tensor.to(torch.complex64), "model.3.bias is torch.complex64"),
    "sparse": (("model", "3.weight"), lambda tensor: tensor.to_sparse(), "model.3.weight is sparse"),
    "average": (("ema", "module.0.bias"), NAN, "ema.module.0.bias holds 1 of 8 numbers"),
    "updates of the average": (("ema", "n_averaged"), lambda tensor: tensor * 1j, "ema.n_averaged is torch.complex64"),
    "moment": (("optimizer", "state", 4, "exp_avg"), NAN, "optimizer's exp_avg of 3.weight holds 1 of 24 numbers"),
    "infinity": (
        ("optimizer", "state", 5, "exp_avg_sq"), with_number(float("inf")), "optimizer's exp_avg_sq of 3.bias holds 1"),
    "integer moment": (
        ("optimizer", "state", 0, "exp_avg"), lambda tensor: tensor.long(),
        "optimizer's exp_avg of 0.weight is torch.int64"),
    "count of steps": (("optimizer", "state", 2, "step"), NAN, "optimizer's step of 1.weight holds 1 of 1 numbers"),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_the_tensor_that_cannot_be_gone_on_with_is_named(keys, spoil, message, saved):
    spoilt = copy.deepcopy(saved)
    holder = spoilt
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = spoil(holder[keys[-1]])
    with pytest.raises(UserError) as raised:
        refuse_unusable_state(PATH, spoilt, make_state(ema_decay=0.9))
    assert str(raised.value).startswith(f"{PATH}: {message}")
    assert str(raised.value).endswith("; resume from an older checkpoint (--resume PATH)")


def test_an_average_that_is_not_gone_on_with_may_hold_anything(saved):
    spoilt = copy.deepcopy(saved)
    spoilt["ema"]["module.0.bias"][0] = float("nan")
    refuse_unusable_state(PATH, spoilt, make_state())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_a_training_saves_is_taken(optimizer):
    state = trained(optimizer)
    other = make_state(optimizer=optimizer, ema_decay=0.9)
    refuse_unusable_state(PATH, state.state_dict(), other)
    other.load_state_dict(copy.deepcopy(state.state_dict()))
    assert_identical(tensors(other), tensors(state))


def test_counts_may_be_of_either_kind_and_a_checkpoint_may_have_no_average(saved):
    state = copy.deepcopy(saved)
    state["model"]["1.num_batches_tracked"] = torch.tensor(9.0)
    state["optimizer"]["state"][0]["step"] = torch.tensor(3)
    state["ema"] = None
    refuse_unusable_state(PATH, state, make_state(ema_decay=0.9))


@pytest.mark.parametrize(
    "odd", [{"model": 3}, {"optimizer": []}, {"optimizer": {"state": {0: 1, "x": {"step": torch.zeros(())}}}}]
)
def test_what_is_no_state_at_all_is_left_to_loading_it(odd, saved):
    refuse_unusable_state(PATH, copy.deepcopy(saved) | odd, make_state(ema_decay=0.9))
