"""Property tests without deadlines, since machines are noisy; in CI the same examples each time. One run for many."""

import os

import pytest
from hypothesis import settings

from tests.support.helpers import image_folder
from tests.support.launch import PRETRAIN, overriding, torchrun

settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Ten epochs of 3 steps of 4 micro-batches on two ranks with two loader workers each: its words, its folder."""
    images = image_folder(tmp_path_factory.mktemp("images") / "train", ("ant", "bee", "cat"), per_class=17).parent
    more = ["data.workers=2", "checkpoint.every_steps=4", "optimizer.ema_decay=0.9", "--epochs", "10"]
    batch = ["--batch-size", "16", "train.images_per_device=4", "--data-path", str(images)]
    words = [*overriding(PRETRAIN, *more), *batch]
    output = tmp_path_factory.mktemp("uninterrupted")
    code, told = torchrun(2, "pretrain.py", *words, "--output-dir", str(output))
    assert code == 0, told
    return words, output
