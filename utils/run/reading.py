"""Reading what runs have left in their folders: configs, results, log lines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import build, from_dict, knobs, read_yaml, to_dict
from utils.errors import UserError, first_line
from utils.run.checkpoint import LAST, newest_for_last, read_checkpoint
from utils.run.log_file import is_evaluation_line, is_training_line, read_lines
from utils.saved_config import refuse_odd_values

FlatConfig = dict[str, Any]  # "section.key" -> value


@dataclass(frozen=True)
class RunFolder:
    """What the folder of a run holds."""

    folder: Path
    config: FlatConfig
    log: list[dict]  # the lines of log.jsonl about training steps
    evaluations: list[dict]  # those about evaluations during training: one for each weights and resize size
    result: dict  # of result.json; empty if the run has not finished
    sweep: dict  # of the newest frequency sweep; empty if there is none

    @property
    def kind(self) -> str:
        return "pretraining" if is_pretraining(self.config) else "finetuning"

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest checkpoint is, if the run has written one."""
        return Path(newest_for_last(self.folder / "checkpoints" / LAST))


def read_run(folder: Path) -> RunFolder:
    """Raises: UserError if it is not the folder of a run."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run (it has no config.yaml); give folders that pretrain.py or finetune.py wrote")
    lines = read_lines(folder / "log.jsonl")
    return RunFolder(
        folder=folder,
        config=resolved_config(str(folder)),
        log=[line for line in lines if is_training_line(line)],
        evaluations=[line for line in lines if is_evaluation_line(line)],
        result=read_json(folder / "result.json"),
        sweep=newest_sweep(folder),
    )


def newest_sweep(folder: Path) -> dict:
    """The newest frequency sweep of a run; empty if there is none."""
    files = [*folder.glob("evaluations/frequency_sweep*.json"), *folder.glob("frequency_sweep*.json")]
    if not files:
        return {}
    return read_json(max(files, key=lambda path: path.stat().st_mtime_ns))


def is_pretraining(config: dict) -> bool:
    """Whether a config, nested or flat, is one of pretraining: it alone has the section `filter`."""
    return any(key.partition(".")[0] == "filter" for key in config)


def resolved_config(path: str) -> FlatConfig:
    """Every key of a config with its value, defaults included.

    Args:
        path: a YAML file, the folder of a run, or a checkpoint.
    Raises: UserError if it is none of these, or not valid.
    """
    if path.endswith((".pt", ".pth")):
        return flat(to_dict(checkpoint_config(path, read_checkpoint(path))))
    file = Path(path)
    if file.is_dir():
        file = file / "config.yaml"
    values = read_yaml(str(file))
    config_classes = [PretrainConfig, FinetuneConfig]
    if "finetune" in file.name:  # decides where all keys are known to both classes, or some to neither
        config_classes.reverse()
    for config_class in config_classes:
        if values.keys() <= knobs(config_class).keys():
            return flat(to_dict(build(config_class, values)))
    return flat(to_dict(build(config_classes[0], values)))


def checkpoint_config(path: str, content: dict) -> PretrainConfig | FinetuneConfig:
    """The config within a checkpoint of this project. Raises: UserError if there is none, or it is not valid."""
    saved = content.get("config")
    if not isinstance(saved, dict):
        raise UserError(f"{path}: holds no config; give a checkpoint of pretrain.py or finetune.py")
    refuse_odd_values(saved, path)
    if is_pretraining(saved):
        return from_dict(PretrainConfig, saved, path)
    return from_dict(FinetuneConfig, saved, path)


def read_json(path: Path) -> dict:
    """The content of a JSON file; empty if there is no such file, as before a run has finished.

    Raises: UserError if it holds anything but an object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); remove it and finish or evaluate the run again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not what a run writes; remove it")
    return content


def flat(config: dict) -> dict[str, object]:
    """{section: {key: value}} as {"section.key": value}."""
    values = {}
    for section, keys in config.items():
        for key, value in keys.items():
            values[f"{section}.{key}"] = value
    return values


def differing(before: dict, after: dict) -> dict[str, tuple]:
    """key -> (before, after) for each key that differs; "-" stands for a key that only one of the two has."""
    pairs = {}
    for key in before | after:
        pair = before.get(key, "-"), after.get(key, "-")
        if pair[0] != pair[1]:
            pairs[key] = pair
    return pairs
