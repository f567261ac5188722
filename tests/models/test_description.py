"""The JSON beside a file of weights: read back as it was written, and never more trusted than a config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs.schema import FinetuneConfig
from models.description import description_path, weights_fingerprint, write_description
from models.weights import WeightsFile, read_weights, with_description
from scripts.export_files import description_of
from tests.support.weights import ALONE, Counts, classifier, counts, load
from utils.config import to_dict
from utils.errors import UserError

CLASSES = ["ant", "b é", "\udcff"]  # the last: a folder's name that is no UTF-8


def file_at(path: Path, **more) -> WeightsFile:
    return WeightsFile(str(path), "a layout", {}, **more)


def test_what_is_written_is_read_back(tmp_path):
    config = FinetuneConfig()
    path = write_description(tmp_path / "w.pth", description_of(config, CLASSES, {"part": "classifier"}))
    assert path == description_path(tmp_path / "w.pth") == tmp_path / "w.pth.json"
    file = with_description(file_at(tmp_path / "w.pth"))
    assert (
        file.classes == CLASSES and file.model_name == "resnet50" and file.layout.endswith("with w.pth.json beside it")
    )
    assert (file.mean, file.std) == (list(config.data.mean), list(config.data.std))
    assert file.config["data"]["val_resize_size"] == [235] and file.config["data"]["val_crop_size"] == 224
    assert file.config["loss"] == {"name": "bce"}


def test_a_checkpoint_of_ours_tells_by_itself(tmp_path):
    content = {"model": {"fc.bias": torch.zeros(2)}, "config": to_dict(FinetuneConfig()), "classes": ["a", "b"]}
    torch.save(content, tmp_path / "w.pt")
    write_description(tmp_path / "w.pt", {"classes": ["b", "c"], "mean": [0.1] * 3})
    file = read_weights(str(tmp_path / "w.pt"), "resnet50", False, ALONE)
    assert file.classes == ["a", "b"] and file.mean == list(FinetuneConfig().data.mean)


def test_the_json_of_others_is_left_alone(tmp_path):
    for text in ("[1, 2]", '{"classes": ["b"]}', "{damaged"):
        (tmp_path / "theirs.pth.json").write_text(text)
        theirs = file_at(tmp_path / "theirs.pth")
        assert with_description(theirs) is theirs
    assert with_description(file_at(tmp_path / "none.pth")).config is None


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"mean": [1, 2, 300]}, r"data\.mean = \[1\.0, 2\.0, 300\.0\]: must lie in \[0, 1\]"),
        ({"val_crop_size": "224"}, r"data\.val_crop_size = 224: must be a whole number"),
        ({"interpolation": {"a": 1}}, r"data\.interpolation in its config holds a dict"),
        ({"classes": ["a", "a"]}, "names a class twice"),
        ({"classes": "abc"}, "is no list of names"),
    ],
)
def test_what_no_config_may_hold_is_refused_with_the_jsons_name(more, problem, tmp_path):
    content = description_of(FinetuneConfig(), CLASSES, {}) | more
    write_description(tmp_path / "w.pth", content)
    with pytest.raises(UserError, match=rf"w\.pth\.json: .*{problem}"):
        with_description(file_at(tmp_path / "w.pth"))


def test_ours_but_damaged_is_told(tmp_path):
    path = write_description(tmp_path / "w.pth", description_of(FinetuneConfig(), CLASSES, {}))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"w\.pth\.json: cannot be read .*; export the weights again"):
        with_description(file_at(tmp_path / "w.pth"))
    path.write_text(json.dumps(["no dict"]))
    assert with_description(file_at(tmp_path / "w.pth")).config is None


def exported(path: Path, **more) -> dict:
    """A classifier of three classes at `path` with its JSON, as export_weights.py leaves them; its weights."""
    torch.manual_seed(5)
    weights = classifier("resnet18", 3).state_dict()
    torch.save(weights, path)
    content = {"model": "resnet18", "classes": ["ant", "bee", "cat"], "mean": [0.4] * 3, "std": [0.2] * 3}
    write_description(path, content | {"fingerprint": weights_fingerprint(weights)} | more)
    return weights


@pytest.mark.parametrize("classes", [["ant", "bee", "cat"], ["x", "y", "z"]])
def test_weights_of_an_export_bring_classes_and_normalisation(classes, tmp_path):
    """A head of three classes fits by its shape, whatever the three are."""
    weights = exported(tmp_path / "w.pth")
    torch.manual_seed(0)
    network = classifier("resnet18", 3)
    initial = network.fc.weight.clone()
    loaded = load(network, tmp_path / "w.pth", classes=classes)
    is_new = classes == ["x", "y", "z"]
    assert counts(loaded.report) == (Counts(120, 2, 2) if is_new else Counts(122, 0, 0))
    assert torch.equal(network.fc.weight, initial if is_new else weights["fc.weight"])
    assert (loaded.mean, loaded.std) == ([0.4] * 3, [0.2] * 3)
    assert loaded.config is None  # of its training, which the JSON tells in part


def test_whatever_reads_weights_gets_the_model_and_the_normalisation(tmp_path):
    """As a probe, which needs no classes."""
    exported(tmp_path / "w.pth", classes=None)
    file = read_weights(str(tmp_path / "w.pth"), "resnet50", False, ALONE)
    assert (file.mean, file.std, file.model_name) == ([0.4] * 3, [0.2] * 3, "resnet18")


def test_the_json_of_other_weights_is_refused(tmp_path):
    weights = exported(tmp_path / "w.pth")
    weights["fc.bias"][0] += 1
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth\.json: describes other weights (.|\n)*or remove the JSON"):
        load(classifier("resnet18", 3), tmp_path / "w.pth")
    exported(tmp_path / "old.pth", fingerprint=None)  # of an export that wrote none
    assert counts(load(classifier("resnet18", 3), tmp_path / "old.pth").report).matched == 122
