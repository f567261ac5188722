"""Masked frequency modelling in one file (arXiv 2206.07706, section 3): what pretraining computes.

Legend: B batch, C channels, H W pixels, U V frequencies of the half spectrum, R rings of the spectrum.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from configs.schema import FrequencyLossOptions, PretrainConfig
from losses.frequency import FocalWeight, MaskedFrequencyLoss, grayscale
from models.corruption import Corruption, make_corruption
from models.normalize import Normalizer, unit_float
from models.trunk import Trunk, make_trunk
from utils.errors import UserError
from utils.pictures import Reconstruction, combined, radial_error
from utils.seeding import keyed_numpy, keyed_torch
from utils.training.evaluation import in_evaluation
from utils.training.step import Metrics


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
        corruption: takes frequencies out of the images, or spoils them in another way.
        seed: of what is drawn for each image.
        filter_first: corrupt the pixels and normalise afterwards, as the paper does, or the other way round.
        gray_target: predict the grey image (CoinCheung/MFM), or its colours (paper).
    """

    normalize: Normalizer
    corruption: Corruption
    frequency_loss: MaskedFrequencyLoss
    seed: int
    filter_first: bool = False
    gray_target: bool = True

    @classmethod
    def from_config(cls, config: PretrainConfig, device: torch.device) -> "MaskedFrequencyModelling":
        return cls(
            normalize=Normalizer(config.data.mean, config.data.std, device),
            corruption=make_corruption(config, device),
            frequency_loss=make_loss(config.loss, config.data.train_crop_size, device),
            seed=config.run.seed,
            filter_first=config.filter.order == "filter_first",
            gray_target=config.loss.target == "gray",
        )

    def draw(self, epoch: int, index: int, used_index: int | None = None) -> bool | int | float:
        """An image's choice (for the method's own filter: keep_low), a pure function of (seed, epoch, index).

        It is drawn in a loader worker. `choices` below are those of a batch.
        """
        return self.corruption.choose(keyed_numpy(self.seed, "coin", epoch, index).random())

    def corrupt(
        self, images: torch.Tensor, choices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """images (B, 3, H, W) uint8, choices (B,) -> clean and corrupted, (B, 3, H, W) float32, normalised; the
        removed bins (B, U, V) bool, or None where a corruption removes none."""
        pixels = unit_float(images)
        clean = self.normalize(pixels)
        if self.filter_first:
            corrupted, removed = self.corruption.corrupt(pixels, choices)
            return clean, self.normalize(corrupted), removed
        corrupted, removed = self.corruption.corrupt(clean, choices)
        return clean, corrupted, removed

    def target(self, clean: torch.Tensor) -> torch.Tensor:
        """What is to be predicted of clean images (B, 3, H, W): their grey (B, 1, H, W), or they themselves."""
        return grayscale(clean) if self.gray_target else clean

    def loss(self, network: nn.Module, images: torch.Tensor, choices: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """images (B, 3, H, W) uint8, choices (B,) -> mean loss, and sum and count of each kind's losses.

        What a corruption draws on the device is drawn from torch's generators, which the training step seeds for each
        micro-batch.
        """
        clean, corrupted, removed = self.corrupt(images, choices)
        predicted = network(corrupted)  # (B, C, H, W), C = 1 or 3
        errors, bins = self.frequency_loss.per_image(predicted, self.target(clean), removed)  # (B,), (B,)
        metrics = {}
        if len(self.corruption.kinds) > 1:
            for kind in self.corruption.kinds:
                is_kind = self.corruption.is_kind(kind, choices)
                metrics[f"loss_{kind}"] = (errors.detach() * is_kind).sum(), is_kind.sum()
        return self.frequency_loss.reduce(errors, bins), metrics

    @torch.no_grad()
    def show(self, network: nn.Module, images: torch.Tensor) -> dict[str, Reconstruction]:
        """For each kind of corruption, what the network in evaluation mode predicts of images (B, 3, H, W) uint8."""
        reconstructions = {}
        for kind in self.corruption.kinds:
            choices = torch.tensor([self.corruption.example(kind)] * len(images), device=images.device)
            with keyed_torch(self.seed, "pictures", device=images.device):
                clean, corrupted, removed = self.corrupt(images, choices)
            with in_evaluation(network):
                predicted = network(corrupted)
            reconstructions[kind] = self.reconstruction(kind, images, corrupted, predicted, self.target(clean), removed)
        return reconstructions

    def reconstruction(
        self, kind: str, images: torch.Tensor, corrupted: torch.Tensor, predicted: torch.Tensor, target: torch.Tensor,
        removed: torch.Tensor | None,
    ) -> Reconstruction:  # fmt: skip
        """Normalised tensors as pictures in [0, 1]; grey is true where data.std is alike for all channels."""
        mean, std = self.target(self.normalize.mean[None]), self.target(self.normalize.std[None])
        filtered = self.normalize.undo(corrupted)
        if self.filter_first and self.corruption.removes_mean(kind):
            filtered = filtered + self.normalize.mean  # pixels without their mean are around 0, that is, black
        pictures = {"original": unit_float(images), "filtered": filtered, "prediction": predicted * std + mean}
        if removed is not None:
            pictures["combined"] = combined(target, predicted, ~removed) * std + mean
        return Reconstruction(pictures, radial_error(predicted, target), removed)


def make_loss(options: FrequencyLossOptions, size: int, device: torch.device) -> MaskedFrequencyLoss:
    """The loss that a config asks for, of images of `size` pixels a side."""
    focal = None
    if options.focal_alpha is not None:
        focal = FocalWeight(options.focal_alpha, options.focal_log, options.focal_maximum)
    return MaskedFrequencyLoss(
        gamma=options.gamma,
        eps=options.eps,
        reduction=options.reduction,
        scope=options.scope,
        outer_radius=options.outer_radius,
        focal=focal,
        patch_factor=options.patch_factor,
        average_spectrum=options.average_spectrum,
        size=size,
        device=device,
    )
