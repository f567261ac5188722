"""Where the result of an evaluation goes: beside the weights that were evaluated, with everything that decided it.

RUN/checkpoints/step_00000123.pt   ->  RUN/evaluations/KIND_step_00000123.json
DIR/file.pth                       ->  DIR/evaluations/KIND_file.json
torchvision:IMAGENET1K_V2          ->  KIND_torchvision_IMAGENET1K_V2.json in run.output_dir

With run.output_dir on the command line every result goes there, and so does one whose own folder cannot be written. A
result that other settings decided is never replaced: the new file takes the further name …-2.json, then …-3.json.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.schema import FinetuneConfig
from data.folder import ImageFolder
from data.identity import identity
from models.description import weights_fingerprint
from models.weights import WeightsFile
from utils.run.job import Job
from utils.run.provenance import write_json
from utils.run.reading import read_json


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, and where its results go.

    Args:
        file: the weights, as models.weights.read_weights gives them.
        weights: which of the file's: "model" or "ema".
        model_name: of the network that took them.
        output_dir: run.output_dir.
        asked_for_output_dir: whether the user gave run.output_dir on the command line.
    """

    file: WeightsFile
    weights: str
    model_name: str
    output_dir: Path
    asked_for_output_dir: bool

    def folders(self) -> list[Path]:
        """Where its results may go, the best first; the second is for where the first cannot be written."""
        path = Path(self.file.path)
        if self.asked_for_output_dir or not path.is_file():
            return [self.output_dir]
        beside = path.parent
        if beside.name == "checkpoints":
            beside = beside.parent
        return [beside / "evaluations", self.output_dir]

    def stem(self) -> str:
        """How its files are named after it. last.pt is called what it links to, which stays when last.pt moves on."""
        path = Path(self.file.path)
        if not path.is_file():
            return re.sub(r"[^\w.-]", "_", self.file.path)
        if path.is_symlink() and (path.parent / os.readlink(path)).parent == path.parent:
            path = Path(os.readlink(path))
        return path.stem


def write_evaluation(
    kind: str, job: Job, evaluated: Evaluated, decided_by: Mapping[str, object], results: Mapping[str, object]
) -> Path:
    """Write a result, by rank 0. The same weights and settings replace their earlier result, as a whole.

    Args:
        kind: begins the file's name: "evaluation", "frequency_sweep", "probe", …
        decided_by: every setting that decides the numbers, as `settings_of` begins it: plain data.
        results: the rows and what belongs to them: further keys of the file.
    Returns: the file's path, on all ranks.
    Raises: OSError if it can be written nowhere, UserError if a number is not finite.
    """
    path = None
    if job.world.rank == 0:
        fingerprint = weights_fingerprint(evaluated.file.weights)
        decisions = {"weights": fingerprint, "model": evaluated.model_name, **decided_by}
        content = {
            "kind": kind,
            "checkpoint": {
                "path": evaluated.file.path, "step": evaluated.file.step, "weights": evaluated.weights,
                "fingerprint": fingerprint, "layout": evaluated.file.layout,
            },
            "decided_by": json.loads(json.dumps(decisions)),  # as it will be read
            **results,
            "host": socket.gethostname(),
            "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "seconds": round(time.monotonic() - job.started, 1),
        }  # fmt: skip
        path = write_into_first(job, evaluated.folders(), f"{kind}_{evaluated.stem()}", content)
    return job.world.gather(path)[0]


def write_into_first(job: Job, folders: list[Path], name: str, content: dict) -> Path:
    """Write into the first of the folders that can be written; a file system full or read-only is said."""
    for folder in folders[:-1]:
        try:
            return write_into(folder, name, content)
        except OSError as error:
            job.say(f"warning: {folder}: cannot be written ({error.strerror}); the result goes into {folders[-1]}")
    return write_into(folders[-1], name, content)


def write_into(folder: Path, name: str, content: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        path = free_path(folder, name, content["decided_by"])
        write_json(path, content)
    return path


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other evaluation chooses a name in this folder, where the file system has locks."""
    descriptor = None
    try:
        with contextlib.suppress(OSError):  # some let nobody open a folder
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def free_path(folder: Path, name: str, decided_by: dict) -> Path:
    """The first of name.json, name-2.json, … that is not there, or that the same settings have decided."""
    number = 1
    while True:
        further = "" if number == 1 else f"-{number}"
        path = folder / f"{name}{further}.json"
        if not path.exists() or decisions_in(path) == decided_by:
            return path
        number += 1


def decisions_in(path: Path) -> object:
    """What decided the result in a file; None if it does not say, or is not ours."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return content.get("decided_by")


def settings_of(config: FinetuneConfig, folders: Mapping[str, ImageFolder]) -> dict[str, object]:
    """What decides the score of any evaluation of images: which they are, and how they are seen.

    Args:
        folders: name of a set, such as "val" -> its images.
    """
    data = {}
    for name, folder in folders.items():
        facts = identity(folder)
        contents = hashlib.sha256("".join(facts["sampled_files"]).encode()).hexdigest()[:12]
        data[name] = {
            "images": facts["images"], "classes": len(facts["classes"]), "fingerprint": facts["fingerprint"],
            "contents": contents,  # of a sample of the files: a copy at another resolution has the same names
        }  # fmt: skip
    options = config.data
    return {
        "data": data, "val_resize_size": list(options.val_resize_size), "val_crop_size": options.val_crop_size,
        "interpolation": options.interpolation, "mean": list(options.mean), "std": list(options.std),
    }  # fmt: skip
