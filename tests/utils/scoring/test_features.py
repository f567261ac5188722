"""Features: each image's own, whatever is computed beside it, and the anchor of averaged pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data.folder import ImageFolder
from data.samples import EvaluationSamples
from models.normalize import Normalizer
from tests.support.helpers import image_folder
from utils.distributed import World
from utils.errors import UserError
from utils.scoring import features
from utils.scoring.features import AveragedPixels, PooledTrunk, bytes_of_features, extract

ALONE = World(0, 1, 1, torch.device("cpu"))
NORMALIZE = Normalizer((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> EvaluationSamples:
    root = image_folder(tmp_path_factory.mktemp("images") / "train", per_class=5)
    return EvaluationSamples(ImageFolder(str(root)), (36,), 32, "bilinear")


def test_features_are_in_the_order_of_the_folder_and_the_model_stays_in_training_mode(samples, monkeypatch):
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    pooled = extract({"trunk": PooledTrunk(trunk, NORMALIZE)}, samples, trunk, ALONE, workers=0)["trunk"]
    assert trunk.training and all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert pooled.labels.tolist() == samples.folder.labels.tolist() == [0] * 5 + [1] * 5
    trunk.eval()
    for index in range(10):
        crop = samples[index][0].float() / 255
        expected = trunk(NORMALIZE(crop)).mean((2, 3))[0]
        assert torch.allclose(pooled.vectors[index], expected, atol=1e-5)
    monkeypatch.setattr(features, "BLOCK", 3)  # several forward passes, the last of one image
    again = extract({"trunk": PooledTrunk(trunk, NORMALIZE)}, samples, trunk, ALONE, workers=0)["trunk"]
    assert torch.allclose(again.vectors, pooled.vectors, atol=1e-5)


def test_a_rank_without_images_is_told_before_anything_is_computed(samples):
    many = World(0, 11, 11, torch.device("cpu"))
    with pytest.raises(UserError, match=r"train: has 10 images for 11 ranks; take fewer ranks"):
        extract({}, samples, nn.Identity(), many, workers=0)


def test_averaged_pixels_are_means_of_squares_of_the_normalised_image():
    crops = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    averages = AveragedPixels(NORMALIZE)(crops).reshape(2, 3, 8, 8)
    corner = NORMALIZE(crops[:, :, 4:8, 28:32] / 255).mean((2, 3))
    assert torch.allclose(averages[:, :, 1, 7], corner, atol=1e-6)


@pytest.mark.parametrize(("scale", "storage", "is_refused"), [
    (float("nan"), "float32", True), (1e6, "float16", True), (1e6, "float32", False),
])  # fmt: skip
def test_features_that_are_not_finite_are_refused(scale, storage, is_refused, samples):
    class Scaled(nn.Module):
        def forward(self, images):
            return images.abs() * scale

    arguments = {"trunk": PooledTrunk(Scaled(), NORMALIZE)}, samples, Scaled(), ALONE
    if not is_refused:
        extract(*arguments, workers=0, storage=storage)
        return
    with pytest.raises(UserError, match="features of 10 images are not finite"):
        extract(*arguments, workers=0, storage=storage)


def test_float16_takes_half_of_the_memory():
    assert bytes_of_features(1_281_167, 2048, "float32") == 2 * bytes_of_features(1_281_167, 2048, "float16")
    assert bytes_of_features(10, 3, "float32") == 120
