"""What a file of weights alone does not say: classes, normalisation and sizes, in a JSON beside it.

resnet50.pth  ->  resnet50.pth.json, written by scripts/export_weights.py and read by whatever loads the file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.schema import FinetuneConfig
from utils.config import from_dict, to_dict
from utils.errors import UserError, first_line, printable
from utils.files import write_atomically

# Of the JSON -> of a config.
KEYS = {
    "model": "model.name", "mean": "data.mean", "std": "data.std", "val_resize_size": "data.val_resize_size",
    "val_crop_size": "data.val_crop_size", "interpolation": "data.interpolation", "loss": "loss.name",
}  # fmt: skip
MARK = "masked frequency modelling: weights"  # what `kind` says in a JSON of ours


@dataclass(frozen=True)
class Description:
    """What the JSON says of the training.

    Args:
        path: of the JSON.
        config: those settings that it names, nested.
        classes: in the order of the outputs; None: the network is no classifier.
        fingerprint: `weights_fingerprint` of the weights; None: an older export wrote none.
    """

    path: Path
    config: dict
    classes: list[str] | None
    fingerprint: str | None

    def check(self, weights: Mapping[str, torch.Tensor], file: str) -> None:
        """Raises: UserError if these are not the weights that are described."""
        if self.fingerprint is None:
            return
        fingerprint = weights_fingerprint(weights)
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{self.path}: describes other weights ({printable(self.fingerprint)}) than those in {file} "
                f"({fingerprint}).\nExport the weights again, or remove the JSON."
            )


def description_path(weights: str | Path) -> Path:
    return Path(f"{weights}.json")


def write_description(weights: Path, content: dict) -> Path:
    """The JSON beside a file of weights, as a whole. Returns: its path.

    Args:
        content: `classes` in the order of the outputs, `fingerprint` of the weights, the keys of KEYS, and whatever
            else a reader may want.
    """
    path = description_path(weights)
    encoded = json.dumps({"kind": MARK, **content}, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(encoded.encode(errors="surrogateescape")))
    return path


def read_description(weights: str | Path) -> Description | None:
    """What the JSON beside a file of weights says; None: there is none of ours.

    Raises: UserError if the JSON is ours and cannot be read, or says something that no config may hold.
    """
    path = description_path(weights)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError) as error:
        if MARK.encode() not in path.read_bytes()[:200]:
            return None
        raise UserError(f"{path}: cannot be read ({first_line(error)}); export the weights again") from error
    if not isinstance(content, dict) or content.get("kind") != MARK:
        return None
    sections: dict[str, dict] = {}
    for key, knob in KEYS.items():
        if content.get(key) is not None:
            section, name = knob.split(".")
            sections.setdefault(section, {})[name] = content[key]
    checked = to_dict(from_dict(FinetuneConfig, sections, str(path)))
    config = {}
    for section, keys in sections.items():
        config[section] = {key: checked[section][key] for key in keys}
    return Description(path, config, class_names(content, str(path)), content.get("fingerprint"))


def class_names(content: dict, path: str) -> list[str] | None:
    """The classes that a checkpoint or a JSON of this project names; None: it names none, as one of pretraining."""
    classes = content.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: `classes` is no list of names; take another checkpoint")
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"{path}: `classes` is empty or names a class twice; take another checkpoint")
    return classes


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """A hash of the names, types, shapes and numbers of a state dict, whatever file it lies in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name} {tensor.dtype} ".encode(errors="surrogateescape"))
        if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
            continue  # no network of ours takes such a tensor
        digest.update(f"{tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
