"""A share of the labels: nested, balanced, stable when files are added, disjoint from what is held out."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import FinetuneConfig
from data.folder import ImageFolder, check_labels
from data.identity import identity
from data.shares import hash_of, is_held_out, label_share
from tests.support.helpers import data_set, image_folder
from tests.support.launch import FINETUNE, finetune, in_one_line, overriding, small_run
from utils.config import parse_command_line
from utils.errors import UserError

NAMES = st.sets(st.text(min_size=1, max_size=6).map(lambda name: f"ant/{name}".encode()), min_size=1, max_size=40)
FRACTIONS = st.floats(0, 1, exclude_min=True)


def slow_share(paths: list[bytes], fraction: float) -> list[bytes]:
    """From the words: the nearest number, at least one, of those with the largest hashes, sorted."""
    by_hash = sorted(paths, key=lambda path: hashlib.blake2b(path, digest_size=8).hexdigest())
    size = max(round(fraction * len(paths)), 1)
    return sorted(by_hash[len(paths) - size :])


def relative_paths(folder: ImageFolder) -> list[str]:
    return [os.path.relpath(folder.path(index), folder.root) for index in range(len(folder))]


@settings(deadline=None)
@given(NAMES, FRACTIONS)
def test_a_share_is_that_of_a_slow_reference(names, fraction):
    paths = sorted(names)
    assert label_share(paths, fraction) == slow_share(paths, fraction)
    assert abs(len(label_share(paths, fraction)) - fraction * len(paths)) <= 1


@settings(deadline=None)
@given(NAMES, FRACTIONS, FRACTIONS)
def test_a_smaller_share_is_part_of_a_larger_one(names, one, other):
    paths = sorted(names)
    smaller, larger = label_share(paths, min(one, other)), label_share(paths, max(one, other))
    assert set(smaller) <= set(larger) and label_share(paths, 1.0) == paths


@settings(deadline=None)
@given(NAMES, NAMES, FRACTIONS)
def test_an_added_image_moves_no_more_than_one_other(names, more, fraction):
    """One by one: each that is added takes the place of at most one, or is one more."""
    before = set(label_share(sorted(names), fraction))
    for name in sorted(more - names):
        names = names | {name}
        after = set(label_share(sorted(names), fraction))
        assert len(before - after) <= 1 and len(after - before) <= 1
        before = after


@settings(deadline=None)
@given(NAMES, st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_what_is_held_out_takes_the_other_end(names, fraction, holdout):
    """So what is held out leaves a share as it is, but where there are too few images for both."""
    paths = sorted(names)
    share = label_share(paths, fraction)
    held_out = [path for path in paths if is_held_out(path, holdout)]
    if len(share) + len(held_out) <= len(paths):
        assert not set(share) & set(held_out)


def test_the_choice_never_changes():
    """Known answers: another hash would make all published shares others."""
    paths = [f"n01440764/n01440764_{number}.JPEG".encode() for number in range(200)]
    assert hash_of(paths[0]) == int.from_bytes(hashlib.blake2b(paths[0], digest_size=8).digest(), "big")
    assert label_share(paths, 0.02) == [f"n01440764/n01440764_{number}.JPEG".encode() for number in [85, 96, 136, 189]]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp("images") / "train"
    for number, name in enumerate(("ant", "bee", "cat")):
        image_folder(root, [name], per_class=40 + number, size=(8, 8))
    return str(root)


def test_every_class_has_its_share_and_the_folder_says_how_many(train):
    folder = ImageFolder(train, label_fraction=0.1)
    assert [folder.labels.tolist().count(label) for label in range(3)] == [4, 4, 4]
    assert folder.part_line() == f"used of {train}: 12 of 123 images, 4 a class (data.label_fraction = 0.1)"
    assert ImageFolder(train, label_fraction=0.0001).labels.tolist() == [0, 1, 2]
    assert folder.images_found == 123
    assert "84 of 123 images, 27 to 29 a class" in ImageFolder(train, label_fraction=0.68).part_line()
    whole = ImageFolder(train)
    assert whole.part_line() == "" and whole.fingerprint() == ImageFolder(train, label_fraction=1.0).fingerprint()
    assert set(relative_paths(folder)) <= set(relative_paths(whole))


def test_a_share_and_the_held_out_images_are_disjoint_and_do_not_touch_each_other(train):
    held_out = ImageFolder(train, holdout_fraction=0.3, held_out=True)
    share = ImageFolder(train, holdout_fraction=0.3, label_fraction=0.2)
    assert not set(relative_paths(share)) & set(relative_paths(held_out))
    assert share.fingerprint() == ImageFolder(train, label_fraction=0.2).fingerprint()


def test_a_share_and_more_held_out_than_there_is_are_refused():
    words = ["data.label_fraction=0.6", "data.holdout_fraction=0.41"]
    with pytest.raises(UserError, match=r"data\.label_fraction = 0\.6: must be at most .* = 0\.59, or 1"):
        parse_command_line(FinetuneConfig, words, "a test")
    for fraction in ("0.59", "1"):
        parse_command_line(FinetuneConfig, [f"data.label_fraction={fraction}", words[1]], "a test")


def test_a_share_of_one_image_a_class_can_be_learned_from(train):
    check_labels(ImageFolder(train, label_fraction=0.01))


def test_shares_tell_checkpoints_apart(train):
    facts = [identity(ImageFolder(train, label_fraction=fraction)) for fraction in (0.1, 0.11, 1.0)]
    assert len({fact["fingerprint"] for fact in facts}) == 3


@pytest.mark.process
def test_a_run_says_its_share_and_is_not_resumed_with_another(tmp_path, capsys):
    images = data_set(tmp_path / "images", train=12)
    words = small_run(FINETUNE, images, tmp_path / "run", "schedule.steps=3", "data.label_fraction=0.5")
    finetune(words)
    printed = in_one_line(capsys.readouterr().out)
    assert "18 of 36 images, 6 a class (data.label_fraction = 0.5)" in printed
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["train_images"] == {"used": 18, "found": 36}
    assert "epochs 2 (the last one in part) of 2 steps, 3 steps in all (schedule.steps)" in printed
    longer = overriding(words, "schedule.steps=5", "data.label_fraction=0.25", "--resume", "auto")
    with pytest.raises(
        UserError, match=r"another config \(data\.label_fraction: 0\.5 -> 0\.25; schedule\.steps: 3 -> 5\)"
    ):
        finetune(longer)
    with pytest.raises(UserError, match="was trained on other data: images"):
        finetune([*longer, "--allow-config-change"])
    assert finetune([*overriding(longer, "data.label_fraction=0.5"), "--allow-config-change"]) == 0
