import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.frequency_filter import FrequencyFilter
from tests.support import reference
from utils.precision import set_tf32

QUARTERS = st.integers(1, 60).map(lambda n: n / 4)  # a quarter is never a rounded square root
MIXED = torch.tensor([True, False, False])


def random_images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


@pytest.mark.parametrize(
    ("output", "clamp"), [("real", None), ("abs", None), ("real", (0.0, 1.0)), ("abs", (0.1, 0.6))]
)
@pytest.mark.parametrize(("height", "width", "radius", "outer_radius"), reference.SPECTRA)
def test_filter_agrees_with_reference(height, width, radius, outer_radius, output, clamp):
    images = random_images(3, 2, height, width)
    expected = reference.filter_images(images.numpy(), MIXED, radius, outer_radius, output, clamp)
    frequency_filter = FrequencyFilter(radius, outer_radius, output=output, clamp=clamp)
    filtered = frequency_filter(images, MIXED)
    assert filtered.dtype == torch.float64
    np.testing.assert_allclose(filtered, expected, atol=1e-12)
    single = frequency_filter(images.float().to(memory_format=torch.channels_last), MIXED)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, atol=2e-6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(3, 20), st.integers(3, 20), QUARTERS, st.none() | QUARTERS, st.integers(0, 999))
def test_any_size_and_radius_agrees_or_is_refused(height, width, radius, band, seed):
    outer_radius = None if band is None else radius + band
    images = random_images(2, 1, height, width, seed=seed)
    keep_low = torch.tensor([True, False])
    frequency_filter = FrequencyFilter(radius, outer_radius)
    if not reference.has_both_sides(height, width, radius, outer_radius):
        with pytest.raises(ValueError, match=str(radius)):
            frequency_filter(images, keep_low)
        return
    filtered, other_side = frequency_filter(images, keep_low), frequency_filter(images, ~keep_low)
    expected = reference.filter_images(images.numpy(), keep_low, radius, outer_radius)
    np.testing.assert_allclose(filtered, expected, atol=1e-12)
    np.testing.assert_allclose(filtered + other_side, images, atol=1e-12)
    np.testing.assert_allclose(frequency_filter(filtered, keep_low), filtered, atol=1e-12)
    np.testing.assert_allclose(frequency_filter(filtered, ~keep_low), torch.zeros_like(images), atol=1e-12)


@pytest.mark.parametrize(("radius", "outer_radius", "low_bins"), [(16, None, 793), (16, 200, 793), (0.5, None, 1)])
def test_number_of_low_bins_at_224(radius, outer_radius, low_bins):
    delta = torch.zeros(2, 1, 224, 224, dtype=torch.float64)
    delta[..., 0, 0] = 224  # every bin of the orthonormal spectrum is 1
    filtered = FrequencyFilter(radius, outer_radius)(delta, torch.tensor([True, False]))
    counts = filtered.square().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(counts, [low_bins, 224 * 224 - low_bins], rtol=1e-10)


def test_permuted_batch_permutes_output():
    images, keep_low, order = random_images(5, 3, 9, 10), torch.tensor([1, 0, 0, 1, 0]).bool(), [3, 1, 4, 0, 2]
    frequency_filter = FrequencyFilter(2.5)
    torch.testing.assert_close(
        frequency_filter(images[order], keep_low[order]), frequency_filter(images, keep_low)[order]
    )


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype, autocast):
    images = random_images(3, 3, 10, 9).to(dtype)
    frequency_filter = FrequencyFilter(3, output="abs", clamp=(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        filtered = frequency_filter(images, MIXED)
    assert filtered.dtype == torch.float32
    assert torch.equal(filtered, FrequencyFilter(3, output="abs", clamp=(0, 1))(images.float(), MIXED))


@pytest.mark.parametrize("output", ["real", "abs"])
def test_leaves_no_graph_and_input_untouched(output):
    images = random_images(3, 3, 8, 9).requires_grad_()
    before = images.detach().clone()
    filtered = FrequencyFilter(3, output=output, clamp=(0, 1))(images, MIXED)
    assert not filtered.requires_grad and filtered.grad_fn is None
    assert torch.equal(images, before)


def test_one_filter_serves_changing_sizes_and_dtypes():
    frequency_filter = FrequencyFilter(2.5)
    for height, width in [(8, 8), (8, 9), (9, 8), (9, 9), (6, 12), (12, 6), (4, 18), (8, 8)]:
        images = random_images(3, 2, height, width, seed=height)
        expected = reference.filter_images(images.numpy(), MIXED, 2.5)
        np.testing.assert_allclose(frequency_filter(images.float(), MIXED), expected, atol=2e-6)
        np.testing.assert_allclose(frequency_filter(images, MIXED).mul_(1), expected, atol=1e-12)


BAD = [
    ({"radius": 0}, "0"), ({"radius": -2.5}, "-2.5"), ({"radius": float("nan")}, "nan"),
    ({"radius": 3.25, "outer_radius": 3.25}, "3.25"), ({"radius": 3.25, "outer_radius": 2.5}, "2.5"),
    ({"radius": 3, "output": "imaginary"}, "imaginary"), ({"radius": 3, "clamp": (0.75, 0.25)}, r"0\.75.*0\.25"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        FrequencyFilter(**arguments)


@pytest.mark.parametrize(
    ("shape", "batch"), [((3, 2, 8, 8), 2), ((3, 2, 8, 8), 1), ((3, 8, 8), 3), ((1, 3, 2, 8, 8), 1)]
)
def test_unlike_shapes_are_refused(shape, batch):
    with pytest.raises(ValueError, match=str(batch)):
        FrequencyFilter(2)(torch.zeros(shape), torch.ones(batch, dtype=torch.bool))


def test_products_keep_full_precision_where_training_lowers_it(monkeypatch):
    """TF32 has 10 bits: on a GPU the filter would be wrong by a thousandth."""
    asked = []
    matmul = torch.Tensor.__matmul__

    def noting(one, other):
        asked.append(torch.get_float32_matmul_precision())
        return matmul(one, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noting)
    set_tf32(True)
    try:
        FrequencyFilter(2)(torch.rand(2, 3, 8, 8), torch.tensor([True, False]))
    finally:
        set_tf32(False)
    assert set(asked) == {"highest"}
