"""The masked frequency loss: distance of two spectra where the network saw nothing (arXiv 2206.07706, section 3)."""

import functools
from typing import NamedTuple

import torch

from utils.precision import full_precision
from utils.spectrum import column_weight, kept_when_low

# Values of the difference that are transformed at once: on a CPU so few that they stay in cache, on a GPU enough to
# fill it.
VALUES_AT_ONCE_ON_CPU = 2**20
VALUES_AT_ONCE_ON_GPU = 2**24


class BinWeights(NamedTuple):
    """How often each bin of the half spectrum counts in the loss of an image, (U, V) float64."""

    low_kept: torch.Tensor  # if the network saw the low frequencies
    high_kept: torch.Tensor  # if it saw the high ones


class MaskedFrequencyLoss:
    """Mean over removed bins of (|F(predicted) − F(target)|² + eps)^(gamma/2), F the orthonormal 2-D DFT.

    Args:
        radius, outer_radius: as in `models.frequency_filter.FrequencyFilter`.
        gamma: exponent; 1 is the distance itself.
        eps: > 0; CoinCheung/MFM has 1e-7, the authors' code (Jiahao000/MFM) 1e-12.
        reduction: "image" averages each image and channel over its removed bins, then over both (CoinCheung/MFM).
            "batch" pools: sum over the removed bins of the batch / their count (the authors' code).
        scope: the bins that count: "removed", or "all" of them.
    Raises: ValueError naming an argument out of its range.
    """

    def __init__(
        self,
        radius: float,
        outer_radius: float | None = None,
        gamma: float = 1.0,
        eps: float = 1e-7,
        reduction: str = "image",
        scope: str = "removed",
    ):
        if reduction not in ("image", "batch") or scope not in ("removed", "all"):
            given = f"reduction = {reduction!r}, scope = {scope!r}"
            raise ValueError(f"{given}: must be 'image' or 'batch', and 'removed' or 'all'")
        if not (radius > 0 and gamma > 0 and eps > 0) or (outer_radius is not None and not outer_radius > radius):
            raise ValueError(
                f"radius = {radius}, outer_radius = {outer_radius}, gamma = {gamma}, eps = {eps}: "
                "must be 0 < radius < outer_radius, gamma > 0, eps > 0"
            )
        self.radius = radius
        self.outer_radius = outer_radius
        self.gamma = gamma
        self.eps = eps
        self.reduction = reduction
        self.scope = scope

    def __call__(self, predicted: torch.Tensor, target: torch.Tensor, keep_low: torch.Tensor) -> torch.Tensor:
        """The loss of a batch.

        Args:
            predicted, target: (B, C, H, W), any H and W; taken in float32 (float64 stays float64) outside autocast.
            keep_low: (B,) bool; True: the network saw the low side, so the high side counts.
        Returns: a scalar.
        Raises: ValueError on unlike shapes, or if a side of the spectrum is empty at this H and W.
        """
        errors, count = self.per_image(predicted, target, keep_low)
        return self.reduce(errors, count)

    def per_image(
        self, predicted: torch.Tensor, target: torch.Tensor, keep_low: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean distance over each image's counted bins and channels, and the number of these bins: (B,), (B,)."""
        if predicted.dim() != 4 or predicted.shape != target.shape or keep_low.shape != predicted.shape[:1]:
            shapes = f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(keep_low.shape)}"
            raise ValueError(f"predicted, target, keep_low have shapes {shapes}: must be (B, C, H, W) twice and (B,)")
        channels, height, width = predicted.shape[1:]
        weights = bin_weights(height, width, self.radius, self.outer_radius, self.scope, predicted.device)
        count = torch.where(keep_low, weights.low_kept.sum(), weights.high_kept.sum())
        count = count.to(full_precision(predicted).dtype)
        with torch.autocast(predicted.device.type, enabled=False):
            total = SpectralDistance.apply(predicted, target, keep_low, weights, self.gamma, self.eps)
            return total / (count * channels), count

    def reduce(self, errors: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """The batch's loss, a scalar, from what `per_image` gave."""
        if self.reduction == "image":
            return errors.mean()
        return (errors * count).sum() / count.sum()


@functools.lru_cache(maxsize=64)
def bin_weights(
    height: int, width: int, radius: float, outer_radius: float | None, scope: str, device: torch.device
) -> BinWeights:
    """The weights of the bins that count. A bin whose mirror image is not in the half spectrum counts twice.

    Raises: ValueError if a side of the spectrum is empty.
    """
    low = kept_when_low(height, width, radius, outer_radius, device)
    every_bin = column_weight(width, device).expand(low.shape)
    if scope == "all":
        return BinWeights(low_kept=every_bin, high_kept=every_bin)
    return BinWeights(low_kept=every_bin * ~low, high_kept=every_bin * low)


class SpectralDistance(torch.autograd.Function):
    """Per image, the sum over channels and counted bins of (|F(predicted) − F(target)|² + eps)^(gamma/2).

    F is linear, so one half transform of the difference is enough, and the gradient is one inverse half transform,
    irfft2(w · gamma · (|Δ|² + eps)^(gamma/2 − 1) · Δ). There w is the weight of a bin of the *full* spectrum: the
    inverse supplies the mirrored half, so the doubling in `BinWeights` is divided out.

    It works on a few images at a time. So what lies between the two transforms stays in a CPU's cache, and spectra of
    the whole batch never take memory.
    """

    @staticmethod
    def forward(
        ctx,
        predicted: torch.Tensor,
        target: torch.Tensor,
        keep_low: torch.Tensor,
        weights: BinWeights,
        gamma: float,
        eps: float,
    ) -> torch.Tensor:
        """predicted, target (B, C, H, W), keep_low (B,) -> (B,)."""
        height, width = predicted.shape[-2:]
        dtype = full_precision(predicted).dtype
        low_kept, high_kept = weights.low_kept.to(dtype), weights.high_kept.to(dtype)
        # In the gradient each bin stands for itself alone.
        columns = column_weight(width, predicted.device)
        low_kept_gradient = (weights.low_kept * gamma / columns).to(dtype)
        high_kept_gradient = (weights.high_kept * gamma / columns).to(dtype)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = predicted.new_empty(predicted.shape, dtype=dtype)
        values_at_once = VALUES_AT_ONCE_ON_CPU if predicted.device.type == "cpu" else VALUES_AT_ONCE_ON_GPU
        images = max(1, values_at_once // predicted[0].numel())
        totals = []
        for start in range(0, len(predicted), images):
            part = slice(start, start + images)
            difference = full_precision(predicted[part]) - full_precision(target[part])
            spectrum = torch.fft.rfft2(difference, norm="ortho")
            real, imaginary = torch.view_as_real(spectrum).unbind(-1)
            power = real.square().addcmul_(imaginary, imaginary).add_(eps)
            distance = power.pow(gamma / 2)
            keeps_low = keep_low[part, None, None, None]
            totals.append((distance * torch.where(keeps_low, low_kept, high_kept)).sum((1, 2, 3)))
            if gradient is not None:
                factor = distance.div_(power).mul_(torch.where(keeps_low, low_kept_gradient, high_kept_gradient))
                torch.view_as_real(spectrum).mul_(factor[..., None])
                gradient[part] = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        ctx.save_for_backward(gradient)
        return torch.cat(totals)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total[:, None, None, None], None, None, None, None, None


def grayscale(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), 0.299 R + 0.587 G + 0.114 B (BT.601, as in CoinCheung/MFM)."""
    red, green, blue = full_precision(images).split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
