"""Mixup and cutmix of a micro-batch, by torchvision."""

import torch
from torch.nn import functional as F
from torchvision.transforms import v2


class Mixing:
    """One of mixup (alpha > 0) and cutmix (alpha > 0) for each batch, evenly if both; image i mixes with i − 1.

    It draws from torch's CPU generator: call it inside `keyed_torch`.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, num_classes: int):
        self.num_classes = num_classes
        transforms = []
        if mixup_alpha:
            transforms.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
        if cutmix_alpha:
            transforms.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))
        self.mix = v2.RandomChoice(transforms) if transforms else None

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, C, H, W) float, labels (B,) int64 -> images, targets (B, K) float32 that sum to 1."""
        if self.mix is None:
            return images, F.one_hot(labels, self.num_classes).float()
        images, targets = self.mix(images, labels)
        return images, targets.float()
