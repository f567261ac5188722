"""The sizes that a file of weights is scored at: the command line's, else the file's own, else the recipe's."""

from configs.schema import FinetuneConfig
from utils.config import with_value
from utils.errors import UserError
from utils.knobs import yaml_text
from utils.run.reading import is_pretraining

KEYS = ("data.val_resize_size", "data.val_crop_size", "data.interpolation")
SHARE_OF_SIDE = 0.875  # that the centre crop is of the resized short side, as 224 of 256


def resize_size_for(crop_size: int) -> int:
    """The short side, in pixels, that images are resized to where only their crop is given."""
    return round(crop_size / SHARE_OF_SIDE)


def saved_sizes(file_config: dict | None) -> dict:
    """The sizes in a file's config, by key; those of a pretraining are those of its training crops."""
    data = (file_config or {}).get("data", {})
    if is_pretraining(file_config or {}) and "train_crop_size" in data:
        crop_size = data["train_crop_size"]
        data = data | {"val_resize_size": [resize_size_for(crop_size)], "val_crop_size": crop_size}
    sizes = {}
    for key in KEYS:
        name = key.removeprefix("data.")
        if name in data:
            value = data[name]
            sizes[key] = tuple(value) if isinstance(value, list) else value
    return sizes


def settle_sizes(config: FinetuneConfig, file_config: dict | None, given: frozenset[str]) -> tuple[FinetuneConfig, str]:
    """The config with the file's sizes where the command line gives none, and a line about where each is from.

    Args:
        file_config: of the training that wrote the file, nested; None: unknown.
        given: the keys that the command line itself sets.
    Raises: UserError if they do not go together.
    """
    saved = saved_sizes(file_config)
    if config.run.probe and "data.val_resize_size" in saved:  # a probe takes one
        saved["data.val_resize_size"] = saved["data.val_resize_size"][:1]
    parts, sources = [], {}
    for key in KEYS:
        source = "the recipe's or the default"
        if key in given:
            source = "the command line's"
        elif key in saved:
            source = "the file's"
            config = with_value(config, key, saved[key])
        sources[key] = source
        parts.append(f"{key} {yaml_text(getattr(config.data, key.removeprefix('data.')))}, {source}")
    problems = config.size_problems()
    if problems:
        key, problem = problems[0]
        section, name = key.split(".")
        value = yaml_text(getattr(getattr(config, section), name))
        raise UserError(f"{key} = {value} ({sources.get(key, 'as given')}): {problem}")
    return config, f"sizes: {'; '.join(parts)}"
