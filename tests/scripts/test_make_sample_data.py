"""The sample data: what the bundle holds, what lands on disk, and what happens to broken or half-written files."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import FashionMNIST

from scripts import make_sample_data
from scripts.make_sample_data import CLASSES, read_bundle, read_source, write_bundle, write_folders
from utils.errors import UserError

COUNTS = {"train": 3, "val": 2}  # images of each class in the synthetic idx files


def idx(array: np.ndarray) -> bytes:
    """The idx file of a uint8 array, written here anew from the format's description."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_source(folder: Path, compress: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files with shuffled labels; returns images (n, 28, 28) and labels (n,) of each split."""
    generator, written = np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("val", "t10k")):
        labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), COUNTS[split]))
        images = generator.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            path = folder / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
        written[split] = images, labels
    return written


def pngs(folder: Path) -> dict[str, int]:
    """Number of images in each `split/class` folder."""
    return {path.relative_to(folder).as_posix(): len(list(path.glob("*.png"))) for path in folder.glob("*/*")}


def test_bundle_unpacks_to_all_its_images_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_sample_data, "SAMPLE", tmp_path / "sample")
    make_sample_data.main([])
    assert capsys.readouterr().out == f"wrote 4000 train and 1000 val images to {tmp_path / 'sample'}\n"
    expected = {f"{split}/{name}": count for split, count in (("train", 400), ("val", 100)) for name in CLASSES}
    assert pngs(tmp_path / "sample") == expected
    bundle = np.load(make_sample_data.BUNDLE, allow_pickle=False)
    for split, label, number in (("train", 0, 0), ("train", 9, 399), ("val", 6, 37)):
        with Image.open(tmp_path / "sample" / split / CLASSES[label] / f"{number:05d}.png") as image:
            assert (image.mode, image.size) == ("L", (28, 28))
            assert np.array_equal(np.asarray(image), bundle[split][label, number])

    before = (tmp_path / "sample" / "train").stat().st_mtime_ns
    make_sample_data.main([])
    out = capsys.readouterr().out
    assert out == f"found 4000 train and 1000 val images in {tmp_path / 'sample'}; nothing to do\n"
    assert (tmp_path / "sample" / "train").stat().st_mtime_ns == before


def test_classes_have_the_order_of_the_labels_and_safe_names():
    safe = [name.partition("/")[0].replace(" ", "-").lower() for name in FashionMNIST.classes]
    assert list(CLASSES) == safe


def test_bundle_is_small_varied_and_has_its_licence():
    splits = read_bundle(make_sample_data.BUNDLE)
    assert make_sample_data.BUNDLE.stat().st_size < 2_200_000
    images = np.concatenate([*splits["train"], *splits["val"]])
    assert images.dtype == np.uint8 and images.shape == (5000, 28, 28)
    assert len(np.unique(images.reshape(5000, -1), axis=0)) > 4990  # no image stands in for another
    # Trousers are narrow and pullovers are not, so the labels have not come loose from their images.
    ink = {name: (class_images > 0).mean() for name, class_images in zip(CLASSES, splits["train"], strict=True)}
    assert ink["sandal"] < ink["trouser"] < ink["dress"] < ink["pullover"]
    assert "Zalando SE" in make_sample_data.BUNDLE.with_suffix(".LICENSE").read_text(encoding="utf-8")


def test_script_runs_from_anywhere_and_exits_2_with_the_reason(tmp_path):
    script = make_sample_data.REPOSITORY / "scripts" / "make_sample_data.py"
    command = [sys.executable, str(script), "--source", "nowhere", "--output", "whole"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere: holds no train-images-idx3-ubyte")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--source", "x"], ["--rebuild-bundle"]])
def test_half_a_command_names_what_it_lacks(arguments):
    with pytest.raises(UserError, match=r"needs --(output|source)"):
        make_sample_data.main(arguments)


