"""RandAugment against the libraries' own, operation by operation and draw by draw, on photographs."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from timm.data import auto_augment as timm_augment
from torchvision.transforms import InterpolationMode, autoaugment, v2

from data.rand_augment import TIMM_OPERATIONS, DrawnOperation, RandAugment, TimmRandAugment
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


MEAN = (0.485, 0.456, 0.406)
A3 = {"operations": 2, "magnitude": 6, "noise": 0.5, "probability": 0.5, "interpolation": "bicubic", "mean": MEAN}
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def timm_name(name: str) -> str:
    if name in INCREASING:
        return name + "Increasing"
    if name.startswith("Translate"):
        return name + "Rel"
    return name


def timm_options(interpolation: str) -> dict:
    """What timm's create_transform passes on, without noise."""
    fill = tuple(min(255, round(255 * channel)) for channel in MEAN)
    return {"img_mean": fill, "interpolation": Image.Resampling[interpolation.upper()]}


class FixedDraw:
    """In place of Python's `random` in timm's module, whose operations negate their level above 0.5."""

    def __init__(self, negates: bool):
        self.negates = negates

    def random(self) -> float:
        return 0.9 if self.negates else 0.1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", TIMM_OPERATIONS)
def test_an_operation_has_the_pixels_of_timms(name, interpolation, monkeypatch):
    ours = TimmRandAugment(**{**A3, "interpolation": interpolation})
    differ = 0
    levels = (0, 0.1, 1, 2.4999, 2.5, 3.37, 5, 6, 6.66, 7.5, 8.123456789, 9.9999, 10)
    if name == "Posterize":
        levels = levels[:-1]  # with Pillow 13 timm's own fails at 10: see below
    for level in levels:
        theirs = timm_augment.AugmentOp(timm_name(name), prob=1.0, magnitude=level, hparams=timm_options(interpolation))
        for sign in (1, -1):
            monkeypatch.setattr(timm_augment, "random", FixedDraw(negates=sign < 0))
            for image in IMAGES.values():
                result = TIMM_OPERATIONS[name](image, sign * level / 10, ours.warp)
                assert result.tobytes() == theirs(image).tobytes(), (level, sign)
                differ += result.tobytes() != image.tobytes()
    assert differ > 20


def test_posterize_at_the_highest_level_keeps_no_bit():
    black = TIMM_OPERATIONS["Posterize"](IMAGES["coffee"], 1.0, TimmRandAugment(**A3).warp)
    assert not np.asarray(black).any()


def test_operations_draws_and_probability_are_timms():
    """Read off the transform that timm makes of RSB A3's words."""
    options = timm_options("bicubic")
    theirs = timm_augment.rand_augment_transform("rand-m6-mstd0.5-inc1", options)
    assert [operation.name for operation in theirs.ops] == [timm_name(name) for name in TIMM_OPERATIONS]
    assert theirs.num_layers == A3["operations"] and theirs.choice_weights is None  # so with replacement
    for operation in theirs.ops:
        assert (operation.prob, operation.magnitude, operation.magnitude_std) == (0.5, 6, 0.5)
        assert operation.magnitude_max is None  # so 10
        assert operation.kwargs["fillcolor"] == TimmRandAugment(**A3).warp.fill == (124, 116, 104)


def test_drawn_operations_are_applied_in_order(monkeypatch):
    drawn = [DrawnOperation("Solarize", 0.6), DrawnOperation("Rotate", -0.5), DrawnOperation("Invert", 0.6)]
    monkeypatch.setattr(TimmRandAugment, "draw", lambda _self: drawn)
    monkeypatch.setattr(timm_augment, "random", FixedDraw(negates=True))
    expected = IMAGES["coffee"]
    for name, level in (("SolarizeIncreasing", 6), ("Rotate", 5), ("Invert", 6)):
        expected = timm_augment.AugmentOp(name, 1.0, level, timm_options("bicubic"))(expected)
    assert torch.equal(TimmRandAugment(**A3)(tensor_of(IMAGES["coffee"])), tensor_of(expected))


def operations_of(count: int, **changes) -> list[DrawnOperation]:
    """What is drawn for `count` images, one after the other."""
    transform = TimmRandAugment(**{**A3, **changes})
    drawn = []
    with keyed_torch(0, "a test"):
        for _ in range(count):
            drawn += transform.draw()
    return drawn


def test_each_operation_is_drawn_as_often_as_another_and_applied_half_the_time():
    names = [operation.name for operation in operations_of(6000)]
    assert abs(len(names) - 6000) < 4 * (12000 * 0.25) ** 0.5  # of 12000, half; four deviations
    for name in TIMM_OPERATIONS:
        assert abs(names.count(name) - 400) < 4 * (12000 / 30 * 29 / 30) ** 0.5
    transform, repeated = TimmRandAugment(**{**A3, "probability": 1.0}), 0
    with keyed_torch(0, "a test"):
        for _ in range(3000):
            first, second = transform.draw()
            repeated += first.name == second.name
    assert abs(repeated - 200) < 4 * (200 * 14 / 15) ** 0.5  # with replacement: a pair of equals in one of 15


def test_strengths_are_normal_around_the_magnitude_with_either_sign():
    strengths = np.array([operation.strength for operation in operations_of(6000)])
    levels = 10 * np.abs(strengths)
    count = len(levels)
    assert abs((strengths < 0).sum() - count / 2) < 4 * (count / 4) ** 0.5
    assert abs(levels.mean() - 6) < 4 * 0.5 / count**0.5
    assert abs(levels.std() - 0.5) < 4 * 0.5 / (2 * count) ** 0.5
    assert abs(np.mean(np.abs(levels - 6) < 0.5) - 0.6827) < 4 * (0.22 / count) ** 0.5  # normal, not uniform


@pytest.mark.parametrize(("magnitude", "limit"), [(0, 0), (10, 10)])
def test_levels_are_clipped(magnitude, limit):
    levels = np.array([10 * abs(operation.strength) for operation in operations_of(2000, magnitude=magnitude)])
    assert levels.min() >= 0 and levels.max() <= 10
    assert 0.45 < np.mean(levels == limit) < 0.55


def test_without_noise_every_level_is_the_magnitude_and_without_probability_nothing_happens():
    assert {abs(operation.strength) for operation in operations_of(50, noise=0.0)} == {0.6}
    assert operations_of(50, probability=0.0) == []
    assert len(operations_of(50, probability=1.0, operations=3)) == 150
    image = tensor_of(IMAGES["coffee"])
    assert drawn(TimmRandAugment(**{**A3, "probability": 0.0}), image, 0) is image
