"""The corruptions that the paper compares masked frequencies with (arXiv 2206.07706, table 5 and appendix).

All take and return pixels in [0, 1], (B, C, H, W); something of every frequency is left, so no bin counts as removed.
The settings are those of the authors' code (Jiahao000/MFM): an eighth of the resolution, Gaussian blur of σ = 5 over 7
to 21 pixels, noise of standard deviation 75/255.
"""

import functools

import torch
from torch.nn import functional as F

from utils.precision import full_precision


class OneKind:
    """The part of a corruption (models.corruption.Corruption) that can do one thing only to an image."""

    kinds: tuple[str]
    radii: tuple[float, ...] = ()

    def choose(self, uniform: float) -> bool | int | float:
        """There is nothing to choose."""
        return 0

    def is_kind(self, kind: str, choices: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(choices, dtype=torch.bool)

    def example(self, kind: str) -> bool | int | float:
        return self.choose(0.5)

    def removes_mean(self, kind: str) -> bool:
        return False


class SuperResolution(OneKind):
    """Downscaling and upscaling back, both bicubic (a = −0.75) without antialiasing, clamped to [0, 1] after each.

    Args:
        factor: of the downscaling; sides are rounded down.
    """

    kinds = ("downscaled",)

    def __init__(self, factor: int):
        self.factor = factor

    @torch.no_grad()
    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, None]:
        height, width = images.shape[-2:]
        small_size = [height // self.factor, width // self.factor]
        if min(small_size) < 1:
            raise ValueError(f"downscale = {self.factor}: leaves nothing of {height}×{width} pixels")
        with torch.autocast(images.device.type, enabled=False):
            images = full_precision(images)
            small = F.interpolate(images, small_size, mode="bicubic", align_corners=False).clamp(0, 1)
            return F.interpolate(small, [height, width], mode="bicubic", align_corners=False).clamp(0, 1), None


class Blur(OneKind):
    """Gaussian blur over a square of odd side, drawn for each image; borders are mirrored without their last pixel.

    A blur along one axis is a product with a matrix, so an image's blur is two products: fast on a GPU, and on a CPU
    faster than a convolution with a kernel of its own for each image.

    Args:
        smallest, largest: odd sides in pixels; all odd ones between are equally likely.
        sigma: standard deviation of the Gaussian in pixels, whatever the side.
    """

    kinds = ("blurred",)

    def __init__(self, smallest: int, largest: int, sigma: float):
        if not (smallest % 2 == largest % 2 == 1 and 1 <= smallest <= largest and sigma > 0):
            given = f"smallest = {smallest}, largest = {largest}, sigma = {sigma}"
            raise ValueError(f"{given}: must be odd with the smaller first, and above 0")
        self.sides = tuple(range(smallest, largest + 1, 2))
        self.sigma = sigma

    def choose(self, uniform: float) -> int:
        """The number of the side among all of them."""
        return int(uniform * len(self.sides))

    @torch.no_grad()
    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, None]:
        height, width = images.shape[-2:]
        with torch.autocast(images.device.type, enabled=False):
            images = full_precision(images)
            rows = blur_matrices(height, self.sides, self.sigma, images.device, images.dtype)[choices, None]
            columns = blur_matrices(width, self.sides, self.sigma, images.device, images.dtype)[choices, None]
            return rows @ images @ columns.mT, None


@functools.lru_cache(maxsize=16)
def blur_matrices(
    size: int, sides: tuple[int, ...], sigma: float, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The blur along an axis of `size` pixels by each of the kernels: (sides, size, size)."""
    if sides[-1] // 2 >= size:
        raise ValueError(f"a blur over {sides[-1]} pixels needs images of more than {sides[-1] // 2} pixels a side")
    pixels = torch.eye(size, dtype=torch.float64)[:, None]  # a batch of lines with one bright pixel each
    matrices = []
    for side in sides:
        half = side // 2
        kernel = torch.exp(-(torch.arange(-half, half + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
        mirrored = F.pad(pixels, (half, half), mode="reflect")
        blurred = F.conv1d(mirrored, (kernel / kernel.sum())[None, None])
        matrices.append(blurred[:, 0].T)
    return torch.stack(matrices).to(device, dtype)


class Noise(OneKind):
    """Gaussian noise on each pixel and channel, not clamped.

    It draws from torch's generator of the images' device: call it inside `keyed_torch`, as the training step does for
    each micro-batch.

    Args:
        std: standard deviation, pixels in [0, 1].
    """

    kinds = ("noisy",)

    def __init__(self, std: float):
        self.std = std

    @torch.no_grad()
    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, None]:
        images = full_precision(images)
        return images + self.std * torch.randn_like(images), None
