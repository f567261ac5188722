"""Weights from a checkpoint into a model, with an account of every tensor."""

from dataclasses import dataclass

import torch
from torch import nn

from utils.checkpoint import read_checkpoint
from utils.errors import UserError

HEADS = ("fc.", "decoder.")  # what may differ between pretraining and finetuning, and between data sets


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors: in both, only in the file, only in the model (or of another shape, heads only)."""

    matched: list[str]
    left_over: list[str]
    at_initialisation: list[str]

    def __str__(self) -> str:
        def listed(names):
            return f"{len(names)}" + (f" ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})" if names else "")

        return (
            f"{len(self.matched)} tensors matched, {listed(self.left_over)} of the file left over, "
            f"{listed(self.at_initialisation)} of the model stay at initialisation"
        )


def weights_of(checkpoint: dict, path: str, use_ema: bool = False) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of ours.

    Raises: UserError if there is none, or no averaged one where that is asked for.
    """
    weights = checkpoint.get("ema" if use_ema else "model")
    if use_ema and weights is None:
        raise UserError(f"{path}: holds no averaged weights; take run.use_ema=false, or train with optimizer.ema_decay")
    if use_ema:
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items() if name != "n_averaged"}
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise UserError(f"{path}: holds no state dict under `model`; give a checkpoint of pretrain.py or finetune.py")
    return weights


def start_from(
    model: nn.Module, path: str, use_ema: bool = False, mean: tuple | None = None, std: tuple | None = None
) -> str:
    """Load a checkpoint's weights and tell what became of them, and of a normalisation other than mean and std."""
    saved = read_checkpoint(path)
    told = f"{path}: {load_weights(model, weights_of(saved, path, use_ema), path)}"
    data = saved.get("config", {}).get("data", {})
    if mean is not None and data and (tuple(data["mean"]), tuple(data["std"])) != (tuple(mean), tuple(std)):
        told += (
            f"\nwarning: {path} was trained with data.mean {data['mean']}, data.std {data['std']}; this run has others"
        )
    return told


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> LoadReport:
    """Copy what fits by name. A head of another shape stays at initialisation.

    Raises: UserError if a trunk tensor has another shape, is missing from the file, or nothing matches.
    """
    own = model.state_dict()
    shared = [name for name in own if name in weights]
    fits = {name: own[name].shape == weights[name].shape for name in shared}
    report = LoadReport(
        matched=[name for name in shared if fits[name]],
        left_over=[name for name in weights if not fits.get(name)],
        at_initialisation=[name for name in own if not fits.get(name)],
    )
    if not any(not name.startswith(HEADS) for name in report.matched):
        example = ", ".join(list(weights)[:3]) or "nothing"
        raise UserError(f"{path}: no trunk tensor matches the model; the file holds {example} …; check model.name")
    wrong = [name for name in report.at_initialisation if not name.startswith(HEADS)]
    if wrong:
        name = wrong[0]
        found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing from the file"
        raise UserError(
            f"{path}: {name} {found}, the model wants {tuple(own[name].shape)} "
            f"({len(wrong)} such tensors); model.name must be that of the checkpoint"
        )
    model.load_state_dict({name: weights[name] for name in report.matched}, strict=False)
    return report
