"""Images changed so that a classifier errs, as little as nobody sees: FGSM and PGD, each pixel by at most ε.

Images lie in [0, 1], before normalisation, and stay there; ε = 1/255 is one level of 255. The sign of a gradient is all
that counts, so the sum of the images' losses does what each loss alone would.

Legend: B batch, S side of a crop.
Source: FGSM, Goodfellow et al., arXiv 1412.6572; PGD, Madry et al., arXiv 1706.06083; these settings: RVT (Mao et al.,
arXiv 2105.07926), whose evaluation the paper probably follows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.normalize import Normalizer, unit_float
from utils.distributed import World
from utils.seeding import keyed_numpy
from utils.training.evaluation import in_evaluation

EPSILON = 1 / 255  # of both attacks
PGD_STEP = 0.5 / 255
PGD_STEPS = 5


def fgsm(network: nn.Module, normalize: Normalizer, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One step of ε along the sign of the gradient of the cross-entropy. (B, 3, S, S) in [0, 1], class numbers (B,)."""
    return (images + EPSILON * loss_gradient(network, normalize, images, labels).sign()).clamp(0, 1)


def pgd(
    network: nn.Module, normalize: Normalizer, images: torch.Tensor, labels: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """PGD_STEPS steps of PGD_STEP along the sign of the gradient, each followed by a projection onto what is allowed.

    Args:
        images: (B, 3, S, S) in [0, 1].
        start: what is added to them at first, (B, 3, S, S) in [-ε, ε].
    """
    attacked = (images + start).clamp(0, 1)
    for _ in range(PGD_STEPS):
        attacked = attacked + PGD_STEP * loss_gradient(network, normalize, attacked, labels).sign()
        attacked = attacked.clamp(images - EPSILON, images + EPSILON).clamp(0, 1)
    return attacked


def loss_gradient(
    network: nn.Module, normalize: Normalizer, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Of the summed cross-entropy with respect to the images; also inside torch.inference_mode, as in an evaluation."""
    with torch.inference_mode(False), torch.enable_grad(), in_evaluation(network):
        leaf = images.clone().requires_grad_()  # a clone made here may take part in a gradient
        loss = F.cross_entropy(network(normalize(leaf)).float(), labels.clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


class AttackedViews:
    """Evaluation of images as they are, and after each attack on this very network.

    Args:
        labels: (N,) class numbers of all images of the set.
        seed: of PGD's start, which is a function of it and of the image's number.
    """

    def __init__(self, network: nn.Module, normalize: Normalizer, labels: np.ndarray, world: World, seed: int):
        self.network, self.normalize, self.labels, self.world, self.seed = network, normalize, labels, world, seed
        self.names = [{"attack": "none"}, {"attack": "fgsm"}, {"attack": "pgd"}]
        self.images_seen = 0

    def __call__(self, crops: torch.Tensor) -> Iterator[torch.Tensor]:
        """(B, 1, 3, S, S) uint8 -> (B, 3, S, S) float32 for each name. Call it in the order of `share_of_rank`."""
        images = unit_float(crops[:, 0])
        numbers = self.world.rank + self.world.size * np.arange(self.images_seen, self.images_seen + len(images))
        self.images_seen += len(images)
        labels = torch.from_numpy(self.labels[numbers].astype(np.int64)).to(images.device)
        yield self.normalize(images)
        yield self.normalize(fgsm(self.network, self.normalize, images, labels))
        start = self.starts(numbers, images.shape[1:]).to(images.device)
        yield self.normalize(pgd(self.network, self.normalize, images, labels, start))

    def starts(self, numbers: np.ndarray, shape: torch.Size) -> torch.Tensor:
        """PGD's start for each image: uniform in [-ε, ε]."""
        starts = []
        for number in numbers.tolist():
            draw = keyed_numpy(self.seed, "PGD start", number)
            starts.append(draw.uniform(-EPSILON, EPSILON, size=tuple(shape)).astype(np.float32))
        return torch.from_numpy(np.stack(starts))
