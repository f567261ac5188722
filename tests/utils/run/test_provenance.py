"""What is written beside a run: a config that is itself one, and results that say where they are from."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
import torchvision

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import parse_command_line, to_dict
from utils.errors import UserError
from utils.run.provenance import write_config, write_json


def config(*words, config_class=PretrainConfig):
    return parse_command_line(config_class, list(words), "a test")


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["optimizer.learning_rate=1e-4", "schedule.warmup_learning_rate=1.2e-9", "data.crop_ratio=[0.08, 1]"],
        ["run.output_dir=runs/größe # 1: [x]", "data.data_path=no", "train.images_per_device=null"],
        ["run.output_dir=1e3", "data.data_path='012'", "run.weights=null.pt"],
    ],
)
def test_config_yaml_is_itself_the_config(tmp_path, config_class, words):
    expected = config(*words, config_class=config_class)
    write_config(tmp_path / "new/run", to_dict(expected))
    path = str(tmp_path / "new/run/config.yaml")
    assert config("--config", path, config_class=config_class) == expected


def commit():
    """The commit of this clone; in a copy without git there is none."""
    here = str(Path(__file__).parent)
    asked = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"


def test_config_yaml_says_what_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config", "a b.yaml", "run.seed=3"])
    monkeypatch.setenv("WORLD_SIZE", "4")
    write_config(tmp_path, to_dict(config()))
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    comments = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    assert comments["command"] == shlex.join(sys.argv)
    assert comments["commit"].startswith(commit())
    assert comments["torch"] == torch.__version__
    assert comments["torchvision"] == torchvision.__version__
    assert comments["numpy"] == numpy.__version__
    assert comments["python"] == ".".join(map(str, sys.version_info[:3]))
    assert comments["world_size"] == "4"
    assert comments["device"]


def test_a_command_of_several_lines_is_still_a_comment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "run.output_dir=two\nlines"])
    write_config(tmp_path, to_dict(config()))
    assert config("--config", str(tmp_path / "config.yaml")) == config()


def test_result_is_json_with_its_provenance(tmp_path):
    path = tmp_path / "run/result.json"
    for top1 in (1.5, 2.5):
        write_json(path, {"results": [{"top1": top1}]})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["results"] == [{"top1": 2.5}]
    assert written["provenance"]["torch"] == torch.__version__
    assert written["provenance"]["commit"].startswith(commit())
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_failing_result_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"top1": 1})
    with pytest.raises(TypeError):
        write_json(path, {"top1": torch.ones(1)})
    assert json.loads(path.read_text())["top1"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")], {"loss": float("-inf")}])
def test_a_number_that_is_not_finite_is_refused_and_the_file_before_stays(value, tmp_path):
    write_json(tmp_path / "result.json", {"loss": 1.5})
    with pytest.raises(UserError, match=r"result\.json: not written: one of its numbers is not finite"):
        write_json(tmp_path / "result.json", {"loss": value})
    assert json.loads((tmp_path / "result.json").read_text())["loss"] == 1.5
