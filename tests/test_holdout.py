"""Images set apart from training, and a resize size chosen on them instead of on val."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import FinetuneConfig
from data import samples
from data.folder import ImageFolder, is_held_out
from tests.support.helpers import data_set, image_folder
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, newest_result, overriding, pretrain
from utils.config import keys_affecting
from utils.errors import UserError

PATHS = [f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(20_000)]


def paths(folder: ImageFolder) -> set[str]:
    return {os.path.relpath(folder.path(index), folder.root) for index in range(len(folder))}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("images"), train=12, val=4)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_about_that_share_is_held_out_of_every_kind(fraction):
    held = np.array([is_held_out(path, fraction) for path in PATHS])
    error = np.sqrt(fraction * (1 - fraction) / len(PATHS))
    assert abs(held.mean() - fraction) < 4 * error
    assert abs(held[::2].mean() - fraction) < 6 * error  # neighbours in a numbering are independent


def test_the_choice_never_changes():
    """Known answers: another hash would train on images that earlier runs held out."""
    assert [is_held_out(path, 0.1) for path in PATHS].count(True) == 1985
    assert [path for path in PATHS[:40] if is_held_out(path, 0.1)] == [
        "n00000009/n00000009_9.JPEG",
        "n00000011/n00000011_11.JPEG",
        "n00000017/n00000017_17.JPEG",
        "n00000033/n00000033_33.JPEG",
        "n00000034/n00000034_34.JPEG",
    ]


@given(st.text(min_size=1), st.floats(0, 0.9), st.floats(0, 0.9))
def test_a_larger_fraction_adds_to_a_smaller(path, one, other):
    assert is_held_out(path, min(one, other)) <= is_held_out(path, max(one, other))


def test_the_two_parts_are_the_whole_and_stay_when_files_are_added(images, tmp_path):
    train, held = ImageFolder(str(images / "train"), None, 0.4), ImageFolder(str(images / "train"), None, 0.4, True)
    assert paths(train) | paths(held) == paths(ImageFolder(str(images / "train")))
    assert not paths(train) & paths(held) and len(held) > 3
    for name in ("ant", "bee", "cat"):
        (tmp_path / "more" / name).mkdir(parents=True)
        for path in (images / "train" / name).iterdir():
            (tmp_path / "more" / name / path.name).symlink_to(path)
            (tmp_path / "more" / name / f"0{path.name}").symlink_to(path)
    more = ImageFolder(str(tmp_path / "more"), None, 0.4, True)
    assert paths(held) <= paths(more) and not paths(more) & paths(train)
    labels = {more.path(index).split("/")[-2]: more.classes[more.labels[index]] for index in range(len(more))}
    assert all(name == label for name, label in labels.items())


def test_fingerprints_tell_data_sets_and_splits_apart(images, tmp_path):
    whole = ImageFolder(str(images / "train"))
    (tmp_path / "link").symlink_to(images / "train")
    assert ImageFolder(str(tmp_path / "link")).fingerprint() == whole.fingerprint()  # wherever it lies
    others = [
        ImageFolder(str(images / "val")), ImageFolder(str(images / "train"), ["bee", "ant", "cat"]),
        ImageFolder(str(images / "train"), None, 0.4), ImageFolder(str(images / "train"), None, 0.4, True),
    ]  # fmt: skip
    assert len({folder.fingerprint() for folder in [whole, *others]}) == 5


def test_what_cannot_be_held_out_is_told(tmp_path):
    image_folder(tmp_path, ("ant",), per_class=1)
    assert not is_held_out("ant/0.png", 0.0001)
    with pytest.raises(UserError, match=r"data.holdout_fraction = 0.0001: holds out no image of"):
        ImageFolder(str(tmp_path), None, 0.0001, True)
    fraction = next(tenths / 10 for tenths in range(1, 10) if is_held_out("ant/0.png", tenths / 10))
    with pytest.raises(UserError, match=rf"data.holdout_fraction = {fraction}: holds out every image of .*ant \(1\)"):
        ImageFolder(str(tmp_path), None, fraction)


def run(main, words: list[str], images: Path, output: Path, *more: str) -> dict:
    batch = [] if "--eval-only" in more else ["--batch-size", "4", "schedule.epochs=1", "train.images_per_device=4"]
    words = overriding([*words, *batch], *more)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        assert main([*words, "--data-path", str(images), "--output-dir", str(output)]) == 0
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    if "--eval-only" in more:
        return newest_result(output)
    return json.loads((output / "result.json").read_text())


@pytest.mark.process
def test_held_out_images_are_never_read_in_training_and_the_size_is_chosen_on_them(images, tmp_path, monkeypatch):
    train = ImageFolder(str(images / "train"), None, 0.4)
    held = ImageFolder(str(images / "train"), None, 0.4, True)
    read, decode = [], samples.decode_image

    def recording(path):
        read.append(os.path.relpath(path, images))
        return decode(path)

    monkeypatch.setattr(samples, "decode_image", recording)
    more = ["data.holdout_fraction=0.4", "schedule.epochs=3", "logging.pictures_every_steps=null"]
    pretrained = run(pretrain, PRETRAIN, images, tmp_path / "mfm", *more)
    assert set(read) <= {f"train/{path}" for path in paths(train)} and len(read) > 20
    assert pretrained["data"] == {"train": train.fingerprint()}

    read.clear()
    sizes = ["--val-resize-size", "32", "36", "40"]
    more = ["data.holdout_fraction=0.4", "--select-val-resize-size", *sizes]
    weights = ["--weights", str(tmp_path / "mfm/checkpoints/last.pt")]
    result = run(finetune, FINETUNE, images, tmp_path / "selected", *more, *weights)
    trained = read[: read.index(f"train/{sorted(paths(held))[0]}")]
    assert not set(trained) & {f"train/{path}" for path in paths(held)}
    evaluated = read[len(trained) :]
    assert sum(path.startswith("train/") for path in evaluated) == len(held)
    shown = min(8, 12 - result["results"][0]["top1_count"])  # mistakes, whose pictures are shown
    assert sum(path.startswith("val/") for path in evaluated) == 12 + shown  # val once

    settled = result["val_resize_size"]
    assert settled["chosen"] == "on held-out images of train"
    assert [(row["val_resize_size"], row["images"]) for row in settled["held_out"]] == [
        (s, len(held)) for s in (32, 36, 40)
    ]
    best = max(settled["held_out"], key=lambda row: (row["top1_count"], -row["loss"]))["val_resize_size"]
    assert [(row["val_resize_size"], row["images"]) for row in result["results"]] == [(best, 12)]
    assert (tmp_path / "selected/pretraining.yaml").read_text().startswith("run:")
    assert result["data"] == {"train": train.fingerprint(), "val": ImageFolder(str(images / "val")).fingerprint()}

    finetuned = ["--weights", str(tmp_path / "selected/checkpoints/last.pt"), "--eval-only"]
    again = run(finetune, FINETUNE, images, tmp_path / "again", *finetuned, "--select-val-resize-size", *sizes)
    assert again["results"] == result["results"] and again["val_resize_size"] == settled


@pytest.mark.process
def test_without_selection_the_result_says_so_and_a_leaking_pretraining_is_warned_of(images, tmp_path, capsys):
    run(pretrain, PRETRAIN, images, tmp_path / "mfm")
    words = ["data.holdout_fraction=0.4", "--weights", str(tmp_path / "mfm/checkpoints/last.pt")]
    sizes = ["--val-resize-size", "32", "36"]
    result = run(finetune, FINETUNE, images, tmp_path / "given", *words, *sizes)
    assert result["val_resize_size"] == {"chosen": "given before"} and len(result["results"]) == 2
    assert "was trained with data.holdout_fraction 0.0, so on images that this run holds out" in in_one_line(
        capsys.readouterr().out
    )


def test_selecting_without_a_held_out_part_is_an_error(images, tmp_path):
    with pytest.raises(UserError, match=r"run.select_val_resize_size = true: needs data.holdout_fraction above 0"):
        finetune([*FINETUNE, "--select-val-resize-size"])


def test_holding_out_belongs_to_the_recipe_and_selecting_does_not():
    assert "data.holdout_fraction" in keys_affecting(FinetuneConfig, "weights")
    assert "run.select_val_resize_size" in keys_affecting(FinetuneConfig, "score")
