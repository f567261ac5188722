"""Slow float64 references for the frequency filter and the masked frequency loss: numpy only, always the full H×W
spectrum, DFTs as explicit matrix products, one image and one channel at a time."""

import numpy as np

# Height, width, radius, outer radius. Some radii lie exactly on bins: (3, 4) and (5, 0) are at distance 5.
SPECTRA = [(8, 8, 3, None), (7, 9, 2.5, None), (9, 6, 5, None), (12, 11, 5, None), (10, 7, 2, 4.5), (11, 12, 3, 5)]


def frequencies(size):
    """Integer frequency of each DFT index: 0, 1, ... then the negative ones; even sizes hold -size/2, not +size/2."""
    return np.array([k if 2 * k < size else k - size for k in range(size)], dtype=np.float64)


def low_side(height, width, radius, outer_radius=None):
    """(H, W) bool, DFT order: d < radius, or d >= outer_radius when there is one."""
    distance = np.sqrt(frequencies(height)[:, None] ** 2 + frequencies(width)[None, :] ** 2)
    low = distance < radius
    return low if outer_radius is None else low | (distance >= outer_radius)


def has_both_sides(height, width, radius, outer_radius=None):
    low = low_side(height, width, radius, outer_radius)
    return low.any() and not low.all()


def dft_matrix(size):
    index = np.arange(size)
    return np.exp(-2j * np.pi * (np.outer(index, index) % size) / size) / np.sqrt(size)


def dft2(images):
    images = np.asarray(images, dtype=np.complex128)
    return dft_matrix(images.shape[-2]) @ images @ dft_matrix(images.shape[-1])


def idft2(spectra):
    return dft_matrix(spectra.shape[-2]).conj() @ spectra @ dft_matrix(spectra.shape[-1]).conj()


def filter_images(images, keep_low, radius, outer_radius=None, output="real", clamp=None):
    filtered = np.empty(np.shape(images))
    low = low_side(*filtered.shape[-2:], radius, outer_radius)
    for b, c in np.ndindex(filtered.shape[:2]):
        kept = low if keep_low[b] else ~low
        inverse = idft2(dft2(images[b][c]) * kept)
        filtered[b, c] = inverse.real if output == "real" else np.abs(inverse)
    return filtered if clamp is None else np.minimum(np.maximum(filtered, clamp[0]), clamp[1])


def counted_bins(shape, keep_low, radius, outer_radius=None, scope="removed"):
    """(B, H, W) bool: the bins that the loss counts; the removed ones are the side that the filter does not keep."""
    low = low_side(*shape[-2:], radius, outer_radius)
    return np.stack([np.ones_like(low) if scope == "all" else (~low if keep else low) for keep in keep_low])


def loss_terms(predicted, target, keep_low, radius, outer_radius=None, gamma=1.0, eps=1e-7, scope="removed"):
    """Per image, per channel: the vector of distances over the counted bins."""
    difference = dft2(predicted) - dft2(target)
    distance = (np.abs(difference) ** 2 + eps) ** (gamma / 2)
    counted = counted_bins(distance.shape, keep_low, radius, outer_radius, scope)
    return [[channel[mask] for channel in image] for image, mask in zip(distance, counted, strict=True)]


def per_image(*args, **knobs):
    return np.array([np.mean([np.mean(channel) for channel in image]) for image in loss_terms(*args, **knobs)])


def loss(*args, reduction="image", **knobs):
    if reduction == "image":
        return np.mean(per_image(*args, **knobs))
    return np.mean(np.concatenate([channel for image in loss_terms(*args, **knobs) for channel in image]))


def loss_gradient(
    predicted, target, keep_low, radius, outer_radius=None, gamma=1.0, eps=1e-7, reduction="image", scope="removed"
):
    """d loss / d predicted: the orthonormal DFT is unitary, so the chain rule ends in its inverse."""
    difference = dft2(predicted) - dft2(target)
    batch, channels = difference.shape[:2]
    counted = counted_bins(difference.shape, keep_low, radius, outer_radius, scope).astype(np.float64)[:, None]
    share = counted / counted.sum((1, 2, 3), keepdims=True) / batch if reduction == "image" else counted / counted.sum()
    slope = gamma * (np.abs(difference) ** 2 + eps) ** (gamma / 2 - 1)
    return idft2(share / channels * slope * difference).real
