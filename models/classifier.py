"""What finetuning computes: a batch's way from uint8 images to the classification loss, and to an evaluation's views.

Legend: B batch, S side of a crop, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from configs.schema import FinetuneConfig
from losses.classification import ClassificationLoss
from models.frequency_filter import FrequencyFilter
from models.mixing import Mixing
from models.normalize import Normalizer, unit_float
from utils.training.step import Metrics


@dataclass(frozen=True)
class Classification:
    """The task of finetuning. Anything with `draw` and `loss` can be trained in its place.

    Args:
        labels: (N,) class numbers of the training images.
    """

    normalize: Normalizer
    mixing: Mixing
    classification_loss: ClassificationLoss
    labels: np.ndarray

    @classmethod
    def from_config(
        cls, config: FinetuneConfig, labels: np.ndarray, num_classes: int, device: torch.device
    ) -> "Classification":
        return cls(
            normalize=Normalizer(config.data.mean, config.data.std, device),
            mixing=Mixing(config.data.mixup_alpha, config.data.cutmix_alpha, num_classes),
            classification_loss=ClassificationLoss(
                config.loss.name, config.loss.label_smoothing, config.loss.multi_label
            ),
            labels=labels,
        )

    def draw(self, epoch: int, index: int, used_index: int) -> int:
        """The class number of the image that was used, which replaces an unreadable one."""
        return int(self.labels[used_index])

    def loss(self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """images (B, 3, S, S) uint8, labels (B,) int64 -> mean loss, and nothing further to log.

        Mixing draws from torch's CPU generator, which the training step seeds for each micro-batch.
        """
        clean = self.normalize(unit_float(images))  # (B, 3, S, S) float32
        mixed, targets = self.mixing(clean, labels)  # (B, 3, S, S), (B, K)
        return self.classification_loss(network(mixed), targets), {}


class ChosenOutputs(nn.Module):
    """A classifier that answers with some of its logits, in the order of `outputs`: the other classes are ruled out."""

    def __init__(self, network: nn.Module, outputs: list[int]):
        super().__init__()
        self.network = network
        self.register_buffer("outputs", torch.tensor(outputs, device=next(network.parameters()).device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, len(outputs))."""
        return self.network(images)[:, self.outputs]


@dataclass(frozen=True)
class ResizedViews:
    """Evaluation at several resize sizes: one view of the images for each."""

    normalize: Normalizer
    resize_sizes: tuple[int, ...]

    @property
    def names(self) -> list[dict]:
        return [{"val_resize_size": size} for size in self.resize_sizes]

    def __call__(self, crops: torch.Tensor) -> Iterator[torch.Tensor]:
        """(B, sizes, 3, S, S) uint8 -> (B, 3, S, S) float32 for each size."""
        for images in crops.unbind(1):
            yield self.normalize(unit_float(images))


@dataclass(frozen=True)
class FilteredViews:
    """The frequency sweep: images of one resize size, whole, then low- and high-passed at each radius.

    They are filtered after normalisation and not clipped. The filter is linear: low-passed, they are what filtering the
    pixels gives. High-passed, they have lost frequency 0, their mean, and stand around data.mean, not black. Clipping
    would bring removed frequencies back.
    """

    normalize: Normalizer
    radii: tuple[float, ...]

    @property
    def names(self) -> list[dict]:
        names: list[dict] = [{"kind": "all", "radius": None}]
        for kind in FrequencyFilter.kinds:
            names += [{"kind": kind, "radius": radius} for radius in self.radii]
        return names

    def __call__(self, crops: torch.Tensor) -> Iterator[torch.Tensor]:
        """(B, 1, 3, S, S) uint8 -> (B, 3, S, S) float32 for each name."""
        clean = self.normalize(unit_float(crops[:, 0]))
        yield clean
        for kind in FrequencyFilter.kinds:
            keep_low = torch.full((len(clean),), kind == "low_pass", device=clean.device)
            for radius in self.radii:
                yield FrequencyFilter(radius)(clean, keep_low)
