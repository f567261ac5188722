"""Results of evaluations lie beside what was evaluated, and none replaces another one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import FinetuneConfig
from data.folder import ImageFolder
from models.description import weights_fingerprint
from models.weights import WeightsFile
from tests.support.helpers import image_folder
from tests.support.launch import in_one_line
from utils.config import keys_given
from utils.distributed import World
from utils.run.checkpoint import Checkpoints
from utils.run.job import Job
from utils.scoring.results import Evaluated, settings_of, write_evaluation


def job_in(output: Path) -> Job:
    checkpoints = Checkpoints(output / "checkpoints", keep=1, every_steps=None, every_minutes=1)
    world = World(0, 1, 1, torch.device("cpu"))
    return Job(world, torch.float32, output, checkpoints, resume=None, workers=0, lock=None)


def evaluated(path: str | Path, output: Path, asked: bool = False, weights: dict | None = None) -> Evaluated:
    file = WeightsFile(str(path), "a layout", weights or {"conv1.weight": torch.ones(2, 3)}, step=123)
    return Evaluated(file, "model", "resnet18", output, asked_for_output_dir=asked)


def existing(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def write(path: str | Path, output: Path, asked: bool = False, size: int = 32, top1: float = 50.0) -> Path:
    rows = {"results": [{"top1": top1}]}
    return write_evaluation("probe", job_in(output), evaluated(path, output, asked), {"size": size}, rows)


@pytest.mark.parametrize(
    ("weights", "result"),
    [
        ("run/checkpoints/step_00000123.pt", "run/evaluations/probe_step_00000123.json"),
        ("files/resnet.pth", "files/evaluations/probe_resnet.json"),
    ],
)
def test_a_result_lies_beside_the_checkpoint(weights, result, tmp_path):
    path = write(existing(tmp_path / weights), tmp_path / "out")
    assert path == tmp_path / result and path.is_file()
    assert not (tmp_path / "out").exists()


def test_last_pt_is_called_what_it_links_to_but_a_link_to_elsewhere_by_its_own_name(tmp_path):
    existing(tmp_path / "run/checkpoints/step_00000007.pt")
    last = tmp_path / "run/checkpoints/last.pt"
    last.symlink_to("step_00000007.pt")
    assert write(last, tmp_path / "out") == tmp_path / "run/evaluations/probe_step_00000007.json"
    link = tmp_path / "files/resnet.pth"
    link.parent.mkdir()
    link.symlink_to(existing(tmp_path / "blobs/1234abcd"))
    assert write(link, tmp_path / "out") == tmp_path / "files/evaluations/probe_resnet.json"


def test_without_a_file_or_with_output_dir_on_the_command_line_it_goes_there(tmp_path):
    path = write("torchvision:IMAGENET1K_V2", tmp_path / "out")
    assert path == tmp_path / "out/probe_torchvision_IMAGENET1K_V2.json" and path.is_file()
    checkpoint = existing(tmp_path / "run/checkpoints/step_00000123.pt")
    assert write(checkpoint, tmp_path / "out", asked=True) == tmp_path / "out/probe_step_00000123.json"


def test_where_the_folder_cannot_be_written_it_goes_to_output_dir_and_says_so(tmp_path, capsys):
    checkpoint = existing(tmp_path / "run/checkpoints/step_00000123.pt")
    existing(tmp_path / "run/evaluations")  # a file: root may write into every folder
    assert write(checkpoint, tmp_path / "out") == tmp_path / "out/probe_step_00000123.json"
    assert "cannot be written" in in_one_line(capsys.readouterr().out)


def test_a_result_is_written_where_nobody_can_open_a_folder(tmp_path, monkeypatch):
    """As over SMB: there are no locks, and an evaluation of hours must not be lost."""
    file = existing(tmp_path / "resnet.pth")
    os_open = os.open

    def refuse_folders(path, *arguments, **keywords):
        if os.path.isdir(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return os_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse_folders)
    assert write(file, tmp_path / "out") == tmp_path / "evaluations/probe_resnet.json"
    assert not (tmp_path / "out").exists()


def test_other_settings_take_a_further_name_and_the_same_ones_replace_their_own(tmp_path):
    file = existing(tmp_path / "resnet.pth")
    folder = tmp_path / "evaluations"
    first = write(file, tmp_path, size=32)
    second = write(file, tmp_path, size=64)
    existing(folder / "probe_resnet-3.json").write_text("{damaged")
    fourth = write(file, tmp_path, size=96)
    assert [first.name, second.name, fourth.name] == [
        "probe_resnet.json", "probe_resnet-2.json", "probe_resnet-4.json",
    ]  # fmt: skip
    assert write(file, tmp_path, size=64, top1=60.0) == second
    read = {path.name: json.loads(path.read_text()) for path in (first, second, fourth)}
    assert [content["decided_by"]["size"] for content in read.values()] == [32, 64, 96]
    assert [content["results"][0]["top1"] for content in read.values()] == [50.0, 60.0, 50.0]
    assert (folder / "probe_resnet-3.json").read_text() == "{damaged"


def test_other_weights_under_the_same_name_are_another_evaluation(tmp_path):
    file = existing(tmp_path / "resnet.pth")
    paths = []
    for value in (1.0, 2.0):
        what = evaluated(file, tmp_path, weights={"conv1.weight": torch.full((2, 3), value)})
        paths.append(write_evaluation("probe", job_in(tmp_path), what, {}, {}))
    assert [path.name for path in paths] == ["probe_resnet.json", "probe_resnet-2.json"]


def write_size(path: Path, size: int) -> None:
    write(path, path.parent, size=size)


def test_evaluations_at_the_same_time_take_different_names(tmp_path):
    file = existing(tmp_path / "resnet.pth")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_size, args=(file, size)) for size in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    contents = [json.loads(path.read_text()) for path in (tmp_path / "evaluations").iterdir()]
    assert sorted(content["decided_by"]["size"] for content in contents) == list(range(6))


def test_the_file_says_what_was_evaluated_where_and_when(tmp_path):
    content = json.loads(write(existing(tmp_path / "resnet.pth"), tmp_path).read_text())
    assert content["kind"] == "probe"
    assert content["checkpoint"]["path"] == str(tmp_path / "resnet.pth") and content["checkpoint"]["step"] == 123
    assert content["checkpoint"]["fingerprint"] == content["decided_by"]["weights"]
    assert {"host", "date", "seconds", "provenance"} <= content.keys()
    assert "torch" in content["provenance"]


def test_settings_tell_pictures_of_the_same_names_apart(tmp_path):
    folders = [
        ImageFolder(str(image_folder(tmp_path / name, size=size))) for name, size in (("a", (40, 36)), ("b", (20, 18)))
    ]
    one, other = (settings_of(FinetuneConfig(), {"val": folder})["data"]["val"] for folder in folders)
    assert one["fingerprint"] == other["fingerprint"] and one["contents"] != other["contents"]


def test_settings_have_sizes_and_normalisation(tmp_path):
    config = FinetuneConfig()
    config = replace(
        config, data=replace(config.data, val_crop_size=32, val_resize_size=(36,), interpolation="bilinear")
    )
    settings = settings_of(config, {"val": ImageFolder(str(image_folder(tmp_path / "val")))})
    assert settings["val_resize_size"] == [36] and settings["val_crop_size"] == 32
    assert settings["interpolation"] == "bilinear" and settings["mean"] == list(config.data.mean)
    assert settings["data"]["val"]["images"] == 8


def test_a_fingerprint_sees_names_types_shapes_and_numbers_and_not_the_order():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    others = [
        {"a": base["a"], "c": base["b"]}, {"a": base["a"].half(), "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]}, {"a": base["a"] + 1, "b": base["b"]},
    ]  # fmt: skip
    assert weights_fingerprint(base) == weights_fingerprint(dict(reversed(base.items())))
    assert len({weights_fingerprint(weights) for weights in [base, *others]}) == 5
    weights_fingerprint({"odd": torch.eye(2).to_sparse(), "brain": torch.ones(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--output-dir", "runs/x"], True), (["run.output_dir=runs/x"], True), (["--output-dir=runs/x"], True),
        (["--config", "configs/finetune_resnet50_bce.yaml"], False), (["--weights", "run.output_dir"], False),
    ],
)  # fmt: skip
def test_the_command_line_says_whether_it_names_the_folder(words, given):
    assert ("run.output_dir" in keys_given(FinetuneConfig, words)) == given
