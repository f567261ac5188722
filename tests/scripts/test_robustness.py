"""robustness.py on small sets, against numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from configs.schema import FinetuneConfig
from models.weights import WeightsFile
from scripts.robustness import Robustness, main, tables
from scripts.robustness_figure import robustness_figure
from tests.support.classifiers import CLASSES, Untrained, coloured_images, logits_by_hand, untrained
from tests.support.launch import in_one_line
from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints
from utils.run.job import Job
from utils.scoring.classifier import Classifier
from utils.scoring.corruptions import ALEXNET_ERROR


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Untrained:
    return untrained(tmp_path_factory.mktemp("ours"))


def in_folder(root: Path) -> list[str]:
    return sorted(map(str, root.rglob("*.png")))


def cropped_images(root: Path, classes: tuple[str, ...], seed: int) -> Path:
    """Images whose short side is the network's crop of 32 already, cut out of larger ones."""
    for path in in_folder(coloured_images(root, classes, per_class=2, seed=seed)):
        Image.open(path).crop((0, 0, 36, 32)).save(path)
    return root


@pytest.mark.process
def test_sets_corruptions_and_attacks(ours, tmp_path, capsys):
    part = coloured_images(tmp_path / "imagenet-a", ("dog", "bee"), seed=5)
    for name, severity in (("fog", 1), ("fog", 2), ("spatter", 3)):
        cropped_images(tmp_path / f"c/{name}/{severity}", CLASSES, seed=severity)
    words = ["--sets", str(part), "--corruptions", str(tmp_path / "c"), "--attacks", str(ours.images / "val")]
    words += ["--figure", str(tmp_path / "figure.png"), "data.workers=0", "data.val_batch_size=6"]
    assert main([str(ours.checkpoint), *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    file = ours.checkpoint.parents[1] / "evaluations/robustness_step_00000007.json"
    assert printed[-1] == f"wrote {file}" and (tmp_path / "figure.png").stat().st_size > 5000
    results = json.loads(file.read_text())

    [row] = results["sets"]
    paths = in_folder(part)  # bee, then dog
    logits = ours.logits(paths)
    masked = torch.full_like(logits, -torch.inf)
    for number in (CLASSES.index("bee"), CLASSES.index("dog")):
        masked[:, number] = logits[:, number]
    expected = sum(CLASSES[best] == Path(path).parent.name for best, path in zip(masked.argmax(1), paths, strict=True))
    assert (row["set"], row["classes"], row["images"], row["top1_count"]) == (str(part), 2, 8, expected)
    assert not torch.equal(masked.argmax(1), logits.argmax(1))  # else masking would not show

    assert [(row["corruption"], row["severity"]) for row in results["corruptions"]] == [
        ("fog", 1), ("fog", 2), ("spatter", 3),
    ]  # fmt: skip
    for row in results["corruptions"]:
        paths = in_folder(tmp_path / f"c/{row['corruption']}/{row['severity']}")
        best = logits_by_hand(ours.network, paths, resize_size=32).argmax(1)
        right = sum(CLASSES[one] == Path(path).parent.name for one, path in zip(best, paths, strict=True))
        assert row["top1_count"] == right and row["images"] == 8
    assert results["mce"] is None and results["corruption_errors"] == {}
    assert any(line.startswith("mCE: needs 15 corruptions") for line in printed)
    assert not any(line.startswith("warning: ") for line in printed)

    none, fgsm, pgd = results["attacks"]
    labels = torch.arange(4).repeat_interleave(4)
    assert none["top1_count"] == int((ours.logits(ours.paths).argmax(1) == labels).sum())
    assert none["loss"] < fgsm["loss"] and none["loss"] < pgd["loss"]
    assert results["decided_by"]["attacks"] == {"epsilon": 1 / 255, "pgd_step": 0.5 / 255, "pgd_steps": 5}


@pytest.mark.process
def test_images_smaller_than_the_crop_are_refused(ours, tmp_path):
    cropped_images(tmp_path / "c/fog/1", CLASSES, seed=0)
    words = ["--corruptions", str(tmp_path / "c"), "data.workers=0"]
    with pytest.raises(UserError, match=r"36×32 pixels, smaller than data\.val_crop_size = 34"):
        main([str(ours.checkpoint), *words, "data.val_crop_size=34"])


@pytest.mark.process
def test_images_larger_than_the_crop_are_told_once(ours, tmp_path, capsys):
    for severity in (1, 2):
        coloured_images(tmp_path / f"c/fog/{severity}", CLASSES, per_class=1)
    words = ["--corruptions", str(tmp_path / "c"), "data.workers=0", f"run.output_dir={tmp_path / 'out'}"]
    assert main([str(ours.checkpoint), *words]) == 0
    printed = in_one_line(capsys.readouterr().out)
    assert printed.count("warning: ") == 1
    assert "fog/1/ant/0.png: 44×40 pixels, of which the middle 32×32 are scored" in printed


def test_what_decided_a_result_has_the_outputs_of_each_set(tmp_path):
    """Other names of the outputs, in which the set's classes have the same order."""
    part = coloured_images(tmp_path / "part", ("bee", "dog"), per_class=1)
    whole = coloured_images(tmp_path / "whole", per_class=1)
    job = Job(
        World(0, 1, 1, torch.device("cpu")), torch.float32, tmp_path, Checkpoints(tmp_path, 1, None, 1), resume=None,
        workers=0, lock=None,
    )  # fmt: skip
    decided = []
    for names in (["ant", "bee", "cat", "dog"], ["bee", "ant", "dog", "cat"]):
        file = WeightsFile("w.pth", "a layout", {})
        classifier = Classifier(file, "resnet18", nn.Linear(2, 4), 4, names, FinetuneConfig(), report=[])
        robustness = Robustness(classifier, job)
        robustness.open(str(part))
        robustness.open(str(whole))
        decided.append(robustness.decided_by())
    assert [one["outputs"][str(part)] for one in decided] == [[1, 3], [0, 2]]
    assert decided[0]["outputs"][str(whole)] == decided[1]["outputs"][str(whole)] == "all"
    first, second = (one["data"][str(whole)]["fingerprint"] for one in decided)
    assert first != second  # which has the order of the classes


def test_nothing_to_do_is_said():
    with pytest.raises(UserError, match="nothing to evaluate"):
        main(["x.pt"])


def test_tables_and_figure_of_a_whole_imagenet_c():
    rows = []
    for name in ALEXNET_ERROR:
        for severity in range(1, 6):
            rows.append({"corruption": name, "severity": severity, "top1": 90.0 - 10 * severity})
    errors = dict.fromkeys(ALEXNET_ERROR, 50.0)
    results = {"sets": [], "attacks": [], "corruptions": rows, "corruption_errors": errors, "mce": 50.0}
    table, mce = tables(results)
    assert "| fog | 5 | 40.00 | 50.00 |" in table and mce == "mCE: 50.00 % (AlexNet: 100)"
    [axis] = robustness_figure(results).axes
    assert len(axis.lines) == 5 and axis.get_title().startswith("mCE 50.0 %")
    assert [label.get_text() for label in axis.get_yticklabels()] == list(ALEXNET_ERROR)
    assert axis.yaxis_inverted()
    first = axis.lines[0]
    assert list(first.get_xdata()) == [20.0] * 15 and list(first.get_ydata()) == list(range(15))
