"""Crops and resizes: evaluation as Pillow does it, training within its limits and a function of its key."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2

from configs.schema import FinetuneDataOptions
from data.augment import AUTO_AUGMENTS, augmentations, evaluation_crops, train_transform
from utils.seeding import keyed_torch

WHOLE = {"crop_ratio": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}  # a crop that is the whole of a square image
USUAL = {"crop_ratio": (0.2, 1.0), "aspect_ratio": (0.75, 4 / 3), "flip_probability": 0.5}
RAND_AUGMENT = {"rand_augment_ops": 2, "rand_augment_magnitude": 9, "rand_augment_bins": 10}
TIMM = {**RAND_AUGMENT, "rand_augment_style": "timm", "rand_augment_probability": 1.0}
AUGMENTATIONS = {"plain": {}, "RandAugment": RAND_AUGMENT, "timm": TIMM, "random erasing": {"random_erasing": 1.0}}
AUGMENTATIONS |= {name: {"auto_augment": name} for name in AUTO_AUGMENTS}


def photo(height, width):
    """(3, H, W) uint8: smooth, with a fine checker on top that only an antialiased resize averages away."""
    y, x = np.mgrid[0:height, 0:width]
    v, u = y / max(height, width), x / max(height, width)
    smooth = np.stack([128 + 90 * np.sin(6 * u + 3 * v), 128 + 90 * np.cos(9 * v - 2 * u), 30 + 180 * u * v])
    return torch.from_numpy((smooth + 25 * ((x + y) % 2)).round().astype(np.uint8))


def as_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def assert_close(ours, theirs):
    """Within rounding: at most 2 levels, hardly any on average (0.03; bilinear on torchvision 0.22: 0.13)."""
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("resize_size", "crop_size"), [(35, 32), (32, 32), (64, 47), (235, 224)])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (375, 251), (40, 36), (36, 61)])
def test_evaluation_agrees_with_pillow(height, width, resize_size, crop_size, interpolation):
    image = photo(height, width)
    resize = transforms.Resize(resize_size, InterpolationMode(interpolation))
    expected = transforms.CenterCrop(crop_size)(resize(as_pillow(image)))
    crops = evaluation_crops(image, (resize_size,), crop_size, interpolation)
    assert crops.shape == (1, 3, crop_size, crop_size)
    assert crops.dtype == torch.uint8
    assert_close(crops[0], expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("as_decoded", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_crops_are_those_of_torchvision_pixel_for_pixel(seed, as_decoded, interpolation):
    image, mode = photo(120 + 7 * seed, 150), InterpolationMode(interpolation)
    if as_decoded:  # HWC in memory
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    theirs = v2.RandomResizedCrop(64, (0.1, 1.0), (0.75, 4 / 3), mode, antialias=True)
    with keyed_torch(seed, "crop"):
        expected = theirs(image)
    ours = train_transform(
        crop_size=64,
        crop_ratio=(0.1, 1.0),
        aspect_ratio=(0.75, 4 / 3),
        flip_probability=0.0,
        interpolation=interpolation,
    )
    with keyed_torch(seed, "crop"):
        assert torch.equal(ours(image), expected)


def test_several_sizes_are_each_as_alone():
    image, sizes = photo(90, 130), (40, 32, 36)
    together = evaluation_crops(image, sizes, 32)
    assert together.shape == (3, 3, 32, 32)
    for one, size in zip(together, sizes, strict=True):
        torch.testing.assert_close(one, evaluation_crops(image, (size,), 32)[0], rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("height", "width"), [(64, 256), (256, 64)])
def test_short_side_is_resized_and_the_centre_cropped(height, width):
    """A ramp along the long side keeps its middle quarter; along the short side all of it."""
    along = torch.arange(256).to(torch.uint8)
    image = (along.expand(3, 64, 256) if width > height else along[:, None].expand(3, 256, 64)).contiguous()
    crop = evaluation_crops(image, (32,), 32)[0].float()
    line = crop.mean((0, 1) if width > height else (0, 2))
    assert 96 <= line.min() < 100
    assert 156 < line.max() <= 160


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [24, 90])
def test_whole_crop_is_pillows_resize(side, interpolation):
    image = photo(side, side)
    whole = train_transform(crop_size=32, **WHOLE, flip_probability=0, interpolation=interpolation)(image)
    mode = Image.Resampling[interpolation.upper()]
    assert_close(whole, as_pillow(image).resize((32, 32), mode))


@pytest.mark.parametrize(("height", "width"), [(40, 36), (500, 20), (8, 8), (1, 1)])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_training_crop_has_its_shape(height, width, augmentation):
    transform = train_transform(crop_size=32, **USUAL, then=augmentations(**augmentation))
    with keyed_torch(0, "test"):
        crop = transform(photo(height, width))
    assert (crop.shape, crop.dtype) == ((3, 32, 32), torch.uint8)


def drawn(transform, image, *key):
    with keyed_torch(0, "test", *key):
        return transform(image)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_function_of_the_key(augmentation):
    image = photo(80, 60)
    transform = train_transform(crop_size=32, **USUAL, then=augmentations(**augmentation))
    first = [drawn(transform, image, n) for n in range(6)]
    np.random.seed(7)
    torch.rand(3)
    again = [drawn(transform, image, n) for n in reversed(range(6))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i in range(6) for j in range(i))


def crop_sides(crop):
    """Height and width, in pixels of the image, of a crop of an image that holds y in channel 0 and x in channel 1."""
    size = crop.shape[-1]
    rise = [abs(crop[0].mean(1)[-1] - crop[0].mean(1)[0]), abs(crop[1].mean(0)[-1] - crop[1].mean(0)[0])]
    return [float(side) * size / (size - 1) for side in rise]


@pytest.mark.parametrize("crop_ratio", [(0.2, 1.0), (0.08, 0.3), (0.6, 0.7)])
@pytest.mark.parametrize("aspect_ratio", [(0.8, 1.25), (0.5, 2.0)])
def test_crop_stays_within_area_and_aspect(crop_ratio, aspect_ratio):
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    image = torch.stack([y, x, x]).to(torch.uint8)
    transform = train_transform(
        crop_size=32, crop_ratio=crop_ratio, aspect_ratio=aspect_ratio, flip_probability=0.5, interpolation="bilinear"
    )
    sides = np.array([crop_sides(drawn(transform, image, n).float()) for n in range(150)])
    areas, aspects = sides.prod(1) / 256**2, sides[:, 1] / sides[:, 0]
    low, high = crop_ratio
    assert low * 0.93 < areas.min() < low + 0.12 * (high - low)
    assert high - 0.3 * (high - low) < areas.max() < high * 1.05
    assert aspect_ratio[0] * 0.94 < aspects.min() < 1 / 1.1
    assert 1.1 < aspects.max() < aspect_ratio[1] * 1.06


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (1.0, 200, 200), (0.5, 75, 125), (0.1, 5, 40)])
def test_flips_as_often_as_asked(probability, least, most):
    image = photo(32, 32)
    transform = train_transform(crop_size=32, **WHOLE, flip_probability=probability)
    results = [drawn(transform, image, n) for n in range(200)]
    flips = [torch.equal(result, image.flip(-1)) for result in results]
    assert all(flip or torch.equal(result, image) for flip, result in zip(flips, results, strict=True))
    assert least <= sum(flips) <= most


def test_rand_augment_is_on_where_asked_and_as_strong_as_asked():
    image = photo(32, 32)

    def change(operations, magnitude, bins):
        then = augmentations(rand_augment_ops=operations, rand_augment_magnitude=magnitude, rand_augment_bins=bins)
        transform = train_transform(crop_size=32, **WHOLE, flip_probability=0, then=then)
        results = [drawn(transform, image, n).float() for n in range(40)]
        return np.mean([float((result - image).abs().mean()) for result in results])

    assert change(0, 9, 10) == 0
    assert 0 < change(1, 2, 10) < change(1, 9, 10) < change(4, 9, 10)
    assert change(1, 9, 31) < change(1, 9, 10)


def test_the_knob_offers_the_automatic_augmentations_of_the_table():
    [knob] = [field for field in fields(FinetuneDataOptions) if field.name == "auto_augment"]
    assert set(knob.metadata["choices"]) == AUTO_AUGMENTS.keys()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", AUTO_AUGMENTS)
def test_an_automatic_augmentation_is_what_coincheungs_code_makes_of_a_pillow_image(name, interpolation):
    mode = InterpolationMode(interpolation)
    if name == "augmix":
        theirs = transforms.AugMix()  # with bicubic interpolation torchvision refuses it
    elif name == "auto_augment":
        theirs = transforms.AutoAugment(policy=transforms.AutoAugmentPolicy("imagenet"), interpolation=mode)
    else:
        theirs = transforms.TrivialAugmentWide(interpolation=mode)
    plain = train_transform(crop_size=48, **USUAL, interpolation=interpolation)
    then = augmentations(auto_augment=name, interpolation=interpolation)
    ours = train_transform(crop_size=48, **USUAL, interpolation=interpolation, then=then)
    changed = 0
    for seed in range(60):
        with keyed_torch(0, "test", seed):
            crop = plain(photo(90, 70))
            expected = v2.functional.pil_to_tensor(theirs(as_pillow(crop)))
        result = drawn(ours, photo(90, 70), seed)
        assert torch.equal(result, expected)
        changed += not torch.equal(result, crop)
    assert changed > 30


def test_what_is_erased_is_0_after_normalisation_and_the_rest_stays():
    """The rectangle that torchvision's own erases after normalisation by the same draws, as CoinCheung/MFM does."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = train_transform(crop_size=48, **USUAL)
    ours = train_transform(crop_size=48, **USUAL, then=augmentations(random_erasing=0.7, mean=mean))
    half_a_level = 0.5 / 255 / min(std)
    erased = 0
    for seed in range(40):
        with keyed_torch(0, "test", seed):
            crop = plain(photo(90, 70))
            normal = v2.functional.normalize(crop / 255, mean, std)
            expected = transforms.RandomErasing(p=0.7)(normal)
        result = v2.functional.normalize(drawn(ours, photo(90, 70), seed) / 255, mean, std)
        rectangle = expected == 0
        erased += bool(rectangle.any())
        assert torch.equal(result[~rectangle], expected[~rectangle])
        assert not rectangle.any() or result[rectangle].abs().max() <= half_a_level
    assert 18 <= erased <= 38