def test_interrupted_run_is_started_again(tmp_path, monkeypatch):
    write_source(tmp_path / "source")
    splits, saved = read_source(tmp_path / "source"), []
    save = Image.Image.save

    def save_some(image, path):
        if len(saved) == 7:
            raise KeyboardInterrupt
        saved.append(path)
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_some)
        with pytest.raises(KeyboardInterrupt):
            write_folders(splits, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    saved[0].with_name("99999.png").write_bytes(b"left over")
    assert write_folders(splits, tmp_path / "out").startswith("wrote 30 train and 20 val images")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert set(pngs(tmp_path / "out").values()) == {2, 3} and len(pngs(tmp_path / "out")) == 20


def test_incomplete_or_foreign_folder_is_neither_reused_nor_deleted(tmp_path):
    write_source(tmp_path / "source")
    splits = read_source(tmp_path / "source")
    write_folders(splits, tmp_path / "out")
    (tmp_path / "out/val/bag/00001.png").rename(tmp_path / "out/val/bag/00002.png")
    with pytest.raises(UserError, match="out: 1 images are missing and 1 are not of this set; remove"):
        write_folders(splits, tmp_path / "out")
    assert (tmp_path / "out/val/bag/00002.png").exists()


@pytest.mark.parametrize(("inside", "compress"), [(".", True), ("raw", False), ("FashionMNIST/raw", True)])
def test_whole_set_is_written_in_file_order(tmp_path, inside, compress):
    written = write_source(tmp_path / "source" / inside, compress)
    make_sample_data.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "deep" / "out")])
    assert pngs(tmp_path / "deep/out") == {f"{split}/{name}": COUNTS[split] for split in COUNTS for name in CLASSES}
    for split, (images, labels) in written.items():
        for label, name in enumerate(CLASSES):
            for number, image in enumerate(images[labels == label]):
                path = tmp_path / "deep" / "out" / split / name / f"{number:05d}.png"
                assert np.array_equal(np.asarray(Image.open(path)), image)


def test_rebuilt_bundle_is_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    written = write_source(tmp_path / "source")
    splits, bundled = read_source(tmp_path / "source"), {"train": 2, "val": 1}
    write_bundle(splits, tmp_path / "first.npz", bundled)
    later = time.time() + 10**7
    monkeypatch.setattr(time, "time", lambda: later)
    assert "2 train and 1 val images of each of 10 classes" in write_bundle(splits, tmp_path / "later.npz", bundled)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "later.npz").read_bytes()
    images, labels = written["train"]
    assert np.array_equal(read_bundle(tmp_path / "first.npz")["train"][4], images[labels == 4][:2])


def test_rebuilding_from_too_few_images_leaves_the_bundle_alone(tmp_path, monkeypatch):
    write_source(tmp_path / "source")
    monkeypatch.setattr(make_sample_data, "BUNDLE", tmp_path / "bundle.npz")
    (tmp_path / "bundle.npz").write_bytes(b"as it was")
    with pytest.raises(UserError, match="fewer than 400 train images of t-shirt, trouser"):
        make_sample_data.main(["--source", str(tmp_path / "source"), "--rebuild-bundle"])
    assert (tmp_path / "bundle.npz").read_bytes() == b"as it was"


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4 but not a zip", b"version https://git-lfs.github.com/spec/v1"])
def test_damaged_bundle_says_how_to_restore_it(tmp_path, content):
    if content is not None:
        (tmp_path / "bundle.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bundle\.npz: cannot be read .* restore it with `git checkout"):
        read_bundle(tmp_path / "bundle.npz")


def test_bundle_with_flipped_bytes_is_refused(tmp_path):
    content = bytearray(make_sample_data.BUNDLE.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "bundle.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_bundle(tmp_path / "bundle.npz")


IMAGES = idx(np.zeros((30, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train-images-idx3-ubyte.gz", gzip.compress(IMAGES)[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", b"<html>not found</html>", "cannot be read"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b""), "magic number is 0, not 2051"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x0d\3" + IMAGES[4:]), "magic number is 3331, not 2051"),
        ("train-images-idx3-ubyte.gz", gzip.compress(IMAGES[:-1]), "23535 bytes, but 23536 are due for its 30 items"),
        ("train-images-idx3-ubyte.gz", gzip.compress(IMAGES + b"\0"), "23537 bytes, but 23536 are due"),
        ("train-images-idx3-ubyte.gz", gzip.compress(IMAGES[:6]), "items are .0, 0., not .28, 28."),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((30, 32, 32), np.uint8))), "not .28, 28. pixels"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(IMAGES), "magic number is 2051, not 2049"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(19, np.uint8))), "19 labels up to 0 for 20 images"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(20, 10, np.uint8))), "labels up to 10 for 20"),
    ],
)
def test_damaged_idx_file_is_named_with_what_is_wrong_and_the_remedy(tmp_path, name, content, why):
    write_source(tmp_path / "source")
    (tmp_path / "source" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{why}.*zalandoresearch/fashion-mnist again"):
        read_source(tmp_path / "source")


@pytest.mark.skipif("FASHION_MNIST" not in os.environ, reason="set FASHION_MNIST to the folder of the idx files")
def test_bundle_is_what_the_original_files_give(tmp_path):
    write_bundle(read_source(Path(os.environ["FASHION_MNIST"])), tmp_path / "bundle.npz")
    rebuilt, bundled = read_bundle(tmp_path / "bundle.npz"), read_bundle(make_sample_data.BUNDLE)
    assert all(np.array_equal(rebuilt[split], bundled[split]) for split in ("train", "val"))
