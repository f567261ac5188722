"""RandAugment against the libraries' own, operation by operation and draw by draw, on photographs."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode, autoaugment, v2

from data.rand_augment import RandAugment
from utils.seeding import keyed_torch

OPERATIONS = tuple(v2.RandAugment._AUGMENTATION_SPACE)


def photographs() -> dict[str, Image.Image]:
    """Two crops of photographs and one of noise, 80 × 64 pixels."""
    images = {}
    for name in ("astronaut", "coffee"):
        images[name] = Image.fromarray(getattr(data, name)()).resize((80, 64), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return images | {"noise": Image.fromarray(noise)}


IMAGES = photographs()


def tensor_of(image: Image.Image) -> torch.Tensor:
    return v2.functional.pil_to_tensor(image)


def drawn(transform, image, seed: int):
    with keyed_torch(seed, "a test"):
        return transform(image)


def first_version(image: Image.Image, seed: int, magnitude: int, bins: int, mode: InterpolationMode):
    """One operation of torchvision's first RandAugment, as CoinCheung/MFM calls it, by the draws of the second.

    Returns: name of the operation, the image after it.
    """
    space = autoaugment.RandAugment()._augmentation_space(bins, (image.height, image.width))
    with keyed_torch(seed, "a test"):
        name = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
        magnitudes, signed = space[name]
        strength = float(magnitudes[magnitude]) if magnitudes.ndim > 0 else 0.0
        if signed and torch.rand(()) <= 0.5:
            strength = -strength
    return name, autoaugment._apply_op(image, name, strength, interpolation=mode, fill=None)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("mode", [InterpolationMode.BICUBIC, InterpolationMode.BILINEAR], ids=lambda mode: mode.value)
@pytest.mark.parametrize(("magnitude", "bins"), [(6, 10), (9, 10), (3, 10), (0, 10), (16, 31)])
def test_pixels_are_those_of_coincheungs_code(image, mode, magnitude, bins):
    ours = RandAugment(num_ops=1, magnitude=magnitude, num_magnitude_bins=bins, interpolation=mode)
    names = set()
    for seed in range(140):
        name, expected = first_version(image, seed, magnitude, bins, mode)
        assert torch.equal(drawn(ours, tensor_of(image), seed), tensor_of(expected)), name
        names.add(name)
    assert names == set(OPERATIONS)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("magnitude", [5, 9])  # at 3 and 6 of 10 its Solarize keeps one level too many
def test_pixels_and_draws_are_those_of_torchvision_on_pillow_images(image, magnitude):
    options = {"num_ops": 3, "magnitude": magnitude, "num_magnitude_bins": 10}
    ours = RandAugment(**options, interpolation=InterpolationMode.BICUBIC)
    theirs = v2.RandAugment(**options, interpolation=InterpolationMode.BICUBIC)
    for seed in range(40):
        assert torch.equal(drawn(ours, tensor_of(image), seed), tensor_of(drawn(theirs, image, seed)))


def only(name: str) -> RandAugment:
    """RandAugment of CoinCheung/MFM's recipe, one operation an image, which can be no other than `name`."""
    ours = RandAugment(num_ops=1, magnitude=6, num_magnitude_bins=10, interpolation=InterpolationMode.BICUBIC)
    ours._AUGMENTATION_SPACE = {name: RandAugment._AUGMENTATION_SPACE[name]}
    return ours


def test_a_level_on_the_threshold_is_solarized():
    """Threshold 85: torchvision's second version keeps a level of 85 in a Pillow image, its first does not."""
    image = torch.tensor([84, 85, 86], dtype=torch.uint8).expand(3, 1, 3)
    assert drawn(only("Solarize"), image, 0)[0].tolist() == [[84, 170, 169]]


def test_a_checker_is_rotated_by_bicubic_interpolation():
    """8 × 8 pixels in blocks of 2 × 2, by 20 degrees: the numbers are from CoinCheung/MFM's code."""
    checker = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(2, 2)
    checker = checker.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(3, 8, 8)
    first_rows = {tuple(drawn(only("Rotate"), checker, seed)[0, 0].tolist()) for seed in range(8)}
    assert len(first_rows) == 2  # by 20 and by -20 degrees
    assert (0, 0, 181, 0, 27, 255, 238, 0) in first_rows


def test_pixels_do_not_depend_on_the_order_in_memory():
    image = tensor_of(IMAGES["coffee"])  # HWC
    ours = RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=10, interpolation=InterpolationMode.BICUBIC)
    for seed in range(20):
        assert torch.equal(drawn(ours, image, seed), drawn(ours, image.contiguous(), seed))
