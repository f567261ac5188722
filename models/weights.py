"""Weights from a file, of this project or another, into a network, with an account of every tensor."""

import argparse
import re
from dataclasses import dataclass, replace

import torch
from torch import nn

from models.description import class_names, read_description
from models.hub import HUB, hub_file
from models.trunk import trunk_children
from utils.config import to_dict
from utils.distributed import World
from utils.errors import UserError, printable
from utils.run.checkpoint import read_checkpoint
from utils.run.reading import checkpoint_config
from utils.tensor_checks import refuse_dead, refuse_unusable

OWN = "a checkpoint of this project"
COINCHEUNG = "a checkpoint of CoinCheung/MFM"
AUTHORS = "a checkpoint of the authors' code (Jiahao000/MFM)"
UNKNOWN_ORIGIN = "a state dict in torchvision's and timm's names"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NORMALISATIONS = {COINCHEUNG: ([0.4] * 3, [0.2] * 3), AUTHORS: IMAGENET}  # mean, std of channels in [0, 1]
# What DDP, torch.compile, detectors and the authors' code put before torchvision's names.
PREFIXES = re.compile(r"^((?:module|_orig_mod|backbone|encoder)\.)+")
AVERAGES = ("ema", "model_ema", "state_dict_ema")  # of this project; of CoinCheung/MFM and torchvision; of timm
Weights = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightsFile:
    """The weights in a file, and what it tells of their training; None: it does not tell."""

    path: str
    layout: str  # in words
    weights: Weights
    mean: list[float] | None = None
    std: list[float] | None = None
    config: dict | None = None  # of a checkpoint of this project, or what the JSON of an export says of it
    classes: list[str] | None = None  # in the order of the logits
    step: int | None = None

    @property
    def model_name(self) -> str | None:
        return (self.config or {}).get("model", {}).get("name")

    @property
    def holdout_fraction(self) -> float:
        """The share of train that was not trained on, as far as is known."""
        return (self.config or {}).get("data", {}).get("holdout_fraction", 0.0)


@dataclass(frozen=True)
class LoadedWeights:
    path: str
    report: str  # the file's layout, and what became of every tensor
    config: dict | None  # of a checkpoint of this project
    mean: list[float] | None  # the normalisation of their training; None: unknown
    std: list[float] | None


def load_from_file(
    network: nn.Module, model_name: str, path: str, use_ema: bool, world: World, classes: list[str] | None = None
) -> LoadedWeights:
    """Load the weights of a file, or of torchvision:IMAGENET1K_V1 and the like, into a network.

    Args:
        classes: what the network is to tell apart. The head of a file that names other classes is left out.
    Raises: UserError if the file cannot be had or read, or does not fit the network.
    """
    file = read_weights(path, model_name, use_ema, world)
    other_classes = None not in (classes, file.classes) and classes != file.classes
    account = load_weights(network, file.weights, path, trunk_children(model_name), new_head=other_classes)
    if other_classes:
        account += f"; the head starts anew: the file's was trained for {some_of(file.classes)}"
    config = file.config if file.layout == OWN else None  # the JSON of an export holds a part of one
    return LoadedWeights(path, f"{path}: layout: {file.layout}; {account}", config, file.mean, file.std)


def some_of(classes: list[str]) -> str:
    listed = ", ".join(map(printable, classes[:3]))
    return f"{len(classes)} classes: {listed}" + (", …" if len(classes) > 3 else "")


def read_weights(path: str, model_name: str, use_ema: bool, world: World) -> WeightsFile:
    """Read a file, or torchvision:IMAGENET1K_V1 and the like of a model. The JSON of an export counts as its file.

    Raises: UserError if it cannot be had or read, or holds no state dict, or no average where use_ema asks for it, or
        if the JSON beside it is of other weights.
    """
    from_hub = path.startswith(HUB)
    file = hub_file(path, model_name, world) if from_hub else path
    content = read_checkpoint(file, foreign=True)
    layout, weights = weights_of(content, path, use_ema)
    if layout == OWN:
        config = saved_config(content, path)
        mean, std = config["data"].get("mean"), config["data"].get("std")
        step = content.get("step")
        return WeightsFile(
            path=path, layout=layout, weights=weights, mean=mean, std=std, config=config,
            classes=class_names(content, path), step=step if isinstance(step, int) else None,
        )  # fmt: skip
    mean, std = IMAGENET if from_hub else NORMALISATIONS.get(layout, (None, None))
    return with_description(WeightsFile(path, layout, weights, mean, std))


