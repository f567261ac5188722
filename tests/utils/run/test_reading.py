"""Reading what runs have left: which kind a config is of, results that are not there yet, lines cut short."""

from __future__ import annotations

import pytest
import torch

from configs.schema import FinetuneConfig, PretrainConfig
from tests.support.launch import ROOT
from utils.config import to_dict, to_yaml
from utils.errors import UserError
from utils.run.log_file import read_lines
from utils.run.reading import differing, flat, is_pretraining, read_json, read_run, resolved_config

OLD_CONFIGS = sorted((ROOT / "scripts/results/sample_loss_by_init").rglob("*.yaml"))


def test_a_config_is_of_pretraining_by_its_filter_nested_or_flat():
    assert is_pretraining(to_dict(PretrainConfig())) and is_pretraining(flat(to_dict(PretrainConfig())))
    assert not is_pretraining(to_dict(FinetuneConfig())) and not is_pretraining(flat(to_dict(FinetuneConfig())))
    assert not is_pretraining({})


@pytest.mark.parametrize("config", [PretrainConfig(), FinetuneConfig()], ids=["pretrain", "finetune"])
def test_a_config_is_the_same_from_a_checkpoint_a_folder_and_a_file(config, tmp_path):
    torch.save({"config": to_dict(config)}, tmp_path / "last.pt")
    (tmp_path / "config.yaml").write_text(to_yaml(to_dict(config)))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    expected = flat(to_dict(config))
    for path in (tmp_path, tmp_path / "config.yaml", tmp_path / "last.pt"):
        assert resolved_config(str(path)) == expected
    run = read_run(tmp_path)
    assert run.config == expected and run.log == [{"step": 1, "loss": 0.5}] and run.result == run.sweep == {}
    assert run.kind == ("pretraining" if isinstance(config, PretrainConfig) else "finetuning")


def test_a_config_with_keys_of_neither_kind_alone_is_what_its_name_says(tmp_path):
    for name, key in (("my_finetune", "data.mixup_alpha"), ("anything", "filter.radius")):
        (tmp_path / f"{name}.yaml").write_text("schedule: {epochs: 30}\n")
        assert key in resolved_config(str(tmp_path / f"{name}.yaml"))


@pytest.mark.parametrize("path", OLD_CONFIGS, ids=lambda path: path.name)
def test_configs_from_before_a_knob_was_made_have_its_default(path):
    assert "momentum" not in path.read_text()
    config = resolved_config(str(path))
    assert (config["optimizer.name"], config["optimizer.momentum"]) == ("adamw", 0.9)
    assert is_pretraining(config) == ("pretrain" in path.name)


def test_an_unknown_key_is_an_error(tmp_path):
    (tmp_path / "typo.yaml").write_text("optimizer: {learning_rat: 1.0}\n")
    with pytest.raises(UserError, match=r"optimizer.learning_rat = .*unknown key.*optimizer.learning_rate"):
        resolved_config(str(tmp_path / "typo.yaml"))


def test_a_checkpoint_without_a_config_is_an_error(tmp_path):
    torch.save({"model": {}}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights.pt: holds no config; give a checkpoint of pretrain.py or"):
        resolved_config(str(tmp_path / "weights.pt"))


def test_lines_of_each_kind_are_told_apart_and_those_cut_short_are_left_out(tmp_path):
    lines = [
        '{"step": 1, "loss": 0.5}',
        '{"step": 1, "replaced_images": 1}',
        '{"step": 1, "split": "val", "weights": "model", "top1": 50.0, "loss": 1.5}',
        '{"step": 2, "loss": null}',
        "null",
        '{"step": 3, "lo',
    ]
    (tmp_path / "config.yaml").write_text(to_yaml(to_dict(FinetuneConfig())))
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert run.log == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert [line["top1"] for line in run.evaluations] == [50.0]
    assert read_lines(tmp_path / "nowhere.jsonl") == [] and read_json(tmp_path / "nowhere.json") == {}


def test_keys_that_one_side_alone_has_differ():
    assert differing({"a": 1, "b": 2}, {"b": 2, "c": None}) == {"a": (1, "-"), "c": ("-", None)}
