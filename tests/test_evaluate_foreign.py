"""--eval-only on files of other projects: the scores of the same weights in a checkpoint of ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, finetune, in_one_line, newest_result, pretrain, small_run
from tests.support.weights import as_timm, as_torchvision
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.process
COINCHEUNGS, OTHER = (
    [f"data.{key}=[{value}, {value}, {value}]" for key, value in zip(("mean", "std"), pair, strict=True)]
    for pair in ((0.4, 0.2), (0.1, 0.9))
)


@dataclass(frozen=True)
class Trained:
    """A finetuning of ours with an average, normalised as CoinCheung/MFM does."""

    images: Path
    checkpoint: Path
    model: dict
    average: dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    for split in ("train", "val"):
        image_folder(root / "images" / split, ("ant", "bee", "cat"), per_class=8, seed=len(split))
    more = [*COINCHEUNGS, "optimizer.ema_decay=0.5", "--val-resize-size", "36"]
    assert finetune(small_run(FINETUNE, root / "images", root / "out", *more)) == 0
    saved = read_checkpoint(root / "out/checkpoints/last.pt")
    average = {name.removeprefix("module."): tensor for name, tensor in saved["ema"].items() if name != "n_averaged"}
    return Trained(root / "images", root / "out/checkpoints/last.pt", saved["model"], average)


def evaluated(trained: Trained, path: Path, output: Path, *more: str) -> list[dict]:
    words = ["--eval-only", "--weights", str(path), "--val-resize-size", "36", *more]
    assert finetune(small_run(FINETUNE, trained.images, output, *words)) == 0
    return newest_result(output)["results"]


def write_coincheung(trained: Trained, folder: Path) -> Path:
    content = as_torchvision(trained.model, trained.average)
    content["args"].use_dali = False
    torch.save(content, folder / "model_100.pth")
    return folder / "model_100.pth"


def write_torchvision(trained: Trained, folder: Path) -> Path:
    torch.save(as_torchvision(trained.model, trained.average), folder / "model_599.pth")
    return folder / "model_599.pth"


def write_timm(trained: Trained, folder: Path) -> Path:
    return as_timm(trained.model, folder, trained.average)


@pytest.mark.parametrize("use_ema", [False, True])
@pytest.mark.parametrize("write", [write_coincheung, write_torchvision, write_timm])
def test_files_of_others_give_the_scores_of_the_same_weights_of_ours(write, use_ema, trained, tmp_path, capsys):
    path, ema = write(trained, tmp_path), f"run.use_ema={str(use_ema).lower()}"
    expected = evaluated(trained, trained.checkpoint, tmp_path / "ours", ema, *OTHER)  # ours tells its normalisation
    printed = in_one_line(capsys.readouterr().out)
    assert "normalisation: data.mean [0.4, 0.4, 0.4], data.std [0.2, 0.2, 0.2], the file's" in printed
    known = write is write_coincheung
    rows = evaluated(trained, path, tmp_path / "theirs", ema, *(OTHER if known else COINCHEUNGS))
    printed = in_one_line(capsys.readouterr().out)
    assert rows == expected and rows[0]["weights"] == ("ema" if use_ema else "model")
    assert "classes: the 3 folders in sorted order (the file names none)" in printed
    source = "the file's" if known else "this command line's (the file tells none)"
    assert f"data.mean [0.4, 0.4, 0.4], data.std [0.2, 0.2, 0.2], {source}" in printed


def test_model_and_average_and_normalisation_make_a_difference(trained, tmp_path):
    """Else the test above could not fail."""
    path = write_torchvision(trained, tmp_path)
    losses = []
    for more in (COINCHEUNGS, OTHER, [*COINCHEUNGS, "run.use_ema=true"]):
        losses.append(evaluated(trained, path, tmp_path / "out", *more)[0]["loss"])
    assert len(set(losses)) == 3


@pytest.mark.parametrize("head", [{"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, {}])
def test_a_file_whose_head_does_not_fit_is_refused_and_not_evaluated_with_a_random_one(head, trained, tmp_path):
    state = {name: tensor for name, tensor in trained.model.items() if not name.startswith("fc.")}
    torch.save(state | head, tmp_path / "w.pth")
    problem = r"w\.pth: has 7 outputs, but .*val has 3 class folders" if head else r"w\.pth: holds no classifier \(fc\."
    with pytest.raises(UserError, match=problem):
        evaluated(trained, tmp_path / "w.pth", tmp_path / "out")
    assert not list((tmp_path / "out").glob("evaluation*"))


def test_what_cannot_be_evaluated_is_refused_with_the_reason(trained, tmp_path):
    path = write_timm(trained, tmp_path)
    with pytest.raises(UserError, match="was trained on all of train .*: nothing to choose a size on"):
        evaluated(trained, path, tmp_path / "out", "--select-val-resize-size")
    torch.save(trained.model, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="holds no averaged weights(.|\n)*none of ema, model_ema, state_dict_ema"):
        evaluated(trained, tmp_path / "plain.pth", tmp_path / "out", "run.use_ema=true")
    content = {name: value for name, value in read_checkpoint(trained.checkpoint).items() if name != "classes"}
    torch.save(content, tmp_path / "ours.pt")
    with pytest.raises(UserError, match=r"ours\.pt: not a finetuned checkpoint \(it names no classes\)"):
        evaluated(trained, tmp_path / "ours.pt", tmp_path / "out")


def test_pretraining_warns_of_another_normalisation_as_finetuning_does(trained, tmp_path, capsys):
    path = write_coincheung(trained, tmp_path)
    for number, normalisation in enumerate((OTHER, COINCHEUNGS)):
        words = small_run(PRETRAIN, trained.images, tmp_path / str(number), *normalisation, "--weights", str(path))
        assert pretrain(words) == 0
        warned = "warning: " in capsys.readouterr().out
        assert warned == (normalisation is OTHER)


def test_our_checkpoint_brings_its_sizes_and_the_command_line_wins(trained, tmp_path, capsys):
    """Without sizes the score is that of training's end; it once was that of 235 and 224 pixels, without a word."""
    words = ["--eval-only", "--weights", str(trained.checkpoint), "--data-path", str(trained.images), "data.workers=0"]
    assert finetune([*words, "--output-dir", str(tmp_path)]) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert "sizes: data.val_resize_size [36], the file's; data.val_crop_size 32, the file's" in printed
    result = json.loads((trained.checkpoint.parents[1] / "result.json").read_text())
    [row], trained_row = newest_result(tmp_path)["results"], result["results"][0]
    assert row.pop("loss") == pytest.approx(trained_row.pop("loss"), rel=1e-6)  # batches of another size
    assert row == trained_row
    recipe = ["--config", str(ROOT / "configs/finetune_resnet50_bce.yaml")]  # 235 and 224: the file's go before it
    assert finetune([*words, *recipe, "data.interpolation=bilinear", "--val-resize-size", "40"]) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert "data.val_resize_size [40], the command line's; data.val_crop_size 32, the file's" in printed
    assert "data.interpolation bilinear, the command line's" in printed
    with pytest.raises(UserError, match=r"val_resize_size = \[31\] \(the command line's\): must be at least .* = 32"):
        finetune([*words, "--val-resize-size", "31"])


def test_the_result_lies_beside_the_checkpoint_and_replaces_no_other(trained, tmp_path, capsys):
    checkpoint = tmp_path / "run/checkpoints/step_00000003.pt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(trained.checkpoint, checkpoint)
    words = ["--eval-only", "--weights", str(checkpoint), "--data-path", str(trained.images), "data.workers=0"]
    for more in ([], ["--val-resize-size", "40"], ["run.timeout_minutes=9"]):
        assert finetune([*words, *more]) == 0
    last_line = in_one_line(capsys.readouterr().out).split("wrote ")[-1]
    folder = tmp_path / "run/evaluations"
    assert last_line == str(folder / "evaluation_step_00000003.json")  # the first settings again
    first, other = sorted(folder.iterdir(), key=lambda path: len(path.name))
    assert other.name == "evaluation_step_00000003-2.json"
    decided = [json.loads(path.read_text())["decided_by"] for path in (first, other)]
    assert [one["val_resize_size"] for one in decided] == [[36], [40]]
    assert decided[0]["val_crop_size"] == 32 and decided[0]["data"]["val"]["images"] == 24
    assert decided[0]["mean"] == [0.4, 0.4, 0.4] and decided[0]["interpolation"] == "bicubic"
