"""What both sides of a comparison work on: the images, the settings of a crop, and the loop through them."""

from dataclasses import dataclass

import torch

CROP_RATIO, ASPECT_RATIO, FLIP_PROBABILITY = (0.2, 1.0), (0.75, 4 / 3), 0.5
RADIUS = 16  # bins; of the filter and the loss
LEARNING_RATE = 1e-4
RAND_AUGMENT_MAGNITUDE = 6  # CoinCheung/MFM's and RSB A3's


@dataclass(frozen=True)
class Recipe:
    """Filter and loss as a public code has them, for crops of 224 pixels.

    Args:
        key: of the recipe in the figures; scripts/results/ and the README refer to it.
        output: of the filter: "abs" is the absolute value of the inverse transform, "real" its real part.
        clamp: limits of the filtered image.
        eps: added to the squared distance of two bins.
        reduction: "image" averages each image over its removed bins, "batch" all removed bins of the batch.
        gray: whether the network predicts one grey channel instead of three colours.
    """

    key: str
    output: str
    clamp: tuple[float, float] | None
    eps: float
    reduction: str
    gray: bool


COINCHEUNG = Recipe(key="code_a", output="abs", clamp=None, eps=1e-7, reduction="image", gray=True)
AUTHORS = Recipe(key="paper", output="real", clamp=(0, 1), eps=1e-12, reduction="batch", gray=False)


def noise_batch(batch: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels (B, 3, S, S) uint8 and keep_low (B,) bool, True for every other image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    keep_low = torch.arange(batch) % 2 == 0
    return images.to(device), keep_low.to(device)


class LoadsImages:
    """Each call loads the next `images` images of a folder, round and round, as one batch, in one thread."""

    def __init__(self, images: int, total: int):
        torch.set_num_threads(1)
        self.work, self.total, self.next_number = images, total, 0

    def __call__(self) -> object:
        loaded = []
        for _ in range(self.work):
            loaded.append(self.load(self.next_number))
            self.next_number = (self.next_number + 1) % self.total
        return self.collate(loaded)

    def load(self, number: int) -> object:
        raise NotImplementedError

    def collate(self, loaded: list) -> object:
        raise NotImplementedError


class FilterAndLoss:
    """Each call filters a batch of noise, and takes the loss of a prediction and its gradient.

    It does so several times where the batch is small: a turn of some milliseconds would mostly measure the change from
    one process to the other.
    """

    def __init__(self, recipe: Recipe, batch: int, size: int, device: str):
        images, self.keep_low = noise_batch(batch, size, device)
        self.clean = images.float() / 255
        if recipe.gray:
            self.target = self.clean.mean(1, keepdim=True)
        else:
            self.target = self.clean
        self.predicted = torch.rand_like(self.target).requires_grad_()
        self.times = max(1, 128 // batch)
        self.work = self.times * batch

    def __call__(self) -> None:
        for _ in range(self.times):
            self.filtered(self.clean)
            self.loss(self.predicted, self.target).backward()
            self.predicted.grad = None

    def filtered(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) with one side of their spectra alone."""
        raise NotImplementedError

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The distance, a scalar, of predicted and target (B, C, H, W) over the frequencies that were removed."""
        raise NotImplementedError
