"""Probes in real runs: of files, on several ranks, and while pretraining, where they must leave no trace."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.comparing import log_lines, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, finetune, overriding, pretrain, small_run, torchrun
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.run.log_file import is_evaluation_line
from utils.scoring import probe

pytestmark = pytest.mark.process
LAST = "checkpoints/last.pt"
PROBING = "run.probe_every_epochs=1"
# pretrain.py, which gets a signal in the middle of its first probe
ENDED_WITHIN = """
import os, runpy, sys
from utils.scoring import probe_hook
number = int(sys.argv.pop(1))
probe_hook.neighbour_rows = lambda *_: os.kill(os.getpid(), number)
runpy.run_path("pretrain.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return data_set(tmp_path_factory.mktemp("images"), val=7)


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory) -> Path:
    """A pretraining of two epochs without a probe."""
    output = tmp_path_factory.mktemp("pretrained")
    assert pretrain(words_of(images, output)) == 0
    return output


def words_of(images: Path, output: Path, *more: str) -> list[str]:
    return small_run(PRETRAIN, images, output, "schedule.epochs=2", *more)


def probe_words(images: Path, weights: Path | str, *more: str) -> list[str]:
    sizes = ["data.val_crop_size=32", "data.val_resize_size=36", "data.workers=0", "model.name=resnet18"]
    return overriding(["--probe", "--weights", str(weights), "--data-path", str(images), *sizes], *more)


