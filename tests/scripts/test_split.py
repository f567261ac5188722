"""split makes train and val: balanced, nested, disjoint, nothing lost, and nothing overwritten."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.folder import ImageFolder
from data.shares import label_share
from scripts import split
from tests.data.test_folder import touch
from utils.console import WIDTH
from utils.errors import UserError

SIZES = {"ant": 10, "bee": 25, "Große Katze": 4, "dog": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "photos"
    for name, count in SIZES.items():
        touch(
            root, *[f"{name}/deep/{number} é.png" if number % 2 else f"{name}/{number}.jpg" for number in range(count)]
        )
    touch(root, "notes.txt", "ant/.DS_Store")
    return root


def parts_of(source: Path, target: Path, *words: str) -> tuple[set[str], set[str]]:
    """The images of train and val after a split, as paths inside these."""
    assert split.main([str(source), str(target), *words]) == 0
    parts = []
    for part in ("train", "val"):
        paths = {str(path.relative_to(target / part)) for path in (target / part).rglob("*") if not path.is_dir()}
        assert all((target / part / path).is_file() for path in paths)
        parts.append(paths)
    return parts[0], parts[1]


def all_images(source: Path) -> set[str]:
    folder = ImageFolder(str(source))
    return {os.path.relpath(folder.path(index), source) for index in range(len(folder))}


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.floats(0.01, 0.99), other=st.floats(0.01, 0.99))
def test_parts_are_balanced_nested_disjoint_and_whole(source, tmp_path_factory, one, other):
    images = all_images(source)
    smaller = None
    for share in sorted((one, other)):
        train, val = parts_of(source, tmp_path_factory.mktemp("made") / "mine", "--val-share", str(share))
        assert not train & val and train | val == images
        for name, count in SIZES.items():
            in_val = sum(path.startswith(f"{name}/") for path in val)
            assert in_val == min(max(1, round(share * count)), count - 1)
        assert smaller is None or smaller <= val
        smaller = val


def test_the_hash_of_shares_and_hold_outs_decides(source, tmp_path):
    _, val = parts_of(source, tmp_path / "mine", "--val-share", "0.2")
    bees = sorted(path for path in all_images(source) if path.startswith("bee/"))
    share = label_share([os.fsencode(path) for path in bees], 0.2)
    expected = {os.fsdecode(path) for path in share}
    assert {path for path in val if path.startswith("bee/")} == expected and len(expected) == 5


def test_links_lead_to_the_files_wherever_it_is_started(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(source.parent)
    train, _ = parts_of(Path("photos"), tmp_path / "mine")
    path = tmp_path / "mine/train" / min(train)
    assert path.is_symlink() and path.resolve() == (source / min(train)).resolve()
    printed = " ".join(capsys.readouterr().out.split())
    assert "32 images in train, 8 in val; 4 classes with 0 to 5 in val" in printed
    assert "1 classes have one image, which is in train (dog)" in printed
    assert "left out of photos: 1 hidden (ant/.DS_Store), 1 other endings (notes.txt)" in printed


def test_copies(source, tmp_path):
    (tmp_path / "mine").mkdir()  # an empty one will do
    train, val = parts_of(source, tmp_path / "mine", "--copy")
    assert not any((tmp_path / "mine/train" / path).is_symlink() for path in train) and len(train | val) == 40


def test_a_start_that_was_ended_early_leaves_no_half_of_a_data_set(source, tmp_path, monkeypatch):
    def end(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "symlink_to", end)
        with pytest.raises(KeyboardInterrupt):
            split.main([str(source), str(tmp_path / "mine")])
    assert not (tmp_path / "mine").exists()
    touch(tmp_path / "mine.unfinished", "train/ant/of another time.png")
    train, val = parts_of(source, tmp_path / "mine")
    assert train | val == all_images(source) and not (tmp_path / "mine.unfinished").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["photos", "full"], "full: is not empty"),
        (["photos", "photos/ant/0.jpg"], r"0\.jpg: is a file"),
        (["photos", "photos/mine"], "photos/mine: lies in .*photos, where it would be taken for a class"),
        (["photos", "new", "--val-share", "1"], "--val-share 1: must be above 0 and below 1"),
        (["photos", "new", "--val-share", "nan"], "--val-share nan: must be above"),
        (["made", "new"], "made: has train in it already; give the folder that holds the classes, such as made/train"),
        (["parted", "new"], r"parted: its folder train holds class folders itself \(ant, bee\); give .* parted/train"),
        (["Parted", "new"], r"Parted: its folder Val holds class folders itself \(ant\); give .* Parted/Val"),
        (["nowhere", "new"], "nowhere: no such image folder"),
        (["flat", "new"], "flat: has no class folders, but 1 images beside"),
        (["broken", "new"], r"broken/a/2\.png: a link to /nowhere, which cannot be reached"),
    ],
)
def test_what_cannot_be_split_is_refused_and_nothing_written(tmp_path, monkeypatch, words, complaint):
    monkeypatch.chdir(tmp_path)
    touch(
        tmp_path,
        "photos/ant/0.jpg",
        "photos/ant/1.jpg",
        "full/x",
        "made/train/ant/1.png",
        "parted/train/ant/1.png",
        "parted/train/bee/1.png",
        "parted/test/ant/2.png",
        "Parted/Val/ant/1.png",
        "Parted/Test/ant/1.png",
        "flat/1.png",
        "broken/a/1.png",
    )
    (tmp_path / "broken/a/2.png").symlink_to("/nowhere")
    with pytest.raises(UserError, match=complaint):
        split.main(words)
    assert not (tmp_path / "new").exists() and not (tmp_path / "photos/mine").exists()


def test_a_class_may_be_called_train(tmp_path):
    """A vehicle: a folder of images that holds no folders."""
    source = Path(touch(tmp_path / "vehicles", "train/1.png", "train/2.png", "car/1.png", "car/2.png", "Train.txt"))
    train, val = parts_of(source, tmp_path / "mine")
    assert len(train) == len(val) == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_symbolic_links_copies_are_advised(source, tmp_path, monkeypatch, number):
    def refuse(*_arguments: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number), "link")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(UserError, match=r"no symbolic link can be made there \(.*\); copy the images with --copy"):
        split.main([str(source), str(tmp_path / "mine")])
    assert split.main([str(source), str(tmp_path / "mine"), "--copy"]) == 0


def test_a_long_line_on_what_is_left_out_is_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "photos", "ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png")
    touch(
        tmp_path / "photos", "a name that is long enough.txt", "ant/.hidden and long, too", "an image beside them.png"
    )
    (tmp_path / "photos/ant/again").symlink_to(".")
    assert split.main(["photos", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("left out of photos: 1 hidden") and lines[1].startswith("  ")
    assert max(map(len, lines)) <= WIDTH
