"""What tells one set of images from another."""

import shutil

from data.folder import ImageFolder
from data.identity import SAMPLED, UNREADABLE, identity
from tests.support.helpers import image_folder


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
