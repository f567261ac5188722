"""Where a run's files come from: command, commit, versions; written beside its config and in its results."""

import functools
import hashlib
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

from utils.config import to_yaml
from utils.errors import UserError
from utils.files import write_atomically


@functools.cache
def commit() -> str:
    """The git commit of the running code. Kept from the first call on, since the checkout may change during the run."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git, or not a clone)"


@functools.cache
def code_fingerprint() -> str:
    """A hash of every Python file that a training may run. Unlike the commit, it sees an edited checkout, or a copy."""
    root = Path(__file__).parents[2]
    files = [root / "pretrain.py", root / "finetune.py"]
    for folder in ("configs", "data", "losses", "models", "utils"):
        files += (root / folder).rglob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of the libraries that a training computes with."""
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": numpy.__version__}


def provenance() -> dict[str, str]:
    """What ran: command, commit, versions, machine, number of ranks."""
    return {
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "python": platform.python_version(),
        **versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }


def write_config(folder: Path, config: dict) -> None:
    """config.yaml: itself a config, with the provenance in comments above it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {key}: {' '.join(value.splitlines())}\n" for key, value in provenance().items()]
    content = ("".join(lines) + to_yaml(config)).encode(errors="backslashreplace")  # a name may be no UTF-8
    write_atomically(folder / "config.yaml", lambda file: file.write(content))


def write_json(path: Path, content: dict) -> None:
    """Indented, with the provenance, replacing the file as a whole.

    Raises: UserError if a number is not finite: JSON has no NaN.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        encoded = json.dumps(content | {"provenance": provenance()}, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise UserError(f"{path}: not written: one of its numbers is not finite ({error})") from error
    write_atomically(path, lambda file: file.write(encoded.encode()))
