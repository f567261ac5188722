"""Classification losses on soft targets."""

import torch
from torch.nn import functional as F

from utils.precision import full_precision


def smooth_labels(targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Take `smoothing` from the true class and share it among the others, as CoinCheung/MFM does.

    Args:
        targets: (B, K) that sum to 1, mixed or one-hot. 1 becomes 1 − smoothing, 0 becomes smoothing / (K − 1).
        smoothing: in [0, 1).
    """
    if not smoothing:
        return targets
    other = smoothing / max(1, targets.shape[1] - 1)
    return other + targets * (1 - smoothing - other)


MULTI_LABEL_THRESHOLD = 0.2  # timm's --bce-target-thresh in the recipes of RSB


class ClassificationLoss:
    """Binary or softmax cross-entropy on smoothed soft targets.

    Args:
        name: "bce", the mean over batch and classes, or "ce", the mean over the batch.
        label_smoothing: in [0, 1), as in `smooth_labels`.
        multi_label: with "bce" only: smoothed targets above 0.2 become 1, all others 0, as in RSB ("ResNet strikes
            back", arXiv 2110.00476). Both classes of a mixed image are then true, unless the share of one is 0.2 or
            less: of mixup's images with alpha 0.1, 12 % keep both, of cutmix's with alpha 1, 60 %. The order is that
            of timm, which smooths before its threshold: smoothing only moves the share that decides (from 0.2 to 0.222
            at label_smoothing 0.1 and 1,000 classes).
    """

    def __init__(self, name: str = "bce", label_smoothing: float = 0.0, multi_label: bool = False):
        if name not in ("bce", "ce") or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"name = {name!r}, label_smoothing = {label_smoothing}: must be 'bce' or 'ce', and in [0, 1)"
            )
        if multi_label and name != "bce":
            raise ValueError(f"multi_label with name = {name!r}: must be 'bce', whose classes are independent")
        self.name = name
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits (B, K), targets (B, K) that sum to 1 -> scalar float32, or float64 for float64 logits."""
        logits = full_precision(logits)
        targets = smooth_labels(targets, self.label_smoothing)
        if self.multi_label:
            targets = targets > MULTI_LABEL_THRESHOLD
        targets = targets.to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            if self.name == "bce":
                return F.binary_cross_entropy_with_logits(logits, targets)
            return F.cross_entropy(logits, targets)
