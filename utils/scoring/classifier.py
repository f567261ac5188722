"""A classifier from a file of weights, with everything that decides what it answers: classes, normalisation, sizes."""

import os
from dataclasses import dataclass

import torch
from torch import nn

from configs.schema import FinetuneConfig
from data.folder import open_root
from models.trunk import make_trunk, trunk_children
from models.weights import WeightsFile, load_weights, read_weights
from utils.config import with_value
from utils.distributed import World
from utils.errors import UserError, printable
from utils.run.job import to_device
from utils.scoring.sizes import settle_sizes


@dataclass(frozen=True)
class Classifier:
    """A classifier, and what was settled about it.

    Args:
        file: its weights, and what the file tells of their training.
        model_name: of the network.
        network: (B, 3, S, S), normalised, -> logits (B, K); on the device, in evaluation mode.
        outputs: their number K.
        classes: K names in the order of the outputs; None: nothing names them.
        config: that of the command line, with sizes and normalisation as they were settled.
        report: what became of every tensor, and where classes, normalisation and sizes are from; lines to say.
    """

    file: WeightsFile
    model_name: str
    network: nn.Module
    outputs: int
    classes: list[str] | None
    config: FinetuneConfig
    report: list[str]

    @property
    def weights_name(self) -> str:
        """Which weights of the file they are."""
        return "ema" if self.config.run.use_ema else "model"

    @property
    def loss_name(self) -> str | None:
        """The loss of the training, "bce" or "ce"; None: the file does not tell."""
        return (self.file.config or {}).get("loss", {}).get("name")


def read_classifier(
    config: FinetuneConfig, given: frozenset[str], world: World, unnamed: str = "folders in sorted order"
) -> Classifier:
    """The classifier in `run.weights`.

    Model, normalisation and classes are the file's, where it tells them. A JSON that export_weights.py wrote beside the
    file counts as the file. Sizes, crop and interpolation are the command line's, else the file's, else the recipe's.

    Args:
        given: the keys that the command line itself sets.
        unnamed: what the classes are if nothing names them, for the log.
    Raises: UserError if there is no classifier in it, or the settings do not go together.
    """
    path = config.run.weights
    file = read_weights(path, config.model.name, config.run.use_ema, world)
    if file.config is not None and file.classes is None:
        raise UserError(
            f"{path}: not a finetuned checkpoint (it names no classes); finetune from it with --weights first"
        )
    model_name = printable(file.model_name or config.model.name)
    outputs = outputs_of(file, model_name)
    classes, classes_source = settle_classes(config, file, outputs)
    if classes is None:
        classes_source = f"the {outputs} {unnamed} (the file names none)"
    config, sizes_line = settle_sizes(config, file.config, given)
    normalisation_source = "this command line's (the file tells none)"
    if file.mean is not None:
        config = with_value(with_value(config, "data.mean", tuple(file.mean)), "data.std", tuple(file.std))
        normalisation_source = "the file's"
    mean, std = list(config.data.mean), list(config.data.std)

    network = make_trunk(model_name, outputs).classifier
    account = load_weights(network, file.weights, path, trunk_children(model_name), whole=True)
    report = [
        f"{path}: layout: {file.layout}; {account}",
        f"classes: {classes_source}; normalisation: data.mean {mean}, data.std {std}, {normalisation_source}",
        sizes_line,
    ]
    network = to_device(network, world.device, config.model, torch.float32).eval()
    return Classifier(file, model_name, network, outputs, classes, config, report)


def outputs_of(file: WeightsFile, model_name: str) -> int:
    """How many classes the file's head tells apart. Raises: UserError if it has no head."""
    with torch.device("meta"):  # takes no memory
        head = make_trunk(model_name).head
    bias = file.weights.get(f"{head}.bias")
    if bias is None or bias.is_nested or bias.dim() != 1 or len(bias) == 0:
        raise UserError(
            f"{file.path}: holds no classifier ({head}.bias is not a list of numbers in it).\n"
            "Finetune from it with --weights first; if it is of another model, give model.name."
        )
    return len(bias)


def settle_classes(config: FinetuneConfig, file: WeightsFile, outputs: int) -> tuple[list[str] | None, str]:
    """The names of the outputs, and where they are from. Raises: UserError if they are not as many as the outputs."""
    classes, source = file.classes, "the file's"
    place = config.data.class_names
    if place is not None:
        classes, source = names_in(place), f"data.class_names {place}"
    if classes is None:
        return None, ""
    if len(classes) != outputs:
        raise UserError(
            f"{file.path}: has {outputs} outputs, but {len(classes)} classes are named ({source}); "
            "name each output, in their order"
        )
    return classes, source


def names_in(place: str) -> list[str]:
    """The lines of a text file, or the class folders in a folder, sorted. Raises: UserError if one comes twice."""
    if os.path.isdir(place):
        folders, _ = open_root(place)
        return folders
    given = f"data.class_names = {place}"
    try:
        with open(place, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file.read().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{given}: cannot be read ({reason}); give a text file with a name a line, or a folder"
        ) from error
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{given}: names {printable(double)} twice; give every output a name of its own")
    return names
