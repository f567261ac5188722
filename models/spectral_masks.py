"""Frequency filters whose mask is each image's own: of a drawn radius, or of its largest frequencies.

Legend: B batch, C channels, H W pixels, U V frequencies of the half spectrum.
"""

import torch

from models.frequency_filter import TwoSided
from utils.precision import full_precision
from utils.spectrum import column_weight, kept_when_low, squared_distance


class RandomRadiusFilter(TwoSided):
    """FrequencyFilter with a radius drawn for each image, uniformly between two.

    Args:
        radii: the smallest and the largest radius.
        outer_radius: with it, only the ring radius ≤ d < outer_radius is high.
        low_pass_probability: chance that an image keeps its low frequencies.
        output, clamp: as in FrequencyFilter.
    """

    def __init__(
        self, radii: tuple[float, float], outer_radius: float | None, low_pass_probability: float,
        output: str = "real", clamp: tuple[float, float] | None = None,
    ):  # fmt: skip
        super().__init__(low_pass_probability, output, clamp)
        self.radii, self.outer_radius = radii, outer_radius
        if low_pass_probability == 0:
            self.kinds = ("high_pass",)
        if low_pass_probability == 1:
            self.kinds = ("low_pass",)

    def choose(self, uniform: float) -> float:
        """The uniform number itself: its side of the probability is the coin, its place on that side the radius."""
        return uniform

    def keep_low(self, choices: torch.Tensor) -> torch.Tensor:
        return choices < self.low_pass_probability

    def example(self, kind: str) -> float:
        """The radius in the middle, kept or removed."""
        if kind == "low_pass":
            return self.low_pass_probability / 2
        return (1 + self.low_pass_probability) / 2

    def radius(self, choices: torch.Tensor) -> torch.Tensor:
        """(B,) float64 in [0, 1) -> (B,) float64 between `radii`."""
        probability = self.low_pass_probability
        place_if_low = choices / probability if probability > 0 else choices
        place_if_high = (choices - probability) / (1 - probability) if probability < 1 else choices
        place = torch.where(self.keep_low(choices), place_if_low, place_if_high)
        smallest, largest = self.radii
        return smallest + (largest - smallest) * place

    @torch.no_grad()
    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = images.shape[-2:]
        for radius in self.radii:  # refuses an empty side
            kept_when_low(height, width, radius, self.outer_radius, images.device)
        squared = squared_distance(height, width, images.device)
        low = squared < self.radius(choices)[:, None, None] ** 2  # (B, U, V)
        if self.outer_radius is not None:
            low |= squared >= self.outer_radius**2
        kept = low == self.keep_low(choices)[:, None, None]
        return self.masked(images, kept), ~kept


class MagnitudeFilter(TwoSided):
    """Keeps or removes the largest frequencies of each image, as FOLK does (arXiv 2409.10362).

    A frequency's size is the root of its mean power over the channels. The largest bins are taken, in pairs of a
    bin and its mirror image, until they are at least `share` of all H × W bins. What is kept of an image is its "low"
    side here: most of an image's energy is in low frequencies.

    Args:
        share: of the bins, above 0 and below 1.
        low_pass_probability: chance that an image keeps its largest frequencies.
        output, clamp: as in FrequencyFilter.
    """

    radii = ()

    def __init__(
        self, share: float, low_pass_probability: float, output: str = "real",
        clamp: tuple[float, float] | None = None,
    ):  # fmt: skip
        if not 0 < share < 1:
            raise ValueError(f"share = {share}: must be above 0 and below 1")
        super().__init__(low_pass_probability, output, clamp)
        self.share = share

    @torch.no_grad()
    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        largest = self.largest_bins(images)
        kept = largest == self.keep_low(choices)[:, None, None]
        return self.masked(images, kept), ~kept

    def largest_bins(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, U, V) bool. Raises: ValueError if the share is less than a bin, or all of them."""
        height, width = images.shape[-2:]
        wanted = round(self.share * height * width)
        if not 0 < wanted < height * width:
            raise ValueError(f"share = {self.share}: leaves an empty side of {height * width} bins")
        with torch.autocast(images.device.type, enabled=False):
            spectrum = torch.fft.rfft2(full_precision(images), norm="ortho")
            power = torch.view_as_real(spectrum).square().sum(-1).mean(1)  # (B, U, V)
        # Rounding could split a bin from its mirror image where the half spectrum holds both.
        power = torch.maximum(power, mirrored(power, width))
        weight = column_weight(width, images.device).expand(height, -1).flatten()
        sorted_power, order = power.flatten(1).sort(1, descending=True)  # (B, U · V)
        enough = weight[order].cumsum(1) >= wanted
        last = enough.int().argmax(1, keepdim=True)  # the first place where there are enough
        return power >= sorted_power.gather(1, last)[..., None]


def mirrored(values: torch.Tensor, width: int) -> torch.Tensor:
    """For each bin (…, U, V) the value of its mirror image, or its own where the half spectrum does not hold that."""
    height = values.shape[-2]
    rows = -torch.arange(height, device=values.device) % height
    holds_both = column_weight(width, values.device) == 1
    return torch.where(holds_both, values[..., rows, :], values)
