"""Removing low or high frequencies of an image (arXiv 2206.07706, section 3.2).

The low disk is small: 793 of 50,176 bins at radius 16. So it is taken by products with two thin matrices of cosines
and sines, which is the same projection as a transform, a mask and a transform back, several times faster on a CPU, and
needs no memory beside its result. High-pass is the image minus low-pass.
"""

import functools
from dataclasses import dataclass

import torch

from utils.precision import full_precision
from utils.spectrum import kept_when_low, real_basis


class TwoSided:
    """What the frequency filters share: a spectrum has a low and a high side, and each image keeps one of them.

    Args:
        low_pass_probability: chance that an image keeps its low side.
        output: "real", or "abs" for its absolute value (CoinCheung/MFM).
        clamp: limits of the result, in its own units, applied last.
    """

    kinds: tuple[str, ...] = ("low_pass", "high_pass")

    def __init__(self, low_pass_probability: float, output: str, clamp: tuple[float, float] | None):
        if output not in ("real", "abs"):
            raise ValueError(f"output = {output!r}: must be 'real' or 'abs'")
        if clamp is not None and not clamp[0] <= clamp[1]:
            raise ValueError(f"clamp = {clamp}: must have the smaller number first")
        self.low_pass_probability, self.output, self.clamp = low_pass_probability, output, clamp

    def choose(self, uniform: float) -> bool | float:
        """The image's coin, keep_low."""
        return uniform < self.low_pass_probability

    def keep_low(self, choices: torch.Tensor) -> torch.Tensor:
        """What was chosen (B,) as coins (B,) bool."""
        return choices

    def is_kind(self, kind: str, choices: torch.Tensor) -> torch.Tensor:
        return self.keep_low(choices) == (kind == "low_pass")

    def example(self, kind: str) -> bool | float:
        return kind == "low_pass"

    def removes_mean(self, kind: str) -> bool:
        """Whether frequency 0, the mean of the image, is among the removed ones."""
        return kind == "high_pass"

    def masked(self, images: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) with the frequencies `kept` (B, U, V) bool alone."""
        with torch.autocast(images.device.type, enabled=False):
            spectrum = torch.fft.rfft2(full_precision(images), norm="ortho")
            return self.finish(torch.fft.irfft2(spectrum * kept[:, None], s=images.shape[-2:], norm="ortho"))

    def finish(self, filtered: torch.Tensor) -> torch.Tensor:
        """Output and clamp, in place."""
        if self.output == "abs":
            filtered.abs_()
        if self.clamp is not None:
            filtered.clamp_(*self.clamp)
        return filtered


@dataclass(frozen=True)
class Projection:
    """What a filter multiplies images with; constants for one size of image, type of number and device."""

    rows: torch.Tensor  # (K, H)
    columns: torch.Tensor  # (L, W)
    in_span: torch.Tensor  # (K, L) bool, the products that count: those of the disk, or of the ring if there is one
    kept_when_low: torch.Tensor  # (U, V) bool, the bins that a low-pass image keeps

    def fits(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> bool:
        size = self.rows.shape[1], self.columns.shape[1]
        return size == (height, width) and self.rows.device == device and self.rows.dtype == dtype


@functools.lru_cache(maxsize=64)
def projection(
    height: int, width: int, radius: float, outer_radius: float | None, device: torch.device, dtype: torch.dtype
) -> Projection:
    """Raises: ValueError if either side of the spectrum is empty."""
    low = kept_when_low(height, width, radius, outer_radius, device)
    outermost = radius if outer_radius is None else outer_radius
    rows, u = real_basis(height, outermost, device, dtype)
    columns, v = real_basis(width, outermost, device, dtype)
    squared = u[:, None] ** 2 + v**2
    in_span = squared < outermost**2
    if outer_radius is not None:
        in_span &= squared >= radius**2
    return Projection(rows, columns, in_span, low)


class FrequencyFilter(TwoSided):
    """Keeps one side of the spectrum of each image. It is a corruption: see models.corruption.Corruption.

    Args:
        radius: bins with u² + v² < radius² are low; in integer bins of the image at hand, never rescaled.
        outer_radius: with it, only the ring radius ≤ d < outer_radius is high.
        size, device: of the images of training, float32: their constants are made here. Those of others are made when
            such images come.
    """

    def __init__(
        self, radius: float, outer_radius: float | None = None, output: str = "real",
        clamp: tuple[float, float] | None = None, low_pass_probability: float = 0.5,
        size: int | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        super().__init__(low_pass_probability, output, clamp)
        if not radius > 0 or (outer_radius is not None and not outer_radius > radius):
            raise ValueError(f"radius = {radius}, outer_radius = {outer_radius}: must be 0 < radius < outer_radius")
        self.radius, self.outer_radius = radius, outer_radius
        self.radii = (radius,)
        self.prepared = None
        if size is not None:
            self.prepared = projection(size, size, radius, outer_radius, device or torch.device("cpu"), torch.float32)

    def projection(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Projection:
        """Raises: ValueError if a side of the spectrum is empty at this height and width."""
        if self.prepared is not None and self.prepared.fits(height, width, device, dtype):
            return self.prepared
        return projection(height, width, self.radius, self.outer_radius, device, dtype)

    def corrupt(self, images: torch.Tensor, keep_low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The filtered images, and the bins that were removed (B, U, V) bool."""
        return self(images, keep_low), self.removed(keep_low, *images.shape[-2:])

    def removed(self, keep_low: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """keep_low (B,) -> (B, U, V) bool."""
        low = self.projection(height, width, keep_low.device, torch.float32).kept_when_low
        return low != keep_low[:, None, None]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, keep_low: torch.Tensor) -> torch.Tensor:
        """Filter each image by its own coin.

        Args:
            images: (B, C, H, W) floating point, any H and W.
            keep_low: (B,) bool; True keeps the low side, False the high side.
        Returns: (B, C, H, W), float64 for float64 input, else float32.
        Raises: ValueError on unlike shapes, or if a side of the spectrum is empty at this H and W.
        """
        if images.dim() != 4 or keep_low.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {tuple(keep_low.shape)}"
            raise ValueError(f"images and keep_low have shapes {shapes}: must be (B, C, H, W) and (B,)")
        images = full_precision(images)
        height, width = images.shape[-2:]
        basis = self.projection(height, width, images.device, images.dtype)
        # The basis spans the low disk, or the ring of the high side if there is one. An image that keeps this span is
        # its projection; any other image is what the projection leaves of it.
        keeps_span = keep_low if self.outer_radius is None else ~keep_low
        sign = torch.where(keeps_span, 1, -1)[:, None, None, None]
        with torch.autocast(images.device.type, enabled=False):
            components = (basis.rows @ images @ basis.columns.T) * basis.in_span * sign  # (B, C, K, L)
            filtered = basis.rows.T @ components @ basis.columns
            filtered.addcmul_(images, (sign < 0).to(images.dtype))
            return self.finish(filtered)
