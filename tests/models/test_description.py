"""The JSON beside a file of weights: read back as it was written, and never more trusted than a config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.schema import FinetuneConfig
from models.description import description_path, with_description, write_description
from models.weights import WeightsFile
from scripts.export_files import description_of
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


def test_a_checkpoint_of_ours_and_the_json_of_others_are_left_alone(tmp_path):
    own = file_at(tmp_path / "w.pt", config={"data": {}}, classes=["a"])
    write_description(tmp_path / "w.pt", {"classes": ["b"]})
    assert with_description(own) is own
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
