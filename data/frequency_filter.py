"""Removing low or high frequencies of an image (arXiv 2206.07706, section 3.2)."""

import torch

from utils.precision import full_precision
from utils.spectrum import kept_when_low


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
        low_bins = kept_when_low(height, width, self.radius, self.outer_radius, images.device)
        with torch.autocast(images.device.type, enabled=False):
            images = full_precision(images)
            spectrum = torch.fft.rfft2(images, norm="ortho")
            low = torch.fft.irfft2(spectrum * low_bins, s=(height, width), norm="ortho")
            filtered = torch.where(keep_low[:, None, None, None], low, images - low)  # low + high = image
            if self.output == "abs":
                filtered = filtered.abs()
            return filtered if self.clamp is None else filtered.clamp(*self.clamp)
