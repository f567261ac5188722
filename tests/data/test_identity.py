"""What tells one set of images from another."""

import os
import shutil

import pytest
from PIL import Image

from data.folder import ImageFolder
from data.identity import SAMPLED, UNREADABLE, check_pixels, identity, shared_images_warning
from tests.support.helpers import image_folder
from utils.errors import UserError


def of(root):
    return identity(ImageFolder(str(root)))


def test_a_copy_elsewhere_is_the_same(tmp_path):
    image_folder(tmp_path / "one", ("ant", "bee"), per_class=30)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert of(tmp_path / "one") == of(tmp_path / "other")
    assert of(tmp_path / "one")["images"] == 60 and len(of(tmp_path / "one")["sampled_files"]) == SAMPLED


def test_names_numbers_classes_and_pixels_tell_sets_apart(tmp_path):
    image_folder(tmp_path / "one", per_class=4)
    one = of(tmp_path / "one")
    image_folder(tmp_path / "pixels", per_class=4, seed=1)
    image_folder(tmp_path / "classes", ("ant", "wasp"), per_class=4)
    image_folder(tmp_path / "more", per_class=5)
    differing = {}
    for name in ("pixels", "classes", "more"):
        other = of(tmp_path / name)
        differing[name] = {key for key in one if one[key] != other[key]}
    assert differing["pixels"] == {"sampled_files"}
    assert differing["classes"] == {"classes", "fingerprint"}
    assert {"images", "fingerprint"} <= differing["more"]


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path):
    image_folder(tmp_path, per_class=2)
    folder = ImageFolder(str(tmp_path))
    (tmp_path / "ant/1.png").unlink()
    assert identity(folder)["sampled_files"].index(UNREADABLE) == 1


def fill(root, color=None):
    """Every image of a folder in one colour, or each in another one if `color` is None."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", (20, 20), color or (number, 0, 0)).save(path)


def test_images_of_a_single_colour_are_refused_where_detail_is_needed(tmp_path):
    fill(image_folder(tmp_path))
    folder = ImageFolder(str(tmp_path))
    check_pixels(folder, needs_detail=False)  # the colours differ
    with pytest.raises(UserError, match="8 of its images .* each is of a single colour"):
        check_pixels(folder, needs_detail=True)
    image_folder(tmp_path / "ant/more", per_class=1)
    check_pixels(ImageFolder(str(tmp_path)), needs_detail=True)


@pytest.mark.parametrize("is_flat", [True, False])
def test_images_that_are_all_the_same_are_refused(is_flat, tmp_path):
    image_folder(tmp_path)
    if is_flat:
        fill(tmp_path, "black")
    for path in tmp_path.rglob("*.png"):
        shutil.copy(tmp_path / "ant/0.png", path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
    with pytest.raises(UserError, match="all have the same pixels"):
        check_pixels(ImageFolder(str(tmp_path)), needs_detail=False)


@pytest.mark.parametrize("needs_detail", [True, False])
def test_images_of_which_none_can_be_read_are_refused_and_a_few_are_left_to_the_training(needs_detail, tmp_path):
    image_folder(tmp_path, per_class=8)
    images = sorted(tmp_path.rglob("*.png"))
    for path in images[1:]:
        path.write_bytes(b"broken")
    check_pixels(ImageFolder(str(tmp_path)), needs_detail=needs_detail)
    images[0].write_bytes(b"broken")
    with pytest.raises(UserError) as raised:
        check_pixels(ImageFolder(str(tmp_path)), needs_detail=needs_detail)
    names = "ant/0.png; ant/2.png; ant/4.png; ant/6.png; bee/0.png; bee/2.png; bee/4.png; bee/6.png"
    assert f"8 of its images were looked at, and none can be read ({names}); run" in str(raised.value)


@pytest.mark.parametrize("way", ["link", "copy", "class_link", "hard_links"])
def test_a_val_that_is_train_is_told(way, tmp_path):
    train, val = image_folder(tmp_path / "train"), tmp_path / "val"
    if way == "link":
        val.symlink_to("train")
    elif way == "copy":
        shutil.copytree(train, val)
    else:
        image_folder(val, seed=1)
        shutil.rmtree(val / "bee")
        if way == "class_link":
            (val / "bee").symlink_to("../train/bee")
        else:
            shutil.copytree(train / "bee", val / "bee", copy_function=os.link)
    warning = shared_images_warning(ImageFolder(str(train)), ImageFolder(str(val)))
    count = 8 if way in ("link", "copy") else 4
    assert warning.startswith(f"warning: {count} of 8 images of {val} that were looked at are in {train}, too")


def test_other_images_of_the_same_names_are_no_copy(tmp_path):
    train, val = image_folder(tmp_path / "train"), image_folder(tmp_path / "val", seed=1)
    assert shared_images_warning(ImageFolder(str(train)), ImageFolder(str(val))) is None
