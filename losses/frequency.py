"""The masked frequency loss: distance of two spectra where the network saw nothing (arXiv 2206.07706, section 3)."""

import functools

import torch

from utils.precision import full_precision
from utils.spectrum import column_weight, kept_when_low

VALUES_AT_ONCE = {"cpu": 2**20}  # of the difference, so that a core's share of a cache holds them; elsewhere 2**24


class MaskedFrequencyLoss:
    """Mean over removed bins of (|F(predicted) − F(target)|² + eps)^(gamma/2), F the orthonormal 2-D DFT.

    Args:
        radius, outer_radius: as in `models.frequency_filter.FrequencyFilter`.
        gamma: exponent; 1 is the distance itself.
        eps: > 0; public code A has 1e-7, the paper's code 1e-12.
        reduction: "image" averages each image and channel over its removed bins, then over both (code A);
            "batch" pools: sum over the removed bins of the batch / their count (the paper's code).
        scope: "removed" bins, or "all" of them.
    """

    def __init__(self, radius: float, outer_radius: float | None = None, gamma: float = 1.0, eps: float = 1e-7,
                 reduction: str = "image", scope: str = "removed"):  # fmt: skip
        if reduction not in ("image", "batch") or scope not in ("removed", "all"):
            given = f"reduction = {reduction!r}, scope = {scope!r}"
            raise ValueError(f"{given}: must be 'image' or 'batch', and 'removed' or 'all'")
        if not (radius > 0 and gamma > 0 and eps > 0) or (outer_radius is not None and not outer_radius > radius):
            raise ValueError(
                f"radius = {radius}, outer_radius = {outer_radius}, gamma = {gamma}, eps = {eps}: "
                "must be 0 < radius < outer_radius, gamma > 0, eps > 0"
            )
        self.side = radius, outer_radius, scope
        self.gamma, self.eps, self.reduction = gamma, eps, reduction

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

    def per_image(self, predicted: torch.Tensor, target: torch.Tensor, keep_low: torch.Tensor):
        """Mean distance over each image's counted bins and channels, and the number of these bins: (B,), (B,)."""
        if predicted.dim() != 4 or predicted.shape != target.shape or keep_low.shape != predicted.shape[:1]:
            shapes = f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(keep_low.shape)}"
            raise ValueError(f"predicted, target, keep_low have shapes {shapes}: must be (B, C, H, W) twice and (B,)")
        if_low, if_high = counted_bins(*predicted.shape[-2:], *self.side, predicted.device)
        count = torch.where(keep_low, if_low.sum(), if_high.sum()).to(full_precision(predicted).dtype)
        with torch.autocast(predicted.device.type, enabled=False):
            total = SpectralDistance.apply(predicted, target, keep_low, if_low, if_high, self.gamma, self.eps)
            return total / (count * predicted.shape[1]), count

    def reduce(self, errors: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """The batch's loss, a scalar, from what `per_image` gave."""
        return errors.mean() if self.reduction == "image" else (errors * count).sum() / count.sum()


@functools.lru_cache(maxsize=64)
def counted_bins(height, width, radius, outer_radius, scope, device) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight of each bin of the half spectrum, (U, V) float64, if the low and if the high side was kept."""
    low = kept_when_low(height, width, radius, outer_radius, device)
    every = column_weight(width, device).expand(low.shape)
    return (every * ~low, every * low) if scope == "removed" else (every, every)


class SpectralDistance(torch.autograd.Function):
    """Per image, the sum over channels and counted bins of (|F(predicted) − F(target)|² + eps)^(gamma/2).

    F is linear, so one half transform of the difference does; and the gradient is one inverse half transform,
    irfft2(w · gamma · (|Δ|² + eps)^(gamma/2 − 1) · Δ), w the weight of a bin of the *full* spectrum: the inverse
    supplies the mirrored half, so the doubling of `if_low` and `if_high` is taken out. It works on a few images at a
    time: what lies between the two transforms then stays in a CPU's cache, and no batch of it is ever held.
    """

    @staticmethod
    def forward(ctx, predicted, target, keep_low, if_low, if_high, gamma, eps):
        """predicted, target (B, C, H, W), keep_low (B,), if_low and if_high (U, V) -> (B,)."""
        height, width = predicted.shape[-2:]
        dtype = full_precision(predicted).dtype
        weights = [counted.to(dtype) for counted in (if_low, if_high)]
        # In the gradient each bin stands for itself alone.
        single = [(counted * gamma / column_weight(width, predicted.device)).to(dtype) for counted in (if_low, if_high)]
        gradient = predicted.new_empty(predicted.shape, dtype=dtype) if ctx.needs_input_grad[0] else None
        images = max(1, VALUES_AT_ONCE.get(predicted.device.type, 2**24) // predicted[0].numel())
        totals = []
        for start in range(0, len(predicted), images):
            part = slice(start, start + images)
            difference = full_precision(predicted[part]) - full_precision(target[part])
            spectrum = torch.fft.rfft2(difference, norm="ortho")
            real, imaginary = torch.view_as_real(spectrum).unbind(-1)
            power = real.square().addcmul_(imaginary, imaginary).add_(eps)
            distance = power.pow(gamma / 2)
            keeps_low = keep_low[part, None, None, None]
            totals.append((distance * torch.where(keeps_low, *weights)).sum((1, 2, 3)))
            if gradient is not None:
                factor = distance.div_(power).mul_(torch.where(keeps_low, *single))
                torch.view_as_real(spectrum).mul_(factor[..., None])
                gradient[part] = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        ctx.save_for_backward(gradient)
        return torch.cat(totals)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total[:, None, None, None], *[None] * 6


def grayscale(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), 0.299 R + 0.587 G + 0.114 B (BT.601, as public code A weighs them)."""
    red, green, blue = full_precision(images).split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