@pytest.mark.parametrize("name", ["plain", "RandAugment", "timm"])
def test_random_erasing_comes_last_and_moves_no_other_draw(name):
    image, mean = photo(90, 70), (1, 0, 0)
    before = augmentations(**AUGMENTATIONS[name], mean=mean)
    after = augmentations(**AUGMENTATIONS[name], mean=mean, random_erasing=1.0)
    changed = 0
    for seed in range(10):
        whole = drawn(train_transform(crop_size=48, **USUAL, then=before), image, seed)
        erased = drawn(train_transform(crop_size=48, **USUAL, then=after), image, seed)
        red = (erased == torch.tensor([255, 0, 0])[:, None, None]).all(0)
        assert torch.equal(erased[:, ~red], whole[:, ~red])
        changed += not torch.equal(erased, whole)
    assert changed >= 9


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (5000, 1), (3, 400)])
def test_of_a_slim_image_no_more_is_resized_than_the_crop_can_see(height, width, monkeypatch):
    """Whole, 1 × 5000 pixels would become 235 × 1175000 of three channels."""
    resized_pixels = []
    resize = v2.functional.resize

    def noting_resize(image, *arguments, **keywords):
        resized = resize(image, *arguments, **keywords)
        resized_pixels.append(resized[0].numel())
        return resized

    monkeypatch.setattr(v2.functional, "resize", noting_resize)
    crops = evaluation_crops(photo(height, width), (235,), 224)
    assert crops.shape == (1, 3, 224, 224)
    assert resized_pixels == [16 * 235**2]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_slim_images_crop_is_that_of_the_whole(interpolation):
    image = photo(6, 156)  # 30 columns, which become 200, are cut away on each side
    whole = v2.functional.resize(image, [40], InterpolationMode(interpolation), antialias=True)
    crops = evaluation_crops(image, (40,), 32, interpolation)
    difference = (crops[0].int() - v2.functional.center_crop(whole, [32]).int()).abs()
    assert difference.max() <= 1
