"""The keys in which two configs differ.

python scripts/config_diff.py configs/pretrain_resnet50.yaml configs/pretrain_resnet50_paper.yaml
python scripts/config_diff.py runs/finetune_resnet50_bce runs/finetune_resnet50_ce
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.config import yaml_text
from utils.console import say
from utils.distributed import run_entry
from utils.run.reading import differing, resolved_config


def config_diff(before: str, after: str) -> list[str]:
    """A line for each key that differs; "-" stands for a key that only one of the two configs has.

    Args:
        before, after: YAML files, folders of runs, or checkpoints.
    """
    pairs = differing(resolved_config(before), resolved_config(after))
    return [f"{key}: {yaml_text(old)} -> {yaml_text(new)}" for key, (old, new) in pairs.items()]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The keys in which two configs differ.")
    parser.add_argument("configs", nargs=2, metavar="CONFIG", help="a YAML file, a run's folder or a checkpoint")
    before, after = parser.parse_args(argv).configs
    say("\n".join(config_diff(before, after)) or "no key differs")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
