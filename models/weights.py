"""Weights from a file, of this project or another, into a model, with an account of every tensor."""

import argparse
import os
import re

import torch
from torch import nn
from torchvision.models import get_model_weights

from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

PREFIXES = re.compile(r"^((?:module|_orig_mod|backbone|encoder)\.)+")  # of DDP, torch.compile, detectors, code B
TRUNK = re.compile(r"(conv1|bn1|layer\d)\.(?!.*num_batches_tracked)")  # counts that old files lack change no output
HUB = "torchvision:"  # as in torchvision:IMAGENET1K_V1
CODE_A, CODE_B = "public code A's checkpoint (CoinCheung/MFM)", "the paper's code's checkpoint (Jiahao000/MFM)"
OWN, IMAGENET = "a checkpoint of this project", ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NORMALISATIONS = {CODE_A: ([0.4] * 3, [0.2] * 3), CODE_B: IMAGENET, HUB: IMAGENET}  # mean, std


def start_from(model: nn.Module, name: str, path: str, use_ema: bool, world: World, mean=None, std=None):
    """Load a file's weights and tell its layout, what became of them, and of a normalisation other than mean and std.

    Args:
        name: of the ResNet, for `path` = torchvision:IMAGENET1K_V1, which one rank of a machine downloads.
    Returns: what to tell, and the config that a checkpoint of this project was trained with, else None.
    Raises: UserError if the file cannot be had or read, or does not fit the model.
    """
    content = read_checkpoint(hub_file(path, name, world) if path.startswith(HUB) else path, foreign=True)
    layout, weights = weights_of(content, path, use_ema)
    told = f"{path}: layout: {layout}; {load_weights(model, weights, path)}"
    config = content["config"] if layout == OWN else None
    data = config["data"] if config else {}
    its = NORMALISATIONS.get(HUB if path.startswith(HUB) else layout, (data.get("mean"), data.get("std")))
    if mean and its[0] and (list(mean), list(std)) != its:
        told += f"\nwarning: {path} was trained with data.mean {its[0]}, data.std {its[1]}; this run has others"
    return told, config


def hub_file(path: str, name: str, world: World) -> str:
    """Where torch's hub keeps torchvision's weights of a model; they are downloaded there if need be."""
    known = get_model_weights(name).__members__
    if path.removeprefix(HUB) not in known:
        raise UserError(f"run.weights = {path}: torchvision has for {name}: {', '.join(HUB + one for one in known)}")
    url = known[path.removeprefix(HUB)].url
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))

    def download():
        try:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            torch.hub.download_url_to_file(url, file, re.search(r"-([0-9a-f]{8,})\.", url)[1], progress=False)
        except Exception as error:  # of the network, the disk or the checksum
            raise UserError(f"{path}: cannot download {url} ({error}); put it at {file} yourself") from error

    world.in_turn(lambda: os.path.exists(file) or download())
    return file


def weights_of(content: dict, path: str, use_ema: bool = False) -> tuple[str, dict[str, torch.Tensor]]:
    """Whose layout a file's content has, in words, and its state dict under torchvision's names (which timm has too).

    Raises: UserError if there is none, or no averaged one where that is asked for.
    """
    keys = [key for key in ("ema" if use_ema else "model", "state_dict") if isinstance(content.get(key), dict)]
    if use_ema and "ema" not in keys:
        raise UserError(f"{path}: holds no averaged weights; take run.use_ema=false, or train with optimizer.ema_decay")
    found = {str(name): value for name, value in (content[keys[0]] if keys else content).items()}
    found = {name: value for name, value in found.items() if isinstance(value, torch.Tensor) and name != "n_averaged"}
    weights = {PREFIXES.sub("", name): tensor for name, tensor in found.items()}
    if not weights:
        there = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(f"{path}: holds no state dict, neither under `model` or `state_dict` nor plainly, but {there}")
    if len(weights) < len(found):
        raise UserError(f"{path}: holds two networks, whose names differ by a prefix only; save the one you want alone")
    prefixes = sorted({match[0] for name in found if (match := PREFIXES.match(name))})
    config = content.get("config")
    if isinstance(config, dict) and {"run", "data", "train"} <= config.keys():
        return OWN, weights
    if isinstance(content.get("args"), argparse.Namespace):
        return CODE_A, weights
    if isinstance(config, dict) and "encoder." in prefixes:
        return CODE_B, weights
    return "a state dict in torchvision's and timm's names" + "".join(f" after {p}" for p in prefixes), weights


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: str) -> str:
    """Copy what fits by name and tell of all else. A head with another number of outputs stays at initialisation.

    Raises: UserError if a trunk tensor is missing, left over, or of another shape.
    """
    here, there = shapes_of(model.state_dict()), shapes_of(weights)
    matched = [name for name in here if here[name] == there.get(name)]
    if not any(TRUNK.match(name) for name in matched):
        example = ", ".join(list(weights)[:3])
        raise UserError(f"{path}: no trunk tensor matches the model; the file holds {example} …; check model.name")
    new = [name for name in here if name in there and name not in matched and not TRUNK.match(name)]
    wrong = [name for name in here | there if name not in matched and TRUNK.match(name)]
    wrong += [name for name in new if here[name][1:] != there[name][1:]]
    if wrong:
        mine, its = here.get(wrong[0], ()), there.get(wrong[0], ())
        turned = ", the same axes in another order (transposed)" if sorted(mine) == sorted(its) else ""
        raise UserError(
            f"{path}: {wrong[0]} has shape {its or 'none'} in the file, {mine or 'none'} in the model{turned} "
            f"({len(wrong)} such tensors); model.name must be that of the file, a torchvision ResNet"
        )
    model.load_state_dict({name: weights[name] for name in matched}, strict=False)
    heads = "".join(f"; {name} is new: {here[name]} here, {there[name]} in the file" for name in new)
    return (
        f"{len(matched)} tensors matched, {listed(there, matched)} of the file left over, "
        f"{listed(here, matched)} of the model stay at initialisation{heads}"
    )


def listed(names: dict, matched: list[str]) -> str:
    rest = [name for name in names if name not in matched]
    return f"{len(rest)}" + (f" ({', '.join(rest[:4])}{', …' if len(rest) > 4 else ''})" if rest else "")


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
