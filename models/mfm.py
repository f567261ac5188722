"""Masked frequency modelling in one file (arXiv 2206.07706, section 3): what pretraining computes.

Legend: B batch, C channels, H W pixels, U V frequencies of the half spectrum, R rings of the spectrum.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from configs.schema import PretrainConfig
from losses.frequency import MaskedFrequencyLoss, grayscale
from models.frequency_filter import FrequencyFilter
from models.normalize import Normalizer, unit_float
from models.trunk import Trunk, make_trunk
from utils.errors import UserError
from utils.pictures import Reconstruction, combined, radial_error
from utils.seeding import keyed_numpy
from utils.training.evaluation import in_evaluation
from utils.training.step import Metrics


class Corruption(Protocol):
    """How an image is spoilt before the network sees it; FrequencyFilter is the method's own."""

    # What can be done to an image -> the value of `keep_low` that does it. A corruption that has one way only, such as
    # blur, has one kind, {"blurred": False}; its task has low_pass_probability 0, and its loss counts all bins.
    kinds: dict[str, bool]

    def __call__(self, images: torch.Tensor, keep_low: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) floating point, (B,) bool -> (B, C, H, W).

        The images are pixels in [0, 1] with `filter_first`, else they are normalised.
        """

    def kept(self, kind: str, height: int, width: int, device: torch.device) -> torch.Tensor:
        """The bins that come through unchanged: (U, V) bool."""

    def removes_mean(self, kind: str) -> bool:
        """Whether the result has lost the image's mean."""


def masked_frequency_network(trunk: Trunk, out_channels: int) -> nn.Sequential:
    """Trunk, then decoder: a 1×1 convolution to out_channels · stride² channels and a pixel shuffle (section 3.3).

    (B, 3, H, W) -> (B, out_channels, H, W), H and W multiples of the trunk's stride. The trunk's tensors have the
    trunk's own names, those of the decoder begin with `decoder.`.
    """
    convolution = nn.Conv2d(trunk.width, out_channels * trunk.stride**2, kernel_size=1)
    children = OrderedDict(trunk.module.named_children())
    children["decoder"] = nn.Sequential(convolution, nn.PixelShuffle(trunk.stride))
    return nn.Sequential(children)


