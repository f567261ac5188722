"""The cache of a folder's listing: it gives what a new listing would give, and is not used after any change."""

import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import index
from data.folder import ImageFolder
from data.index import cache_file, image_files, read_cache

CLASSES = ["ant", "bee"]


@pytest.fixture(autouse=True)
def small_and_settled(monkeypatch, tmp_path):
    """Folders of any size and age are cached, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    monkeypatch.setattr(index, "TIME_RESOLUTION_NS", -(10**12))


def make(root, files=("ant/1.jpg", "ant/deep/2.jpg", "ant/deep/er/3.png", "bee/4.jpg")):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
        time.sleep(0.01)  # a file system's clock ticks every 4 to 10 ms, and equal times are not trusted
    return str(root)


def listed(root):
    return [names.split(b"\0") for names in image_files(root, CLASSES).names_of_class]


def cached(root):
    return read_cache(cache_file(root), root, CLASSES)


def test_cache_gives_what_listing_gave(tmp_path, monkeypatch):
    root = make(tmp_path / "root")
    assert cached(root) is None
    first = ImageFolder(root)
    assert cached(root) is not None
    monkeypatch.setattr(index, "list_images", None)  # it would fail
    again = ImageFolder(root)
    assert [again.path(i) for i in range(len(again))] == [first.path(i) for i in range(len(first))]
    assert again.labels.tolist() == first.labels.tolist() == [0, 0, 0, 1]
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "bee/5.jpg").touch(),
        lambda root: (root / "ant/deep/er/5.jpg").touch(),
        lambda root: (root / "ant/deep/2.jpg").unlink(),
        lambda root: (root / "ant/1.jpg").rename(root / "ant/0.jpg"),
        lambda root: (root / "ant/deep/2.jpg").rename(root / "bee/2.jpg"),
        lambda root: (root / "ant/deep/er").rename(root / "ant/deep/est"),
        lambda root: make(root, ["bee/new/5.jpg"]),
        lambda root: ((root / "ant").rename(root.parent / "moved"), make(root, ["../other/9.png"]),
                      (root / "ant").symlink_to(root.parent / "other")),
    ],
)  # fmt: skip
def test_a_changed_folder_is_listed_anew(change, tmp_path):
    root = make(tmp_path / "root")
    before = listed(root)
    assert cached(root) is not None
    time.sleep(0.02)  # a file system's clock ticks every 4 to 10 ms
    change(tmp_path / "root")
    assert cached(root) is None
    index.cache_file(root).unlink()
    fresh = listed(root)
    assert fresh != before
    assert listed(root) == fresh


def test_other_classes_are_not_taken_from_the_cache(tmp_path):
    root = make(tmp_path / "root")
    listed(root)
    assert read_cache(cache_file(root), root, ["bee", "ant"]) is None
    assert read_cache(cache_file(root), root, ["ant"]) is None


def test_a_folder_that_just_changed_is_not_cached(tmp_path, monkeypatch):
    """Another change within the resolution of its times would leave no trace."""
    monkeypatch.setattr(index, "TIME_RESOLUTION_NS", 10**9)
    root = make(tmp_path / "root")
    listed(root)
    assert cached(root) is None
    time.sleep(1.05)
    listed(root)
    assert cached(root) is not None


DAY = 24 * 3600 * 10**9


@pytest.mark.parametrize(
    ("modified", "changed", "trusted"),
    [
        ((5 * DAY, 6 * DAY, 7 * DAY), (5 * DAY, 6 * DAY, 7 * DAY), True),
        ((5 * DAY, 5 * DAY, 5 * DAY), (5 * DAY, 6 * DAY, 7 * DAY), False),  # a container image with one time
        ((5 * DAY, 6 * DAY, 7 * DAY), (5 * DAY, 5 * DAY, 5 * DAY), False),
        ((5 * DAY, 0, 7 * DAY), (5 * DAY, 6 * DAY, 7 * DAY), False),  # an object store
        ((5 * DAY, 6 * DAY, 7 * DAY), (5 * DAY, -1, 7 * DAY), False),
        ((5 * DAY, 6 * DAY, 9 * DAY), (5 * DAY, 6 * DAY, 7 * DAY), False),  # newer than the clock
        ((5 * DAY, 6 * DAY, 7 * DAY), (5 * DAY, 6 * DAY, 8 * DAY - 10**9), False),  # a second ago
    ],
)
def test_times_that_say_nothing_are_not_trusted(monkeypatch, modified, changed, trusted):
    monkeypatch.setattr(index, "TIME_RESOLUTION_NS", 2 * 10**9)
    states = [(1, number, *times, 4096) for number, times in enumerate(zip(modified, changed, strict=True))]
    assert index.times_can_be_trusted(states, began=8 * DAY) == trusted


@pytest.mark.parametrize("moment", [0, 10**9])
def test_folders_whose_times_never_change_are_listed_anew(tmp_path, moment):
    root = make(tmp_path / "root")

    def freeze():
        for folder, _, _ in os.walk(root):
            os.utime(folder, (moment, moment))

    freeze()
    assert len(listed(root)[1]) == 1
    make(tmp_path / "root", ["bee/5.jpg"])
    freeze()
    assert listed(root)[1] == [b"bee/4.jpg", b"bee/5.jpg"]


def test_modification_times_that_are_set_back_hide_no_change(tmp_path):
    """As by rsync -t and cp -p; the change time is the kernel's."""
    root = make(tmp_path / "root")
    listed(root)
    assert cached(root) is not None
    before = {folder: os.stat(folder) for folder, _, _ in os.walk(root)}
    time.sleep(0.02)
    (tmp_path / "root/bee/4.jpg").rename(tmp_path / "root/bee/5.jpg")
    for folder, status in before.items():
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(root)[1] == [b"bee/5.jpg"]


