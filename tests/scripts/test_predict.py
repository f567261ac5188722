"""predict.py gives the pixels and logits of --eval-only, for a checkpoint of ours, its export, and files of others."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights

from scripts.export_weights import export_weights
from scripts.predict import images_in, main
from tests.support.classifiers import CLASSES, NORMALISATION, SIZES, Untrained, coloured_images, untrained
from tests.support.launch import finetune, in_one_line, newest_result
from tests.support.weights import as_timm, as_torchvision, classifier, lively
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint

SINGLE = ["data.workers=0", "model.name=resnet18"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Untrained:
    return untrained(tmp_path_factory.mktemp("ours"))


def predicted(file: Path) -> dict[str, list[tuple[str, float]]]:
    """path -> (class, probability), the likeliest first."""
    found: dict[str, list[tuple[str, float]]] = {}
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            guesses = found.setdefault(row["image"], [])
            guesses.append((row["class"], float(row["probability"])))
            assert int(row["rank"]) == len(guesses)
    return found


def predictions_of(weights: object, images: Path, output: Path, *words: str) -> dict[str, list[tuple[str, float]]]:
    assert main([str(weights), str(images), "--csv", str(output), *SINGLE, *words]) == 0
    return predicted(output)


def right_ones(found: dict[str, list[tuple[str, float]]]) -> int:
    return sum(guesses[0][0] == Path(path).parent.name for path, guesses in found.items())


def evaluation_of(weights: object, images: Path, output: Path, *words: str) -> dict:
    """The row of --eval-only."""
    words = ["--eval-only", "--weights", str(weights), "--data-path", str(images), *SINGLE, *words]
    assert finetune([*words, "--output-dir", str(output)]) == 0
    [row] = newest_result(output)["results"]
    return row


def test_images_are_files_folders_and_lists(tmp_path, capsys):
    folder = coloured_images(tmp_path / "pic tures", ("b é", "a"), per_class=1)
    (folder / "a/.hidden.png").write_text("x")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs/1.png").write_text("x")
    (folder / "a/notes.md").write_text("x")
    coloured_images(folder / "a", ("thumbnails.png",), per_class=1)
    in_folder = [str(folder / "a/0.png"), str(folder / "b é/0.png")]
    assert images_in([str(folder)]) == in_folder
    left_out = in_one_line(capsys.readouterr().out)
    for kind in ("2 hidden (", "1 other endings (a/notes.md)", "1 folders named like images (a/thumbnails.png)"):
        assert kind in left_out
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"\ufeff{in_folder[1]}\r\n\r\n   \nmissing.jpg\r\n{in_folder[1]}".encode())
    assert images_in([str(listed), "one.jpg"]) == [in_folder[1], "missing.jpg", in_folder[1], "one.jpg"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="neither it nor a folder in it has an image"):
        images_in([str(empty)])
    (empty / "list.txt").write_text("\n")
    with pytest.raises(UserError, match=r"list\.txt: names no image"):
        images_in([str(empty / "list.txt")])
    (empty / "elsewhere").symlink_to(folder / "a")
    assert images_in([str(empty)]) == [str(empty / "elsewhere/0.png")]
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot read this list"):
        images_in(["nowhere.txt"])


def test_several_ranks_are_refused(monkeypatch):
    """Each would predict its share, and write it over that of the others."""
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match="runs on one process; start it with python, not torchrun"):
        main(["w.pt", "photo.jpg", "run.timeout_minutes=0.02"])


def test_a_setting_without_its_section_is_no_image():
    with pytest.raises(
        UserError, match=r"val_resize_size=232: no such image, and no setting; write data\.val_resize_s"
    ):
        main(["w.pt", "photo.jpg", "val_resize_size=232"])


def test_options_may_stand_between_the_images():
    with pytest.raises(UserError, match="--top 0: must be at least 1"):
        main(["w.pt", "photo.jpg", "--top", "0", "holiday"])


@pytest.mark.process
def test_predict_eval_only_and_export_agree(ours, tmp_path):
    found = predictions_of(ours.checkpoint, ours.images / "val", tmp_path / "p.csv", "--top", "9")
    logits = ours.logits(ours.paths)
    assert list(found) == ours.paths
    for path, row in zip(ours.paths, logits.double().sigmoid(), strict=True):
        names = [CLASSES[number] for number in row.argsort(descending=True).tolist()]
        assert [name for name, _ in found[path]] == names
        assert [share for _, share in found[path]] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
    assert len({guesses[0][0] for guesses in found.values()}) > 2  # not one class for all

    row = evaluation_of(ours.checkpoint, ours.images, tmp_path / "ours")
    assert (row["images"], row["val_resize_size"]) == (16, 36) and row["top1_count"] == right_ones(found)
    labels = torch.arange(4).repeat_interleave(4)
    assert row["top1_count"] == int((logits.argmax(1) == labels).sum())
    for layout in ("torchvision", "code-a"):
        exported = tmp_path / f"{layout}.pth"
        export_weights(str(ours.checkpoint), exported, layout=layout)
        assert evaluation_of(exported, ours.images, tmp_path / layout) == row
        assert predictions_of(exported, ours.images / "val", tmp_path / "e.csv", "--top", "9") == found


@pytest.mark.process
def test_unreadable_images_are_named_and_the_others_predicted(ours, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    images = [ours.paths[0], str(tmp_path / "broken.jpg"), str(tmp_path / "missing.png"), ours.paths[5]]
    assert main([str(ours.checkpoint), images[0], "--top", "1", *images[1:], *SINGLE]) == 1
    printed = in_one_line(capsys.readouterr().out)
    best = [CLASSES[number] for number in ours.logits([images[0], images[3]]).argmax(1).tolist()]
    assert f"{images[0]} " in printed and f"% {best[0]} {images[3]}" in printed
    assert f"warning: {images[1]}: not a readable image" in printed
    assert f"warning: {images[2]}: cannot be read" in printed
    assert printed.endswith("2 images predicted, 2 unreadable")
    assert "a sigmoid for each class" in printed


@pytest.mark.process
def test_softmax_after_cross_entropy(tmp_path, capsys):
    network = untrained(tmp_path, loss="ce")
    found = predictions_of(network.checkpoint, network.images / "val", tmp_path / "p.csv")
    for path, row in zip(network.paths, network.logits(network.paths).double().softmax(1), strict=True):
        assert found[path][0][1] == pytest.approx(row.max().item(), abs=1e-5)
        assert sum(share for _, share in found[path]) == pytest.approx(1, abs=1e-5)
    assert "probabilities: softmax" in capsys.readouterr().out


def write_coincheung(state: dict, folder: Path) -> Path:
    content = as_torchvision(state)
    content["args"] = argparse.Namespace(**vars(content["args"]), use_dali=False)
    torch.save(content, folder / "model_100.pth")
    return folder / "model_100.pth"


def write_plain(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "resnet18.pth")
    return folder / "resnet18.pth"


@pytest.mark.process
@pytest.mark.parametrize("write", [write_coincheung, write_plain, as_timm])
def test_files_of_others_go_all_roads(write, ours, tmp_path):
    """The same weights: the same scores and names, once the command line says what the file does not."""
    path = write(read_checkpoint(ours.checkpoint)["model"], tmp_path)
    words = list(SIZES)
    if write is not write_coincheung:  # its normalisation is known
        words += NORMALISATION
    row = evaluation_of(ours.checkpoint, ours.images, tmp_path / "ours")
    assert evaluation_of(path, ours.images, tmp_path / "theirs", *words) == row
    numbered = predictions_of(path, ours.images / "val", tmp_path / "n.csv", *words)
    (tmp_path / "names.txt").write_bytes("\r\n".join(CLASSES).encode())
    for names in (tmp_path / "names.txt", ours.images / "val"):
        found = predictions_of(path, ours.images / "val", tmp_path / "p.csv", *words, f"data.class_names={names}")
        assert right_ones(found) == row["top1_count"]
        for one, other in zip(found.values(), numbered.values(), strict=True):
            numbers = [f"output {CLASSES.index(name)}" for name, _ in one]
            assert numbers == [name for name, _ in other]


@pytest.mark.process
def test_torchvisions_weights_placed_by_hand(ours, tmp_path, monkeypatch):
    """1000 outputs at random, named torchvision:IMAGENET1K_V1: the file in the cache is taken, nothing downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.manual_seed(1)
    network = lively(classifier("resnet18", 1000))
    file = tmp_path / "hub/checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    words = [*SIZES, *NORMALISATION]
    names = [f"n{number:08}" for number in range(1000)]
    chosen = [17, 300, 301, 999]
    (tmp_path / "names.txt").write_text("\n".join(names))
    part = coloured_images(tmp_path / "part/val", [names[number] for number in chosen])
    name = "torchvision:IMAGENET1K_V1"
    with pytest.raises(UserError, match="has 1000 outputs, but .*val has 4 class folders"):
        evaluation_of(name, tmp_path / "part", tmp_path / "out", *words)
    more = ["data.classes=present", f"data.class_names={tmp_path / 'names.txt'}"]
    row = evaluation_of(name, tmp_path / "part", tmp_path / "out", *words, *more)
    assert newest_result(tmp_path / "out")["decided_by"]["outputs"] == chosen
    found = predictions_of(name, part, tmp_path / "p.csv", "--top", "1000", *words, more[1])
    right = 0
    for path, guesses in found.items():  # by hand: the likeliest of those present, all others masked
        present = [guess for guess, _ in guesses if int(guess[1:]) in chosen]
        right += present[0] == Path(path).parent.name
    assert len(found) == 16 and row["top1_count"] == right and row["top5"] == 100
    with pytest.raises(UserError, match="has 1000 outputs, but 4 classes are named"):
        predictions_of(name, part, tmp_path / "p.csv", f"data.class_names={part}")
