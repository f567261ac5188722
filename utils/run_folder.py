"""A run's folder: refuse one in use, find what to resume, write down what was run."""

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import torch
import torchvision

from utils.checkpoint import Checkpoints, read_checkpoint, write_atomically
from utils.config import to_dict, to_yaml
from utils.errors import UserError


def find_resume(checkpoints: Checkpoints, resume: str | None) -> Path | None:
    """The checkpoint to continue from.

    Args:
        resume: a path, "auto" (the newest of the run's own, if any), or None.
    Raises: UserError if the folder holds checkpoints and nothing is said of resuming.
    """
    newest = checkpoints.newest()
    if resume is None and newest:
        raise UserError(
            f"run.output_dir = {checkpoints.folder.parent}: holds checkpoints of an earlier run ({newest.name}); "
            "continue it with --resume auto, or give another --output-dir"
        )
    return newest if resume == "auto" else resume and Path(resume)


def read_resume(path: Path, config, free_keys: frozenset[str], content: dict) -> dict:
    """The checkpoint to resume, if it belongs to the same computation on the same images.

    Args:
        free_keys: "section.key" of knobs that may differ; with run.allow_config_change all may.
        content: what else checkpoints hold; it must be as it was.
    Raises: UserError listing what differs.
    """
    saved = read_checkpoint(path)
    if "optimizer" not in saved or "step" not in saved:
        raise UserError(f"{path}: holds no training state to resume; start from its weights with --weights")
    # A checkpoint from before a knob was made had its default.
    before, now = flat(to_dict(type(config)())) | flat(saved["config"]), flat(to_dict(config))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free_keys]
    if changed and not config.run.allow_config_change:
        listed = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise UserError(
            f"{path}: was trained with another config ({listed}); take it back, or continue with --allow-config-change"
        )
    for key, value in content.items():
        if key != "config" and saved.get(key) != value:
            raise UserError(f"{path}: was trained on other data: {key} differ; resume with the data set it began with")
    return saved


def flat(config: dict) -> dict:
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


def provenance() -> dict[str, str]:
    """What ran where: command, commit, versions, machine."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown (no git, or not a clone)"
    return {
        "command": shlex.join(sys.argv),
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }


def write_config(folder: Path, config: dict) -> None:
    """config.yaml: itself a config, with the provenance in comments above it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "".join(f"# {key}: {' '.join(value.splitlines())}\n" for key, value in provenance().items())
    (folder / "config.yaml").write_text(header + to_yaml(config), encoding="utf-8")


def write_json(path: Path, content: dict) -> None:
    """Indented, with the provenance, replacing the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content | {"provenance": provenance()}, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
