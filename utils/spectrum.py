"""Geometry of spectra: the half that torch.fft.rfft2 returns, in natural order without shift, and real bases.

Legend: H W pixels, U V frequencies of the half spectrum (U = H, V = W//2 + 1), K basis vectors.
"""

import functools
import math

import numpy as np
import torch


def squared_distances(height: int, width: int) -> np.ndarray:
    """u² + v² of each bin of the half spectrum, its squared distance from frequency 0: (U, V) float64."""
    rows = np.arange(height)
    u = np.minimum(rows, height - rows)
    v = np.arange(width // 2 + 1)
    return (u[:, None] ** 2 + v**2).astype(np.float64)


@functools.lru_cache(maxsize=64)
def squared_distance(height: int, width: int, device: torch.device) -> torch.Tensor:
    """`squared_distances` on a device."""
    return torch.from_numpy(squared_distances(height, width)).to(device)


@functools.lru_cache(maxsize=64)
def kept_when_low(
    height: int, width: int, radius: float, outer_radius: float | None, device: torch.device
) -> torch.Tensor:
    """The bins that a low-pass image keeps: d < radius, and d ≥ outer_radius if there is one. (U, V) bool.

    d² = u² + v² is the distance of a bin from frequency 0.
    Raises: ValueError if either side has no bin.
    """
    squared = squared_distances(height, width)
    low = squared < radius**2
    if outer_radius is not None:
        low |= squared >= outer_radius**2
    if low.all() or not low.any():
        empty_side = "high" if low.all() else "low"
        outer = "" if outer_radius is None else f", outer_radius {outer_radius}"
        raise ValueError(
            f"radius {radius}{outer} leaves no {empty_side} frequency in a {height}×{width} image: "
            f"its bins lie between 0 and {squared.max() ** 0.5:.2f}"
        )
    return torch.from_numpy(low).to(device)


@functools.lru_cache(maxsize=64)
def column_weight(width: int, device: torch.device) -> torch.Tensor:
    """How many columns of the full spectrum each column of the half spectrum stands for: (V,) float64 of 1 and 2."""
    weight = np.full(width // 2 + 1, 2.0)
    weight[0] = 1.0
    if width % 2 == 0:
        weight[-1] = 1.0
    return torch.from_numpy(weight).to(device)


@functools.lru_cache(maxsize=64)
def real_basis(size: int, radius: float, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal cosines and sines of the frequencies below radius: (K, size), and their frequencies (K,).

    K is below 2 · radius. With the `basis` of rows and that of columns, `rows @ image @ columns.T` are an image's
    components. Component (k, l) belongs to the frequencies (±u[k], ±v[l]), so u² + v² decides whether it is inside a
    disk.
    """
    frequencies = torch.arange(min(math.ceil(radius), size // 2 + 1), dtype=torch.float64)
    angles = 2 * math.pi / size * frequencies[:, None] * torch.arange(size)
    unpaired = (frequencies == 0) | (2 * frequencies == size)  # have no sine, and a cosine of twice the energy
    scale = ((2 - unpaired.double()) / size).sqrt()[:, None]
    cosines = scale * angles.cos()
    sines = (scale * angles.sin())[~unpaired]
    basis = torch.cat([cosines, sines])
    return basis.to(device, dtype), torch.cat([frequencies, frequencies[~unpaired]]).to(device)
