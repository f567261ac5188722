"""How an image is spoilt before the network sees it: one interface, and every corruption by name."""

from typing import Protocol

import torch

from configs.schema import FilterOptions, PretrainConfig
from models.degradations import Blur, Noise, SuperResolution
from models.frequency_filter import FrequencyFilter
from models.spectral_masks import MagnitudeFilter, RandomRadiusFilter


class Corruption(Protocol):
    """What the task asks of a corruption. A new one is a class with these methods and a name in `make_corruption`.

    An image's *choice* is a bool or a number that decides what is done to it, drawn in a loader worker and carried to
    the device beside the image: for the method's own filter whether the low frequencies are kept.
    """

    kinds: tuple[
        str, ...
    ]  # what can be done to an image, in words: the log has a loss for each where there are several
    radii: tuple[float, ...]  # of the filter, to mark in curves; none where no radius decides

    def choose(self, uniform: float) -> bool | int | float:
        """An image's choice, from a number drawn uniformly from [0, 1)."""

    def is_kind(self, kind: str, choices: torch.Tensor) -> torch.Tensor:
        """Which of the choices (B,) do this to an image: (B,) bool."""

    def example(self, kind: str) -> bool | int | float:
        """A choice that does this to an image, for pictures."""

    def corrupt(self, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, H, W) floating point, (B,) -> the same shape, and the removed bins (B, U, V) bool.

        The images are pixels in [0, 1] with `filter_first`, else they are normalised. None instead of bins: something
        of every frequency is left, so the loss counts all bins.
        """

    def removes_mean(self, kind: str) -> bool:
        """Whether the result has lost the image's mean."""


def make_corruption(config: PretrainConfig, device: torch.device) -> Corruption:
    """The corruption that a pretraining learns to undo; its constants lie on the device."""
    options = config.corruption
    if options.name == "super_resolution":
        return SuperResolution(options.downscale)
    if options.name == "blur":
        smallest, largest = options.blur_sizes
        return Blur(smallest, largest, options.blur_sigma)
    if options.name == "noise":
        return Noise(options.noise_std / 255)
    return make_filter(config.filter, config.data.train_crop_size, device)


def make_filter(options: FilterOptions, size: int, device: torch.device) -> Corruption:
    """The frequency filter, whose mask is a disk or ring, one of a drawn radius, or each image's own."""
    finish = {"output": options.output, "clamp": options.clamp}
    keep_probability = options.low_pass_probability
    if options.mask == "magnitude":
        return MagnitudeFilter(options.share, keep_probability, **finish)
    if isinstance(options.radius, tuple):
        return RandomRadiusFilter(options.radius, options.outer_radius, keep_probability, **finish)
    return FrequencyFilter(
        options.radius, options.outer_radius, **finish, low_pass_probability=keep_probability, size=size, device=device
    )
