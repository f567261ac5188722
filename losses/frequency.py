"""The masked frequency loss: distance of two spectra where the network saw nothing (arXiv 2206.07706, section 3)."""

import functools
from dataclasses import dataclass

import torch

from utils.precision import full_precision
from utils.spectrum import column_weight, squared_distance

# Values of the difference that are transformed at once: on a CPU so few that they stay in cache, on a GPU enough to
# fill it.
VALUES_AT_ONCE_ON_CPU = 2**20
VALUES_AT_ONCE_ON_GPU = 2**24


@dataclass(frozen=True)
class FocalWeight:
    """Focal frequency loss (arXiv 2012.12821): a bin counts the more, the larger its distance is.

    The weight is |F(predicted) − F(target)|^alpha, divided by its maximum over all bins, so that it lies in [0, 1]. No
    gradient flows through it.

    Args:
        alpha: > 0.
        log: take ln(1 + weight) before the division.
        maximum: of each "image" and channel, or of the "batch".
    """

    alpha: float
    log: bool = False
    maximum: str = "image"

    def __post_init__(self):
        if not self.alpha > 0 or self.maximum not in ("image", "batch"):
            given = f"alpha = {self.alpha}, maximum = {self.maximum!r}"
            raise ValueError(f"{given}: must be above 0, and 'image' or 'batch'")

    def before_division(self, squared: torch.Tensor) -> torch.Tensor:
        """Squared distances, any shape -> weights up to the division by their maximum."""
        weight = squared.pow(self.alpha / 2)
        return weight.log1p() if self.log else weight


