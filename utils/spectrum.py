"""Geometry of spectra: the half that torch.fft.rfft2 returns, in natural order without shift, and real bases."""

import functools
import math

import numpy as np
import torch


@functools.lru_cache(maxsize=64)
def kept_when_low(height: int, width: int, radius: float, outer_radius: float | None, device) -> torch.Tensor:
    """The bins a low-pass image keeps: d < radius, and d ≥ outer_radius where there is one. (H, W//2 + 1) bool.

    Raises: ValueError if either side has no bin.
    """
    u = np.minimum(np.arange(height), height - np.arange(height))
    squared = u[:, None] ** 2 + np.arange(width // 2 + 1) ** 2  # (H, W//2 + 1) integers
    low = squared < radius**2
    if outer_radius is not None:
        low |= squared >= outer_radius**2
    if low.all() or not low.any():
        side = "high" if low.all() else "low"
        outer = "" if outer_radius is None else f", outer_radius {outer_radius}"
        raise ValueError(
            f"radius {radius}{outer} leaves no {side} frequency in a {height}×{width} image: "
            f"its bins lie between 0 and {squared.max() ** 0.5:.2f}"
        )
    return torch.from_numpy(low).to(device)


@functools.lru_cache(maxsize=64)
def column_weight(width: int, device: torch.device) -> torch.Tensor:
    """How many columns of the full spectrum each of the half spectrum stands for: (W//2 + 1,) float64 of 1 and 2."""
    weight = np.full(width // 2 + 1, 2.0)
    weight[[0] if width % 2 else [0, -1]] = 1.0
    return torch.from_numpy(weight).to(device)


@functools.lru_cache(maxsize=64)
def real_basis(size: int, radius: float, device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal cosines and sines of the frequencies below radius: (K, size), and their frequencies (K,).

    K is below 2 · radius. With `basis` of rows and of columns, `rows @ image @ columns.T` are the image's components,
    and u² + v² of the basis vectors says on which side of a circle a component is, since |u|, |v| alone decide.
    """
    frequencies = torch.arange(min(math.ceil(radius), size // 2 + 1), dtype=torch.float64)
    angles = 2 * math.pi / size * frequencies[:, None] * torch.arange(size)
    alone = (frequencies == 0) | (2 * frequencies == size)  # have no sine, and a cosine of twice the energy
    scale = ((2 - alone.double()) / size).sqrt()[:, None]
    basis = torch.cat([scale * angles.cos(), (scale * angles.sin())[~alone]])
    return basis.to(device, dtype), torch.cat([frequencies, frequencies[~alone]]).to(device)