def with_description(file: WeightsFile) -> WeightsFile:
    """The weights with what the JSON beside their file says, if there is one of ours. Raises: UserError, as above."""
    described = read_description(file.path)
    if described is None:
        return file
    described.check(file.weights, file.path)
    data = described.config.get("data", {})
    return replace(
        file, layout=f"{file.layout}, with {described.path.name} beside it", config=described.config,
        classes=described.classes, mean=data.get("mean", file.mean), std=data.get("std", file.std),
    )  # fmt: skip


def saved_config(content: dict, path: str) -> dict:
    """The settings that a checkpoint of this project holds, each checked as in a YAML file, and no others."""
    checked = to_dict(checkpoint_config(path, content))
    given = {}
    for section, keys in content["config"].items():
        given[section] = {key: checked[section][key] for key in keys}
    return given


def normalisation_warning(loaded: LoadedWeights, mean: tuple[float, ...], std: tuple[float, ...]) -> str | None:
    """A warning if the weights were trained with another normalisation than this run's mean and std."""
    if loaded.mean is None or (loaded.mean, loaded.std) == (list(mean), list(std)):
        return None
    trained = f"data.mean {loaded.mean}, data.std {loaded.std}"
    return f"warning: {loaded.path} was trained with {trained}; this run has {list(mean)}, {list(std)}"


def weights_of(content: dict, path: str, use_ema: bool = False) -> tuple[str, Weights]:
    """The layout of a file's content, in words, and its state dict under torchvision's names, which timm has too.

    Raises: UserError if there is no state dict, or no averaged one where use_ema asks for it.
    """
    state_dict = averaged_weights(content, path) if use_ema else latest_weights(content)
    weights, prefixes = {}, set()
    for full_name, tensor in state_dict.items():
        if not isinstance(full_name, str) or not isinstance(tensor, torch.Tensor):
            continue
        if full_name == "n_averaged":  # AveragedModel's count of updates
            continue
        name = PREFIXES.sub("", full_name)
        if name in weights:
            raise UserError(f"{path}: holds two networks, whose names differ by a prefix only; save one of them alone")
        weights[name] = tensor
        prefixes.add(full_name.removesuffix(name))
    if not weights:
        keys = ", ".join(map(printable, list(content)[:5])) or "nothing"
        raise UserError(f"{path}: holds no state dict, neither under `model` or `state_dict` nor plainly, but {keys}")
    layout = origin_of(content) or " after ".join([UNKNOWN_ORIGIN, *sorted(prefixes - {""})])
    return layout, weights


def latest_weights(content: dict) -> dict:
    for name in ("model", "state_dict"):
        if isinstance(content.get(name), dict):
            return content[name]
    return content


def averaged_weights(content: dict, path: str) -> dict:
    for name in AVERAGES:
        if isinstance(content.get(name), dict):
            return content[name]
    raise UserError(
        f"{path}: holds no averaged weights; take run.use_ema=false, or train with optimizer.ema_decay\n"
        f"(none of {', '.join(AVERAGES)} is in the file)"
    )


def origin_of(content: dict) -> str | None:
    """The code that wrote a file: OWN, COINCHEUNG or AUTHORS; None unless the file has what no other code writes.

    timm's and torchvision's training scripts save an argparse.Namespace as well, and SimMIM's family a yacs config.
    """
    config = content.get("config")
    if isinstance(config, dict):
        if {"run", "data", "train"} <= config.keys():  # no other code has these three, in small letters
            return OWN
        data = config.get("DATA")
        if isinstance(data, dict) and ("FILTER_TYPE" in data or "MASK_RADIUS1" in data):
            return AUTHORS
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace) and "use_dali" in arguments:
        return COINCHEUNG
    return None


