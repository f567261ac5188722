"""Removing low or high frequencies of an image (arXiv 2206.07706, section 3.2).

The low disk is small: 793 of 50,176 bins at radius 16. So it is taken by products with two thin matrices of cosines
and sines, which is the same projection as a transform, a mask and a transform back, several times faster on a CPU, and
needs no memory beside its result. High-pass is the image minus low-pass.
"""

import torch

from utils.precision import exact_float32, full_precision
from utils.spectrum import kept_when_low, real_basis


class FrequencyFilter:
    """Keeps one side of the spectrum of each image.

    Args:
        radius: bins with u² + v² < radius² are low; in integer bins of the image at hand, never rescaled.
        outer_radius: with it, only the ring radius ≤ d < outer_radius is high.
        output: "real", or "abs" for its absolute value (public code A).
        clamp: limits of the result, in its own units, applied last.
    """

    def __init__(
        self, radius: float, outer_radius: float | None = None, output: str = "real", clamp: tuple | None = None
    ):
        if output not in ("real", "abs"):
            raise ValueError(f"output = {output!r}: must be 'real' or 'abs'")
        if not radius > 0 or (outer_radius is not None and not outer_radius > radius):
            raise ValueError(f"radius = {radius}, outer_radius = {outer_radius}: must be 0 < radius < outer_radius")
        if clamp is not None and not clamp[0] <= clamp[1]:
            raise ValueError(f"clamp = {clamp}: must have the smaller number first")
        self.radius, self.outer_radius, self.output, self.clamp = radius, outer_radius, output, clamp

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
        height, width = images.shape[-2:]
        kept_when_low(height, width, self.radius, self.outer_radius, images.device)  # refuses an empty side
        with torch.autocast(images.device.type, enabled=False), exact_float32():
            images = full_precision(images)
            rows, columns, inside = self.basis(height, width, images.device, images.dtype)
            sign = torch.where(keep_low == (self.outer_radius is None), 1, -1)[:, None, None, None]
            components = (rows @ images @ columns.T) * inside * sign  # (B, C, K, L)
            # One side is spanned by the basis; the other is what it leaves of the image.
            filtered = rows.T @ components @ columns
            filtered.addcmul_(images, (sign < 0).to(images.dtype))
            if self.output == "abs":
                filtered.abs_()
            return filtered if self.clamp is None else filtered.clamp_(*self.clamp)

    def basis(self, height, width, device, dtype):
        """Of the disk, or of the ring if there is one: rows (K, H), columns (L, W), and which products count (K, L)."""
        outside = self.radius if self.outer_radius is None else self.outer_radius
        rows, u = real_basis(height, outside, device, dtype)
        columns, v = real_basis(width, outside, device, dtype)
        squared = u[:, None] ** 2 + v**2
        inside = squared < outside**2
        return rows, columns, inside if self.outer_radius is None else inside & (squared >= self.radius**2)
