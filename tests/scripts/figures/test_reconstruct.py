"""Reconstructions: of images of any size, over radii, and which images are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.figures import reconstruct
from scripts.figures.reconstruct import crop_of, pick_images
from tests.support.helpers import image_folder
from tests.support.launch import in_one_line
from utils.errors import UserError


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder with one image, 100 pixels wide and 77 high."""
    return image_folder(tmp_path / "odd", ("one",), per_class=1, size=(100, 77))


def test_images_are_picked_evenly_from_folders(tmp_path, capsys):
    image_folder(tmp_path / "images", per_class=3, size=(32, 32))
    image_folder(tmp_path / "images/ant", (".ipynb_checkpoints",), per_class=3, size=(32, 32))
    paths = pick_images([str(tmp_path / "images")], 4)
    assert len(set(paths)) == 4 and {Path(path).parent.name for path in paths} == {"ant", "bee"}
    assert "1 hidden (ant/.ipynb_checkpoints)" in in_one_line(capsys.readouterr().out)
    with pytest.raises(UserError, match="nowhere: no such image"):
        pick_images([str(tmp_path / "nowhere")], 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: neither it nor a folder in it has an image"):
        pick_images([str(tmp_path / "empty")], 4)


def test_native_size_is_the_middle_in_multiples_of_the_stride(odd):
    crop = crop_of(str(odd / "one/0.png"), None, "bicubic", stride=32)
    assert crop.shape == (1, 3, 64, 96)
    with Image.open(odd / "one/0.png") as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(crop[0], whole[:, 6:70, 2:98])
    with pytest.raises(UserError, match="100×77 pixels; --size native needs 128 each way"):
        crop_of(str(odd / "one/0.png"), None, "bicubic", stride=128)


@pytest.mark.process
def test_reconstruct_takes_any_size_and_shows_a_range_of_radii(runs, odd, tmp_path):
    words = [str(runs.pretraining / "checkpoints/last.pt"), str(odd), "--size", "native"]
    reconstruct.main([*words, "--output", str(tmp_path / "images.png")])
    reconstruct.main([*words, "--output", str(tmp_path / "radii.png"), "--radius", "1.5", "3", "8"])
    for name, columns in (("images", 7), ("radii", 4)):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > columns * 200 and np.array(picture.convert("L")).std() > 10


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--radius", "99"], "--radius 99: .*leaves no high"),
        (["--radius", "0"], "--radius 0: radius = 0.0"),
        (["--size", "50"], "must be train, native or a multiple of 32"),
        (["--size", "much"], "must be train, native or a multiple of 32"),
    ],
)
def test_a_wrong_radius_or_size_is_an_error(words, message, runs, odd):
    with pytest.raises(UserError, match=message):
        reconstruct.main([str(runs.pretraining / "checkpoints/last.pt"), str(odd), *words])


@pytest.mark.process
def test_a_finetunings_checkpoint_is_an_error(runs, odd):
    with pytest.raises(UserError, match="not a pretraining checkpoint"):
        reconstruct.main([str(runs.finetuning / "checkpoints/last.pt"), str(odd)])


@pytest.mark.process
def test_more_kept_frequencies_leave_less_to_beat(runs, odd):
    """The PSNR of the kept frequencies alone grows with the radius of a low-pass filter."""
    pretrained = reconstruct.Pretrained.read(str(runs.pretraining / "checkpoints/last.pt"))
    image = crop_of(str(odd / "one/0.png"), 32, "bicubic", pretrained.stride)
    to_beat = {}
    for radius in (2.0, 8.0):
        panels = pretrained.panels(image, radius)
        assert list(panels) == ["low_pass", "high_pass"]
        to_beat[radius] = float(panels["low_pass"].quality.partition("(")[2].rstrip(")"))
        assert panels["low_pass"].caption("prediction") == "" and "dB" in panels["low_pass"].caption("combined")
    assert to_beat[8.0] > to_beat[2.0]
