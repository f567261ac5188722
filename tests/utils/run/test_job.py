"""A run's folder: what is continued, what is refused, and what is written down."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import torchvision

from configs.schema import FREE_TO_CHANGE, FinetuneConfig, PretrainConfig
from utils.config import parse_command_line, to_dict
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints
from utils.run.job import find_resume, read_resume, write_config, write_json


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run/checkpoints", 3, None, 15)


def config(*words, config_class=PretrainConfig):
    return parse_command_line(config_class, list(words), "a test")


# Finding what to resume.


@pytest.mark.parametrize("resume", [None, "auto"])
def test_an_empty_folder_starts_anew(checkpoints, resume):
    assert find_resume(checkpoints, resume) is None


def test_a_folder_in_use_is_refused_unless_told_to_resume(checkpoints):
    checkpoints.save(5, {})
    newest = checkpoints.save(10, {})
    with pytest.raises(UserError, match=r"step_00000010\.pt.*--resume auto.*--output-dir") as caught:
        find_resume(checkpoints, None)
    assert str(checkpoints.folder.parent) in str(caught.value)
    assert find_resume(checkpoints, "auto") == newest


def test_a_path_is_taken_as_it_is(checkpoints):
    checkpoints.save(5, {})
    assert find_resume(checkpoints, "other/step_00000003.pt") == Path("other/step_00000003.pt")


# Resuming.


def saved_by(checkpoints, *words, **content):
    return checkpoints.save(5, {"model": {}, "optimizer": {}, "config": to_dict(config(*words))} | content)


def test_the_same_config_resumes(checkpoints):
    path = saved_by(checkpoints, "--epochs", "50")
    assert read_resume(path, config("--epochs", "50"), FREE_TO_CHANGE, {})["step"] == 5


def test_another_config_is_refused_with_every_key_that_differs(checkpoints):
    path = saved_by(checkpoints, "optimizer.learning_rate=1e-3")
    words = ["optimizer.learning_rate=2e-3", "data.crop_ratio=[0.3, 1.0]", "data.workers=3", "logging.every_steps=7"]
    with pytest.raises(UserError) as caught:
        read_resume(path, config(*words), FREE_TO_CHANGE, {})
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert "(data.crop_ratio: [0.2, 1.0] -> [0.3, 1.0]; optimizer.learning_rate: 0.001 -> 0.002)" in told
    assert "--allow-config-change" in told
    assert read_resume(path, config(*words, "--allow-config-change"), FREE_TO_CHANGE, {})["step"] == 5


@pytest.mark.parametrize(
    "word",
    [
        "run.output_dir=elsewhere", "data.data_path=/data", "data.workers=3", "checkpoint.every_steps=9",
        "checkpoint.keep=1", "logging.every_steps=7", "run.timeout_minutes=1", "run.resume=auto",
    ],
)  # fmt: skip
def test_keys_that_leave_the_mathematics_alone_may_change(checkpoints, word):
    path = saved_by(checkpoints)
    assert read_resume(path, config(word), FREE_TO_CHANGE, {})["step"] == 5
    with pytest.raises(UserError, match=word.partition("=")[0]):
        read_resume(path, config(word), frozenset(), {})


def changes_the_result():
    """Every other knob, with a value other than its default."""
    values = {str: "x", bool: True, int: 64, float: 0.123, list: [0.11, 0.22, 0.33]}
    for section, keys in to_dict(config()).items():
        for key, value in keys.items():
            if f"{section}.{key}" not in FREE_TO_CHANGE:
                kind = int if value is None else type(value)
                yield section, key, not value if kind is bool else values[kind]


@pytest.mark.parametrize(("section", "key", "value"), changes_the_result())
def test_every_other_key_may_not(checkpoints, section, key, value):
    now = config()
    now = replace(now, **{section: replace(getattr(now, section), **{key: value})})
    with pytest.raises(UserError, match=rf"{section}\.{key}: .* -> "):
        read_resume(saved_by(checkpoints), now, FREE_TO_CHANGE, {})


def test_what_computes_the_result_is_among_them():
    knobs = {f"{section}.{key}" for section, key, _ in changes_the_result()}
    assert {"run.seed", "data.crop_ratio", "filter.radius", "train.batch_size", "schedule.epochs"} <= knobs


def test_a_knob_newer_than_the_checkpoint_had_its_default(checkpoints):
    saved = to_dict(config())
    del saved["loss"]["scope"]
    path = checkpoints.save(5, {"model": {}, "optimizer": {}, "config": saved})
    assert read_resume(path, config(), FREE_TO_CHANGE, {})["step"] == 5
    with pytest.raises(UserError, match=r"loss\.scope: removed -> all"):
        read_resume(path, config("loss.scope=all"), FREE_TO_CHANGE, {})


def test_another_data_set_is_refused(checkpoints):
    path = saved_by(checkpoints, classes=["ant", "bee"])
    assert read_resume(path, config(), FREE_TO_CHANGE, {"classes": ["ant", "bee"], "config": "any"})["step"] == 5
    for classes in (["bee", "ant"], ["ant"]):
        with pytest.raises(UserError, match="was trained on other data: classes differ"):
            read_resume(path, config("--allow-config-change"), FREE_TO_CHANGE, {"classes": classes})


@pytest.mark.parametrize("content", [{"model": {}}, {"model": {}, "config": {}}])
def test_weights_alone_cannot_be_resumed(checkpoints, content):
    path = checkpoints.save(5, content)
    with pytest.raises(UserError, match="no training state to resume; .*--weights"):
        read_resume(path, config("--allow-config-change"), FREE_TO_CHANGE, {})


# Writing down.


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
