"""What a file of weights alone does not say: classes, normalisation and sizes, in a JSON beside it.

resnet50.pth  ->  resnet50.pth.json, written by scripts/export_weights.py and read by whatever scores the file.
"""

import json
from dataclasses import replace
from pathlib import Path

from configs.schema import FinetuneConfig
from models.weights import WeightsFile, class_names
from utils.config import from_dict, to_dict
from utils.errors import UserError, first_line
from utils.files import write_atomically

# Of the JSON -> of a config.
KEYS = {
    "model": "model.name", "mean": "data.mean", "std": "data.std", "val_resize_size": "data.val_resize_size",
    "val_crop_size": "data.val_crop_size", "interpolation": "data.interpolation", "loss": "loss.name",
}  # fmt: skip
MARK = "masked frequency modelling: weights"  # what `kind` says in a JSON of ours


def description_path(weights: str | Path) -> Path:
    return Path(f"{weights}.json")


def write_description(weights: Path, content: dict) -> Path:
    """The JSON beside a file of weights, as a whole. Returns: its path.

    Args:
        content: `classes` in the order of the outputs, the keys of KEYS, and whatever else a reader may want.
    """
    path = description_path(weights)
    encoded = json.dumps({"kind": MARK, **content}, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(encoded.encode(errors="surrogateescape")))
    return path


def with_description(file: WeightsFile) -> WeightsFile:
    """The weights with what the JSON beside their file says, if the file itself tells nothing and there is one of ours.

    Raises: UserError if the JSON is ours and cannot be read, or says something that no config may hold.
    """
    path = description_path(file.path)
    if file.config is not None or not path.is_file():
        return file
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError) as error:
        if MARK.encode() not in path.read_bytes()[:200]:
            return file
        raise UserError(f"{path}: cannot be read ({first_line(error)}); export the weights again") from error
    if not isinstance(content, dict) or content.get("kind") != MARK:
        return file
    sections: dict[str, dict] = {}
    for key, knob in KEYS.items():
        if content.get(key) is not None:
            section, name = knob.split(".")
            sections.setdefault(section, {})[name] = content[key]
    checked = to_dict(from_dict(FinetuneConfig, sections, str(path)))
    config = {}
    for section, keys in sections.items():
        config[section] = {key: checked[section][key] for key in keys}
    data = config.get("data", {})
    return replace(
        file, layout=f"{file.layout}, with {path.name} beside it", config=config,
        classes=class_names(content, str(path)), mean=data.get("mean"), std=data.get("std"),
    )  # fmt: skip