def results_in(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def probe_lines(output: Path) -> list[dict]:
    return [line for line in log_lines(output) if is_evaluation_line(line)]


# Of a file.


def test_a_probe_of_a_pretraining_lies_beside_it_and_the_last_line_says_where(pretrained, images, capsys):
    assert finetune(probe_words(images, pretrained / LAST)) == 0
    [path] = (pretrained / "evaluations").iterdir()
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"result: {path}"
    assert path.name == f"probe_{(pretrained / LAST).resolve().stem}.json"
    rows = results_in(path)
    assert [(row["method"], row.get("k"), row.get("temperature")) for row in rows] == [
        ("knn", 20, 0.07), ("knn", 10, 0.07), ("knn", 100, 0.07), ("knn", 200, 0.07), ("knn", 200, 0.1),
        ("linear", None, None), ("pixels_knn", 20, 0.07),
    ]  # fmt: skip
    for row in rows:
        assert row["images"] == 21 and row["top1"] == 100 * row["top1_count"] / 21
    assert rows[5]["C"] in [line["C"] for line in rows[5]["held_out"]]
    assert sum(line.startswith("| ") for line in printed) == 1 + len(rows)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_any_number_of_ranks_gives_the_same_counts(storage, pretrained, images, tmp_path):
    rows = []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        words = probe_words(images, pretrained / LAST, f"run.probe_storage={storage}", "--output-dir", str(output))
        code, printed = torchrun(ranks, "finetune.py", *words)
        assert code == 0, printed
        [path] = output.iterdir()
        rows.append(results_in(path))
    assert rows[0] == rows[1]


def test_a_finetuned_checkpoint_and_a_foreign_file_of_the_same_weights_score_alike(images, tmp_path):
    assert finetune(small_run(FINETUNE, images, tmp_path / "run")) == 0
    saved = read_checkpoint(tmp_path / "run" / LAST)
    torch.save(saved["model"], tmp_path / "weights.pth")
    normalisation = [f"data.{key}={saved['config']['data'][key]}" for key in ("mean", "std")]
    assert finetune(probe_words(images, tmp_path / "run" / LAST)) == 0
    assert finetune(probe_words(images, tmp_path / "weights.pth", *normalisation)) == 0
    [of_run] = (tmp_path / "run/evaluations").iterdir()
    [of_file] = (tmp_path / "evaluations").iterdir()
    assert results_in(of_run) == results_in(of_file)


def test_features_that_do_not_fit_into_memory_are_refused_before_they_are_computed(pretrained, images, monkeypatch):

    monkeypatch.setattr(probe, "free_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"48 images × 704 float32 take 0.0 GB.*run.probe_storage=float16"):
        finetune(probe_words(images, pretrained / LAST))


# While pretraining.


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (read_checkpoint(folder / LAST) for folder in (one, other))
    assert first["model"].keys() == second["model"].keys()
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def test_a_probe_is_in_the_log_and_in_the_result_and_leaves_no_trace_in_the_weights(
    pretrained, images, tmp_path, capsys
):
    random_states = []
    for name, more in (("plain", []), ("probed", [PROBING])):
        torch.manual_seed(0)
        assert pretrain(words_of(images, tmp_path / name, *more)) == 0
        random_states.append(torch.get_rng_state())
    assert torch.equal(*random_states)
    tmp_path = tmp_path / "probed"
    assert_same_weights(pretrained, tmp_path)
    lines = probe_lines(tmp_path)
    assert [(line["step"], line["epoch"], line["method"], line["k"], line["images"]) for line in lines] == [
        (3, 0, "knn", 20, 21), (6, 1, "knn", 20, 21)
    ]  # fmt: skip
    assert json.loads((tmp_path / "result.json").read_text())["probes"][0]["top1"] == lines[-1]["top1"]
    assert "val knn k 20 of model at 37" in capsys.readouterr().out
    training = [line for line in log_lines(tmp_path) if not is_evaluation_line(line)]
    assert [line["loss"] for line in training] == [line["loss"] for line in log_lines(pretrained)]


def test_the_last_probe_while_pretraining_is_the_headline_of_a_probe_afterwards(images, tmp_path):
    assert pretrain(words_of(images, tmp_path, PROBING)) == 0
    assert finetune(words_without_sizes(images, tmp_path / LAST)) == 0
    assert_probe_is_the_last_one_of_the_run(tmp_path)


def words_without_sizes(images: Path, weights: Path) -> list[str]:
    return ["--probe", "--weights", str(weights), "--data-path", str(images), "data.workers=0"]


def assert_probe_is_the_last_one_of_the_run(run: Path) -> None:
    [path] = (run / "evaluations").iterdir()
    decided_by = json.loads(path.read_text())["decided_by"]
    sizes = [decided_by[key] for key in ("val_resize_size", "val_crop_size", "interpolation")]
    assert sizes == [[37], 32, "bilinear"]
    assert results_in(path)[0]["top1"] == probe_lines(run)[-1]["top1"]


def test_two_ranks_probe_without_a_trace_and_count_as_one_does(images, tmp_path):
    for name, more in (("plain", []), ("probed", [PROBING])):
        words = words_of(images, tmp_path / name, *more)
        code, printed = torchrun(2, "pretrain.py", *words)
        assert code == 0, printed
    assert_same_weights(tmp_path / "plain", tmp_path / "probed")
    assert finetune(words_without_sizes(images, tmp_path / "probed" / LAST)) == 0
    assert_probe_is_the_last_one_of_the_run(tmp_path / "probed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_ends_within_a_probe_goes_on_and_ends_the_same(number, images, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert pretrain(words_of(images, whole, PROBING)) == 0
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_WITHIN, str(int(number)), *words_of(images, cut, PROBING)], cwd=ROOT, timeout=300
    )
    assert ended.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert [path.name for path in sorted((cut / "checkpoints").glob("step_*"))] == ["step_00000003.pt"]
    assert not probe_lines(cut)
    assert pretrain(words_of(images, cut, PROBING, "--resume", "auto")) == 0
    assert_same_weights(whole, cut)
    assert mathematics(cut) == mathematics(whole)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_each_probe_is_there_once_wherever_a_run_is_resumed(step, images, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert pretrain(words_of(images, whole, PROBING, "checkpoint.every_steps=1", "checkpoint.keep=9")) == 0
    shutil.copytree(whole, again)
    (again / "result.json").unlink()
    resume = str(whole / f"checkpoints/step_{step:08}.pt")
    assert pretrain(words_of(images, again, PROBING, "checkpoint.every_steps=1", "--resume", resume)) == 0
    assert mathematics(again) == mathematics(whole)


def test_the_probe_can_be_turned_on_and_off_when_a_run_goes_on(pretrained, images, tmp_path):
    output = tmp_path / "again"
    assert pretrain(words_of(images, output, "checkpoint.every_steps=4")) == 0
    (output / "result.json").unlink()
    resume = str(output / "checkpoints/step_00000004.pt")
    assert pretrain(words_of(images, output, PROBING, "--resume", resume)) == 0
    assert [line["step"] for line in probe_lines(output)] == [6]
    assert_same_weights(pretrained, output)


def test_images_without_classes_cannot_be_probed(tmp_path):

    images = data_set(tmp_path / "images", classes=("all",), train=40)
    with pytest.raises(UserError, match="has the one class all"):
        pretrain(words_of(images, tmp_path / "out", PROBING))
