"""Checkpoints whose config, classes or counts are odd: every script that reads one says what is wrong with it."""

from __future__ import annotations

import pytest
import torch

from configs.schema import FinetuneConfig, PretrainConfig
from scripts import export_weights
from scripts.figures import plot
from scripts.figures.reconstruct import Pretrained
from tests.support.helpers import data_set
from tests.support.launch import finetune
from tests.support.weights import classifier
from utils.config import parse_command_line, to_dict
from utils.errors import UserError
from utils.run.reading import read_json, read_run

pytestmark = pytest.mark.process

PRETRAINING = to_dict(parse_command_line(PretrainConfig, ["model.name=resnet18"], "a test"))
FINETUNING = to_dict(parse_command_line(FinetuneConfig, ["model.name=resnet18"], "a test"))
ODD_CONFIGS = {
    "no mapping": 5,
    "a list": ["filter"],
    "a key that is no text": {3: {}},
    "a section that is none": PRETRAINING | {"filter": [1]},
    "a type": PRETRAINING | {"model": {"name": 3}},
    "another trunk": PRETRAINING | {"model": PRETRAINING["model"] | {"name": "vit_b_16"}},
    "a knob of the future": PRETRAINING | {"filter": {"shape": "star"}},
    "not finite": PRETRAINING | {"filter": {"radius": float("nan")}},
    "control characters": PRETRAINING | {"model": {"name": "resnet18\x1b[31m"}},
    "a tensor": PRETRAINING | {"filter": {"radius": torch.zeros(3)}},
}


@pytest.fixture(scope="module")
def weights():
    return classifier("resnet18", 3).state_dict()


def odd_checkpoint(folder, weights, **content):
    torch.save({"model": weights, "step": 3, "images": 9} | content, folder / "odd.pt")
    return str(folder / "odd.pt")


@pytest.mark.parametrize("config", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_an_odd_config_is_named_by_scripts(config, weights, tmp_path):
    path = odd_checkpoint(tmp_path, weights, config=config)
    for read in (Pretrained.read, lambda odd: export_weights.export_weights(odd, tmp_path / "out.pth")):
        with pytest.raises(UserError) as raised:
            read(path)
        assert len(str(raised.value)) < 300 and "\x1b" not in str(raised.value)
    assert not (tmp_path / "out.pth").exists()


def test_a_checkpoint_of_a_finetuning_has_nothing_to_reconstruct(weights, tmp_path):
    with pytest.raises(UserError, match="not a pretraining checkpoint"):
        Pretrained.read(odd_checkpoint(tmp_path, weights, config=FINETUNING))


@pytest.mark.parametrize("classes", ["cat", ["a", "a", "b"], [1, 2, 3], {}, []])
def test_odd_classes_are_named(classes, weights, tmp_path):
    path = odd_checkpoint(tmp_path, weights, config=FINETUNING, classes=classes)
    images = data_set(tmp_path / "images", train=2, val=2)
    with pytest.raises(UserError, match="`classes` is"):
        finetune(["--eval-only", "--weights", path, "--data-path", str(images), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out/evaluation.json").exists()


@pytest.mark.parametrize("counts", [{"step": "three"}, {"images": [9]}, {"step": None, "images": None}])
def test_odd_counts_do_not_keep_weights_from_being_exported(counts, weights, tmp_path):
    path = odd_checkpoint(tmp_path, weights, config=FINETUNING, classes=["a", "b", "c"], **counts)
    export_weights.export_weights(path, tmp_path / "out.pth", layout="code-a")
    assert torch.load(tmp_path / "out.pth", weights_only=True)["epoch"] == FINETUNING["schedule"]["epochs"] - 1


@pytest.mark.parametrize("model", [{"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()}, {"a": 1}, 3])
def test_plot_names_a_checkpoint_without_kernels_to_draw(model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("filter: {radius: 3}")
    torch.save({"model": model, "config": PRETRAINING}, tmp_path / "checkpoints/step_00000001.pt")
    with pytest.raises(UserError, match=r"step_00000001\.pt: "):
        plot.kernels_figure("run", read_run(tmp_path))


@pytest.mark.parametrize("text", ['{"steps": ', "[1, 2]", "\x00"])
def test_a_damaged_result_is_named(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json: "):
        read_json(tmp_path / "result.json")