def load_weights(
    network: nn.Module, weights: Weights, path: str, trunk_children: frozenset[str], whole: bool = False,
    new_head: bool = False,
) -> str:  # fmt: skip
    """Copy every tensor that fits by name and shape. A head with another number of outputs stays at initialisation.

    Args:
        trunk_children: names of the trunk's top-level children, whose tensors must all fit.
        whole: the head must fit as well, as for an evaluation.
        new_head: the head stays at initialisation even if it fits.
    Returns: an account of all tensors.
    Raises: UserError if a tensor of the trunk is missing, left over, or of another shape, or if one that is to be
        copied is not real, dense and finite. The network is then as it was.
    """
    model_shapes, file_shapes = shapes_of(network.state_dict()), shapes_of(weights)
    matched = [name for name in model_shapes if model_shapes[name] == file_shapes.get(name)]
    if new_head:
        matched = [name for name in matched if name.split(".")[0] in trunk_children]
    if not any(in_trunk(name, trunk_children) for name in matched):
        examples = ", ".join(map(printable, list(weights)[:3]))
        raise UserError(f"{path}: no trunk tensor matches the model; the file holds {examples} …; check model.name")
    unmatched = [name for name in model_shapes | file_shapes if name not in matched]
    mismatched = [name for name in unmatched if in_trunk(name, trunk_children)]
    heads = [name for name in unmatched if is_other_head(name, model_shapes, file_shapes, trunk_children)]
    mismatched += [name for name in heads if model_shapes[name][1:] != file_shapes[name][1:]]
    if mismatched:
        raise UserError(f"{path}: {mismatch(mismatched, model_shapes, file_shapes)}")
    missing = [name for name in model_shapes if name not in matched and not is_count(name)]
    if whole and missing:
        name = missing[0]
        raise UserError(
            f"{path}: {name} has shape {file_shapes.get(name, 'none')} in the file, {model_shapes[name]} here.\n"
            "An evaluation needs a finetuned classifier."
        )
    expected = network.state_dict()
    for name in matched:
        refuse_unusable(path, name, weights[name], expected[name])
        if in_trunk(name, trunk_children):
            refuse_dead(path, name, weights[name])
    network.load_state_dict({name: weights[name] for name in matched}, strict=False)
    new_heads = ""
    for name in heads:
        new_heads += f"; {name} is new: {model_shapes[name]} here, {file_shapes[name]} in the file"
    return (
        f"{len(matched)} tensors matched, {left_over(file_shapes, matched)} of the file left over, "
        f"{left_over(model_shapes, matched)} of the model stay at initialisation{new_heads}"
    )


def is_other_head(name: str, model_shapes: Shapes, file_shapes: Shapes, trunk_children: frozenset[str]) -> bool:
    """Whether a tensor of the head is in both, with unlike shapes, as for another number of classes."""
    if in_trunk(name, trunk_children) or name not in model_shapes or name not in file_shapes:
        return False
    return model_shapes[name] != file_shapes[name]


def in_trunk(name: str, trunk_children: frozenset[str]) -> bool:
    """Whether a tensor must fit. Counts of batches need not: old files lack them, and no output depends on them."""
    return name.split(".")[0] in trunk_children and not is_count(name)


def is_count(name: str) -> bool:
    """Whether a tensor is BatchNorm's count of batches."""
    return name.endswith("num_batches_tracked")


def mismatch(names: list[str], model_shapes: Shapes, file_shapes: Shapes) -> str:
    model_shape, file_shape = model_shapes.get(names[0], ()), file_shapes.get(names[0], ())
    transposed = ""
    if sorted(model_shape) == sorted(file_shape):
        transposed = ", the same axes in another order (transposed)"
    shapes = f"{file_shape or 'none'} in the file, {model_shape or 'none'} in the model"
    return (
        f"{printable(names[0])} has shape {shapes}{transposed} "
        f"({len(names)} such tensors); model.name must be that of the file"
    )


def left_over(names: Shapes, matched: list[str]) -> str:
    rest = [name for name in names if name not in matched]
    if not rest:
        return "0"
    more = ", …" if len(rest) > 4 else ""
    return f"{len(rest)} ({', '.join(map(printable, rest[:4]))}{more})"


def shapes_of(tensors: Weights) -> Shapes:
    shapes = {}
    for name, tensor in tensors.items():
        shapes[name] = () if tensor.is_nested else tuple(tensor.shape)  # a nested one has no shape
    return shapes