def network_from_config(config: PretrainConfig) -> nn.Sequential:
    """The network that a pretraining trains, newly initialised from torch's CPU generator.

    Raises: UserError if there is no such trunk, or the crop does not fit its stride.
    """
    trunk = make_trunk(
        config.model.name, zero_init_last_batch_norm=config.model.zero_init_last_batch_norm,
        drop_path=config.model.drop_path,
    )  # fmt: skip
    size, stride = config.data.train_crop_size, trunk.stride
    if size % stride:
        below = max(size // stride, 1) * stride
        raise UserError(
            f"data.train_crop_size = {size}: must be a multiple of {config.model.name}'s stride {stride}: "
            f"{below} or {below + stride}"
        )
    return masked_frequency_network(trunk, out_channels=1 if config.loss.target == "gray" else 3)


@dataclass(frozen=True)
class MaskedFrequencyModelling:
    """A batch's whole way from uint8 images to the loss. Anything with these methods can be trained in its place.

    Args:
        corruption: takes frequencies out of the images.
        low_pass_probability: chance that an image keeps its low frequencies, so that the high ones are predicted.
        seed: of every image's coin.
        filter_first: corrupt the pixels and normalise afterwards, as the paper does, or the other way round.
        gray_target: predict the grey image (CoinCheung/MFM), or its colours (paper).
    """

    normalize: Normalizer
    corruption: Corruption
    frequency_loss: MaskedFrequencyLoss
    low_pass_probability: float
    seed: int
    filter_first: bool = False
    gray_target: bool = True

    @classmethod
    def from_config(cls, config: PretrainConfig, device: torch.device) -> "MaskedFrequencyModelling":
        filtering, loss = config.filter, config.loss
        return cls(
            normalize=Normalizer(config.data.mean, config.data.std, device),
            corruption=FrequencyFilter(
                radius=filtering.radius,
                outer_radius=filtering.outer_radius,
                output=filtering.output,
                clamp=filtering.clamp,
            ),
            frequency_loss=MaskedFrequencyLoss(
                radius=filtering.radius,
                outer_radius=filtering.outer_radius,
                gamma=loss.gamma,
                eps=loss.eps,
                reduction=loss.reduction,
                scope=loss.scope,
            ),
            low_pass_probability=filtering.low_pass_probability,
            seed=config.run.seed,
            filter_first=filtering.order == "filter_first",
            gray_target=loss.target == "gray",
        )

    def draw(self, epoch: int, index: int, used_index: int | None = None) -> bool:
        """An image's coin, keep_low: a pure function of (seed, epoch, index), tossed in a loader worker."""
        return bool(keyed_numpy(self.seed, "coin", epoch, index).random() < self.low_pass_probability)

    def corrupt(self, images: torch.Tensor, keep_low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W) uint8, keep_low (B,) bool -> clean and corrupted, (B, 3, H, W) float32, normalised."""
        pixels = unit_float(images)
        clean = self.normalize(pixels)
        if self.filter_first:
            return clean, self.normalize(self.corruption(pixels, keep_low))
        return clean, self.corruption(clean, keep_low)

    def target(self, clean: torch.Tensor) -> torch.Tensor:
        """What is to be predicted of clean images (B, 3, H, W): their grey (B, 1, H, W), or they themselves."""
        return grayscale(clean) if self.gray_target else clean

    def loss(self, network: nn.Module, images: torch.Tensor, keep_low: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """images (B, 3, H, W) uint8, keep_low (B,) bool -> mean loss, and sum and count of each kind's losses."""
        clean, corrupted = self.corrupt(images, keep_low)
        predicted = network(corrupted)  # (B, C, H, W), C = 1 or 3
        errors, bins = self.frequency_loss.per_image(predicted, self.target(clean), keep_low)  # (B,), (B,)
        metrics = {}
        for kind, value in self.corruption.kinds.items():
            is_kind = keep_low == value
            metrics[f"loss_{kind}"] = (errors.detach() * is_kind).sum(), is_kind.sum()
        return self.frequency_loss.reduce(errors, bins), metrics

    @torch.no_grad()
    def show(self, network: nn.Module, images: torch.Tensor) -> dict[str, Reconstruction]:
        """For each kind of corruption, what the network in evaluation mode predicts of images (B, 3, H, W) uint8."""
        reconstructions = {}
        for kind, value in self.corruption.kinds.items():
            keep_low = torch.full((len(images),), value, device=images.device)
            clean, corrupted = self.corrupt(images, keep_low)
            with in_evaluation(network):
                predicted = network(corrupted)
            reconstructions[kind] = self.reconstruction(kind, images, corrupted, predicted, self.target(clean))
        return reconstructions

    def reconstruction(
        self, kind: str, images: torch.Tensor, corrupted: torch.Tensor, predicted: torch.Tensor, target: torch.Tensor
    ) -> Reconstruction:
        """Normalised tensors as pictures in [0, 1]; grey is true where data.std is alike for all channels."""
        mean, std = self.target(self.normalize.mean[None]), self.target(self.normalize.std[None])
        kept = self.corruption.kept(kind, *images.shape[-2:], images.device)
        filtered = self.normalize.undo(corrupted)
        if self.filter_first and self.corruption.removes_mean(kind):
            filtered = filtered + self.normalize.mean  # pixels without their mean are around 0, that is, black
        pictures = {
            "original": unit_float(images),
            "filtered": filtered,
            "prediction": predicted * std + mean,
            "combined": combined(target, predicted, kept) * std + mean,
        }
        return Reconstruction(pictures, radial_error(predicted, target))