@dataclass(frozen=True)
class Bins:
    """The half spectrum's bins as the loss counts them; constants for one size of image, type of number and device."""

    columns: torch.Tensor  # (V,), how many columns of the full spectrum each stands for
    may_count: torch.Tensor  # (1, U, V) bool, those within the outer radius

    def fits(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> bool:
        is_size = self.may_count.shape[1:] == (height, width // 2 + 1)
        return is_size and self.columns.device == device and self.columns.dtype == dtype


@functools.lru_cache(maxsize=64)
def bins_of(height: int, width: int, outer_radius: float | None, device: torch.device, dtype: torch.dtype) -> Bins:
    squared = squared_distance(height, width, device)
    may_count = torch.ones_like(squared, dtype=torch.bool)
    if outer_radius is not None:
        may_count = squared < outer_radius**2
    return Bins(column_weight(width, device).to(dtype), may_count[None])


class MaskedFrequencyLoss:
    """Mean over removed bins of (|F(predicted) − F(target)|² + eps)^(gamma/2), F the orthonormal 2-D DFT.

    Args:
        gamma: exponent; 1 is the distance itself.
        eps: > 0; CoinCheung/MFM has 1e-7, the authors' code (Jiahao000/MFM) 1e-12.
        reduction: "image" averages each image and channel over its removed bins, then over both (CoinCheung/MFM).
            "batch" pools: sum over the removed bins of the batch / their count (the authors' code).
        scope: the bins that count: "removed", or "all" of them.
        outer_radius: with it, bins at this distance from frequency 0 or beyond it do not count.
        focal: weights for the bins; None: all alike.
        patch_factor: p cuts the images into p × p tiles, each with a spectrum of its own (scope "all" alone).
        average_spectrum: compare the spectra's averages over the batch (scope "all" alone).
        size, device: of the images of training: their constants are made here. Those of others are made when such
            images come.
    Raises: ValueError naming an argument out of its range.
    """

    def __init__(
        self, gamma: float = 1.0, eps: float = 1e-7, reduction: str = "image", scope: str = "removed",
        outer_radius: float | None = None, focal: FocalWeight | None = None, patch_factor: int = 1,
        average_spectrum: bool = False, size: int | None = None, device: torch.device | None = None,
    ):  # fmt: skip
        if reduction not in ("image", "batch") or scope not in ("removed", "all"):
            given = f"reduction = {reduction!r}, scope = {scope!r}"
            raise ValueError(f"{given}: must be 'image' or 'batch', and 'removed' or 'all'")
        if not (gamma > 0 and eps > 0) or (outer_radius is not None and not outer_radius > 0):
            raise ValueError(f"gamma = {gamma}, eps = {eps}, outer_radius = {outer_radius}: must be above 0")
        if scope == "removed" and (patch_factor != 1 or average_spectrum):
            given = f"patch_factor = {patch_factor}, average_spectrum = {average_spectrum}"
            raise ValueError(f"{given}: need scope = 'all', since a mask belongs to the spectrum of one whole image")
        self.gamma, self.eps = gamma, eps
        self.reduction, self.scope, self.outer_radius = reduction, scope, outer_radius
        self.focal, self.patch_factor, self.average_spectrum = focal, patch_factor, average_spectrum
        self.prepared = None
        if size is not None:
            side = size // patch_factor
            self.prepared = bins_of(side, side, outer_radius, device or torch.device("cpu"), torch.float32)

    def __call__(self, predicted: torch.Tensor, target: torch.Tensor, removed: torch.Tensor | None) -> torch.Tensor:
        """The loss of a batch.

        Args:
            predicted, target: (B, C, H, W), any H and W; taken in float32 (float64 stays float64) outside autocast.
            removed: (B, U, V) bool, the bins of the half spectrum (U = H, V = W // 2 + 1) that the network did not
                see. None: it saw something of every bin; then scope must be "all".
        Returns: a scalar.
        Raises: ValueError on unlike shapes, or without `removed` where scope asks for it.
        """
        errors, count = self.per_image(predicted, target, removed)
        return self.reduce(errors, count)

    def per_image(
        self, predicted: torch.Tensor, target: torch.Tensor, removed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean distance over each image's counted bins and channels, and the number of these bins: (B,), (B,).

        With average_spectrum the distance is that of the batch, and every image is given it. An image of which no bin
        counts, as an outer radius and a mask of its own can have it, has distance 0.
        """
        check_shapes(predicted, target, removed)
        if removed is None and self.scope == "removed":
            raise ValueError("no bins are removed: the loss needs scope = 'all'")
        images, channels = predicted.shape[:2]
        if self.average_spectrum:  # F is linear: the average of the spectra is the spectrum of the average
            predicted = full_precision(predicted).mean(0, keepdim=True)
            target = full_precision(target).mean(0, keepdim=True)
        tiles = self.patch_factor**2
        if tiles > 1:
            predicted, target = cut_into_tiles(predicted, self.patch_factor), cut_into_tiles(target, self.patch_factor)
        bins = self.bins(predicted)
        counted = self.counted_bins(bins, removed)
        count = (counted.sum(-2) * bins.columns).sum(-1)  # (1,) or (B,)
        with torch.autocast(predicted.device.type, enabled=False):
            total = SpectralDistance.apply(
                predicted, target, counted, bins.columns, self.gamma, self.eps, self.focal
            )  # (B,)
        if tiles > 1:
            total, count = total.unflatten(0, (-1, tiles)).sum(1), count * tiles
        return (total / (count.clamp(min=1) * channels)).expand(images), count.expand(images)

    def bins(self, predicted: torch.Tensor) -> Bins:
        height, width = predicted.shape[-2:]
        dtype = torch.float64 if predicted.dtype == torch.float64 else torch.float32
        if self.prepared is not None and self.prepared.fits(height, width, predicted.device, dtype):
            return self.prepared
        return bins_of(height, width, self.outer_radius, predicted.device, dtype)

    def counted_bins(self, bins: Bins, removed: torch.Tensor | None) -> torch.Tensor:
        """(1, U, V) or (B, U, V) bool."""
        if self.scope == "all":
            return bins.may_count
        if self.outer_radius is not None:
            return removed & bins.may_count
        return removed

    def reduce(self, errors: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """The batch's loss, a scalar, from what `per_image` gave."""
        if self.reduction == "image":
            return errors.mean()
        return (errors * count).sum() / count.sum().clamp(min=1)


def check_shapes(predicted: torch.Tensor, target: torch.Tensor, removed: torch.Tensor | None) -> None:
    if predicted.dim() != 4 or predicted.shape != target.shape:
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predicted and target have shapes {shapes}: must be (B, C, H, W) twice")
    batch, _, height, width = predicted.shape
    expected = (batch, height, width // 2 + 1)
    if removed is not None and tuple(removed.shape) != expected:
        raise ValueError(f"removed has shape {tuple(removed.shape)}: must be (B, H, W // 2 + 1) = {expected}")


def cut_into_tiles(images: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, H, W) -> (B · factor², C, H / factor, W / factor), the tiles of an image one after the other.

    Raises: ValueError if the sides do not divide.
    """
    batch, channels, height, width = images.shape
    if height % factor or width % factor:
        raise ValueError(f"patch_factor = {factor}: does not divide images of {height}×{width} pixels")
    rows_and_columns = images.reshape(batch, channels, factor, height // factor, factor, width // factor)
    return rows_and_columns.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


class SpectralDistance(torch.autograd.Function):
    """Per image, the sum over channels and counted bins of (|F(predicted) − F(target)|² + eps)^(gamma/2).

    F is linear, so one half transform of the difference is enough, and the gradient is one inverse half transform,
    irfft2(w · gamma · (|Δ|² + eps)^(gamma/2 − 1) · Δ). There w is the weight of a bin of the *full* spectrum: the
    inverse supplies the mirrored half, so a bin whose mirror image is not in the half spectrum counts twice in the sum
    but once here.

    It works on a few images at a time. So what lies between the two transforms stays in a CPU's cache, and spectra of
    the whole batch never take memory.
    """

    @staticmethod
    def forward(
        ctx, predicted: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, columns: torch.Tensor, gamma: float,
        eps: float, focal: FocalWeight | None,
    ) -> torch.Tensor:  # fmt: skip
        """predicted, target (B, C, H, W), counted (B, U, V) or (1, U, V) bool, columns (V,) -> (B,)."""
        height, width = predicted.shape[-2:]
        dtype = columns.dtype
        counted = counted.expand(len(predicted), -1, -1)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = predicted.new_empty(predicted.shape, dtype=dtype)
        values_at_once = VALUES_AT_ONCE_ON_CPU if predicted.device.type == "cpu" else VALUES_AT_ONCE_ON_GPU
        images = max(1, values_at_once // predicted[0].numel())
        totals, largest_weights = [], []
        for start in range(0, len(predicted), images):
            part = slice(start, start + images)
            difference = full_precision(predicted[part]) - full_precision(target[part])
            spectrum = torch.fft.rfft2(difference, norm="ortho")
            real, imaginary = torch.view_as_real(spectrum).unbind(-1)
            power = real.square().addcmul_(imaginary, imaginary)
            weight = counted[part, None].to(dtype)  # (b, 1, U, V)
            if focal is not None:
                focal_weight = focal.before_division(power)
                largest = focal_weight.amax((2, 3), keepdim=True)
                largest_weights.append(largest.max())
                if focal.maximum == "image":
                    focal_weight = divide(focal_weight, largest)
                weight = weight * focal_weight  # (b, C, U, V)
            power.add_(eps)
            distance = power.pow(gamma / 2)
            totals.append((distance * (weight * columns)).sum((1, 2, 3)))
            if gradient is not None:
                factor = distance.div_(power).mul_(weight * gamma)
                torch.view_as_real(spectrum).mul_(factor[..., None])
                gradient[part] = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        total = torch.cat(totals)
        if focal is not None and focal.maximum == "batch":
            largest = torch.stack(largest_weights).max()
            total = divide(total, largest)
            if gradient is not None:
                gradient = divide(gradient, largest)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total[:, None, None, None], None, None, None, None, None, None


def divide(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """values / largest, and 0 where largest is 0: then the prediction is perfect, and all weights are 0."""
    return torch.where(largest > 0, values / largest, 0)


def grayscale(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), 0.299 R + 0.587 G + 0.114 B (BT.601, as in CoinCheung/MFM)."""
    red, green, blue = full_precision(images).split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