def test_another_data_set_at_the_same_place_is_noticed(tmp_path):
    root = make(tmp_path / "root")
    listed(root)
    assert cached(root) is not None
    make(tmp_path / "other", ("ant/1.jpg", "ant/deep/2.jpg", "ant/deep/er/3.png", "bee/9.jpg"))
    for folder, _, _ in os.walk(root):
        status = os.stat(folder)
        twin = os.path.join(tmp_path / "other", os.path.relpath(folder, root))
        os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "root").rename(tmp_path / "former")
    (tmp_path / "other").rename(tmp_path / "root")
    assert listed(root)[1] == [b"bee/9.jpg"]


def test_what_is_left_out_is_told_from_the_cache_too(tmp_path, monkeypatch):
    root = make(tmp_path / "root", ["ant/1.jpg", "ant/.hidden", "bee/2.jpg", "bee/notes.txt", "beside.png"])
    first = ImageFolder(root)
    assert cached(root) is not None
    monkeypatch.setattr(index, "list_images", None)  # it would fail
    again = ImageFolder(root)
    assert again.left_out == first.left_out == {
        "hidden": 1, "other endings": 1, "images beside the class folders": 1,
    }  # fmt: skip
    assert again.left_out_line() == first.left_out_line()


def test_a_listing_with_problems_is_not_cached(tmp_path):
    root = make(tmp_path / "root")
    (tmp_path / "root/bee/broken.jpg").symlink_to("/nowhere")
    assert len(image_files(root, CLASSES).problems) == 1
    assert len(image_files(root, CLASSES).problems) == 1
    assert not cache_file(root).exists()


def test_few_images_are_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "CACHED_FROM", 5)
    root = make(tmp_path / "root")
    listed(root)
    assert not cache_file(root).exists()
    time.sleep(0.02)
    make(tmp_path / "root", ["bee/5.jpg"])
    listed(root)
    assert cache_file(root).exists()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_cache_is_no_cache(tmp_path_factory, data):
    root = make(tmp_path_factory.mktemp("damaged") / "root")
    right = listed(root)
    path = cache_file(root)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert listed(root) == right


def test_a_place_that_cannot_be_written_is_a_warning_and_training_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = make(tmp_path / "root")
    assert listed(root)[1] == [b"bee/4.jpg"]
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and str(tmp_path / "file") in warning and "XDG_CACHE_HOME" in warning


def test_nothing_is_written_into_the_data_folder(tmp_path):
    root = make(tmp_path / "root")
    before = {folder: os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(root)}
    listed(root)
    listed(root)
    assert {folder: os.stat(folder).st_mtime_ns for folder, _, _ in os.walk(root)} == before


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_classes_and_holdout_act_on_the_cache_as_on_the_folder(tmp_path, holdout):
    root = make(tmp_path / "root", [f"{name}/{n}.jpg" for name in CLASSES for n in range(20)])
    fresh = ImageFolder(root, ["bee", "ant"], holdout)
    again = ImageFolder(root, ["bee", "ant"], holdout)
    assert [again.path(i) for i in range(len(again))] == [fresh.path(i) for i in range(len(fresh))]
    assert np.array_equal(again.labels, fresh.labels)
