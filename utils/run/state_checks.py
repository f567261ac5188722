"""Whether the tensors of a checkpoint's training state are numbers with which the training can go on."""

from collections.abc import Mapping
from pathlib import Path

import torch

from utils.tensor_checks import refuse_unusable
from utils.training.step import TrainingState

REMEDY = "resume from an older checkpoint (--resume PATH)"


def refuse_unusable_state(path: Path, saved: dict, state: TrainingState) -> None:
    """Raise UserError if a tensor that `state` would take over is not real, dense and finite.

    Those are the model's, the average's and the optimizer's. Names and shapes that do not fit are left to
    `TrainingState.load_state_dict`, and so is whatever is no dict or no tensor.
    """
    refuse_unusable_weights(path, "model", saved["model"], state.model.state_dict())
    if state.average is not None:
        refuse_unusable_weights(path, "ema", saved.get("ema"), state.average.state_dict())
    if isinstance(saved["optimizer"], dict):
        refuse_unusable_moments(path, saved["optimizer"].get("state"), state)


def refuse_unusable_weights(path: Path, part: str, tensors: object, expected: Mapping[str, torch.Tensor]) -> None:
    """`part` is the name that these tensors have in the checkpoint."""
    if not isinstance(tensors, dict):
        return
    for name, tensor in tensors.items():
        if name in expected and isinstance(tensor, torch.Tensor):
            refuse_unusable(str(path), f"{part}.{name}", tensor, expected[name], REMEDY)


def refuse_unusable_moments(path: Path, moments: object, state: TrainingState) -> None:
    """The optimizer's tensors, which torch saves by the number of their parameter."""
    if not isinstance(moments, dict):
        return
    names = names_by_number(state)
    count = torch.zeros((), dtype=torch.int64)
    weight = torch.zeros(())
    for number, tensors in moments.items():
        if not isinstance(tensors, dict):
            continue
        parameter = names.get(number, f"parameter {number}")
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                expected = count if name == "step" else weight
                refuse_unusable(str(path), f"optimizer's {name} of {parameter}", tensor, expected, REMEDY)


def names_by_number(state: TrainingState) -> dict[int, str]:
    """The name of each parameter, by its number in the optimizer's state dict."""
    names_by_id = {id(parameter): name for name, parameter in state.model.named_parameters()}
    names: dict[int, str] = {}
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            names[len(names)] = names_by_id[id(parameter)]
    return names
