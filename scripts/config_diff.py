"""The keys in which two configs differ.

python scripts/config_diff.py configs/pretrain_resnet50.yaml configs/pretrain_resnet50_paper.yaml
python scripts/config_diff.py runs/finetune_resnet50_bce runs/finetune_resnet50_ce
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import build, from_dict, knobs, read_yaml, show, to_dict
from utils.distributed import run_entry
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.run.job import flat


def resolved(path: str) -> dict:
    """All of a config, defaults too, as "section.key": value.

    Args:
        path: a YAML file, a run's folder or a checkpoint.
    Raises: UserError if it is none of these or not valid.
    """
    if path.endswith((".pt", ".pth")):
        saved = read_checkpoint(path).get("config")
        if not isinstance(saved, dict):
            raise UserError(f"{path}: holds no config; give a checkpoint of pretrain.py or finetune.py")
        return flat(to_dict(from_dict(PretrainConfig if "filter" in saved else FinetuneConfig, saved, path)))
    file = Path(path, "config.yaml") if Path(path).is_dir() else Path(path)
    values = read_yaml(str(file))
    kinds = [FinetuneConfig, PretrainConfig] if "finetune" in file.name else [PretrainConfig, FinetuneConfig]
    # A YAML that names no key of one kind alone is taken for what its name says.
    fitting = [kind for kind in kinds if values.keys() <= knobs(kind).keys()]
    return flat(to_dict(build((fitting or kinds)[0], values)))


def read_json(path: Path) -> dict:
    """What the file holds; nothing, as of a run that has not finished, where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def config_diff(one: str, other: str) -> list[str]:
    """A line for each key that differs; "-" stands where only one of the two has it."""
    return [f"{key}: {show(a)} -> {show(b)}" for key, (a, b) in differing(resolved(one), resolved(other)).items()]


def differing(before: dict, after: dict) -> dict[str, tuple]:
    """key: (before, after) of each key that differs, "-" standing where only one has it."""
    pairs = {key: (before.get(key, "-"), after.get(key, "-")) for key in before | after}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The keys in which two configs differ.")
    parser.add_argument("configs", nargs=2, metavar="CONFIG", help="a YAML file, a run's folder or a checkpoint")
    print("\n".join(config_diff(*parser.parse_args(argv).configs)) or "no key differs")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
