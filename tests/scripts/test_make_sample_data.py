"""The sample data: what the bundle holds, what lands on disk, and what happens to broken or half-written files."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import FashionMNIST

from scripts import make_sample_data
from scripts.make_sample_data import CLASSES, read_bundle, read_source, write_folders
from utils.errors import UserError

COUNTS = {"train": 3, "val": 2}  # images of each class in the synthetic idx files


def idx(array: np.ndarray) -> bytes:
    """The idx file of a uint8 array, written here anew from the format's description."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_source(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files with shuffled labels; returns images (n, 28, 28) and labels (n,) of each split."""
    generator, written = np.random.default_rng(0), {}
    raw(root, "").mkdir(parents=True)
    for split, prefix in (("train", "train"), ("val", "t10k")):
        labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), COUNTS[split]))
        images = generator.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        raw(root, f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        raw(root, f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
        written[split] = images, labels
    return written


def raw(root: Path, name: str) -> Path:
    return root / "FashionMNIST" / "raw" / name


def pngs(folder: Path) -> dict[str, int]:
    """Number of images in each `split/class` folder."""
    return {path.relative_to(folder).as_posix(): len(list(path.glob("*.png"))) for path in folder.glob("*/*")}


@pytest.mark.process
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
    assert "Zalando SE" in make_sample_data.BUNDLE.with_name("LICENSE").read_text(encoding="utf-8")


@pytest.mark.process
def test_script_runs_from_anywhere_and_exits_2_with_the_reason(tmp_path):
    script = make_sample_data.REPOSITORY / "scripts" / "make_sample_data.py"
    command = [sys.executable, str(script), "--source", "nowhere", "--output", "whole"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere: torchvision cannot read Fashion-MNIST there")
    assert list(tmp_path.iterdir()) == []


def test_half_a_command_names_what_it_lacks():
    with pytest.raises(UserError, match="needs --output"):
        make_sample_data.main(["--source", "x"])


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


def test_whole_set_is_written_in_file_order(tmp_path):
    written = write_source(tmp_path / "source")
    make_sample_data.main(["--source", str(tmp_path / "source"), "--output", str(tmp_path / "deep" / "out")])
    assert pngs(tmp_path / "deep/out") == {f"{split}/{name}": COUNTS[split] for split in COUNTS for name in CLASSES}
    for split, (images, labels) in written.items():
        for label, name in enumerate(CLASSES):
            for number, image in enumerate(images[labels == label]):
                path = tmp_path / "deep" / "out" / split / name / f"{number:05d}.png"
                assert np.array_equal(np.asarray(Image.open(path)), image)


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
        ("train-images-idx3-ubyte", None, "Dataset not found"),
        ("train-images-idx3-ubyte", b"<html>not found</html>", "AssertionError"),
        ("train-images-idx3-ubyte", b"", "ValueError"),
        ("train-images-idx3-ubyte", IMAGES[:-1], "RuntimeError.*invalid for input of size 23519"),
        ("t10k-images-idx3-ubyte", idx(np.zeros(20, np.uint8)), "should have 3 dimension"),
        ("t10k-labels-idx1-ubyte", IMAGES, "should have 1 dimension"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "IndexError"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(0, np.uint8)), "ValueError"),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8)), "a label of 10; 9 is the highest"),
    ],
)
def test_missing_or_damaged_file_is_told_with_what_is_wrong_and_the_remedy(tmp_path, name, content, why):
    write_source(tmp_path / "source")
    raw(tmp_path / "source", name).unlink()
    if content is not None:
        raw(tmp_path / "source", name).write_bytes(content)
    remedy = r"remove .*source/FashionMNIST if .*FashionMNIST\('.*/source', download=True\)"
    with pytest.raises(UserError, match=f"source: torchvision cannot .*{why}.*{remedy}"):
        read_source(tmp_path / "source")


@pytest.mark.skipif("FASHION_MNIST" not in os.environ, reason="set FASHION_MNIST to torchvision's root")
def test_bundle_is_the_first_images_of_each_class_of_the_original_files():
    whole, bundled = read_source(Path(os.environ["FASHION_MNIST"])), read_bundle(make_sample_data.BUNDLE)
    for split, count in (("train", 400), ("val", 100)):
        first = [images[:count] for images in whole[split]]
        assert np.array_equal(first, bundled[split])
