"""What this project is compared with: the public codes' recipes, written out plainly from their formulas, and
torchvision's own parts. Each class is a task of side_by_side.py.

The public codes are CoinCheung/MFM and the authors' code (Jiahao000/MFM). Both take the whole complex spectrum with
shifts, one transform for the prediction and one for the target, and PIL transforms with float normalisation.
CoinCheung/MFM trains in NCHW and reads the loss in each step.
"""

import torch
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torchvision import transforms as pil_transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import InterpolationMode, v2

from data.decode import FORMATS, decode_image
from data.folder import ImageFolder
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from scripts.benchmark.ours import centre_crops, crop_transform
from scripts.benchmark.workload import (
    ASPECT_RATIO,
    COINCHEUNG,
    CROP_RATIO,
    LEARNING_RATE,
    RADIUS,
    RAND_AUGMENT_MAGNITUDE,
    FilterAndLoss,
    LoadsImages,
    Recipe,
    noise_batch,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pil_image(path: str) -> Image.Image:
    """As torchvision's own loader, but of our formats only: Pillow starts another program for PostScript."""
    with open(path, "rb") as file:
        return Image.open(file, formats=FORMATS).convert("RGB")


class PilInput(LoadsImages):
    """Both public codes' way on a CPU: PIL decodes and resizes, then floats are made and normalised."""

    def __init__(self, data_path: str, size: int, interpolation: str, images: int):
        transform = pil_transforms.Compose(
            [
                pil_transforms.RandomResizedCrop(size, CROP_RATIO, ASPECT_RATIO, InterpolationMode(interpolation)),
                pil_transforms.RandomHorizontalFlip(),
                pil_transforms.ToTensor(),
                pil_transforms.Normalize(MEAN, STD),
            ]
        )
        self.folder = TorchvisionFolder(data_path, transform, loader=pil_image)
        super().__init__(images, total=len(self.folder))

    def load(self, number: int) -> tuple:
        return self.folder[number]

    def collate(self, loaded: list) -> list:
        return default_collate(loaded)


class PillowRandAugment(LoadsImages):
    """RandAugment of Pillow images, which then become tensors: torchvision's, as in CoinCheung/MFM, or timm's."""

    def __init__(self, style: str, data_path: str, size: int, images: int):
        crops = centre_crops(data_path, size, images)
        super().__init__(images, total=len(crops))
        self.crops = [v2.functional.to_pil_image(crop) for crop in crops]
        if style == "timm":
            from timm.data.auto_augment import rand_augment_transform  # training does not need timm

            options = {"interpolation": Image.Resampling.BICUBIC}
            self.rand_augment = rand_augment_transform(f"rand-m{RAND_AUGMENT_MAGNITUDE}-mstd0.5-inc1", options)
        else:
            self.rand_augment = pil_transforms.RandAugment(
                magnitude=RAND_AUGMENT_MAGNITUDE, num_magnitude_bins=10, interpolation=InterpolationMode.BICUBIC
            )

    def load(self, number: int) -> torch.Tensor:
        return v2.functional.pil_to_tensor(self.rand_augment(self.crops[number]))

    def collate(self, loaded: list) -> list:
        return loaded


def pixel_difference(data_path: str, size: int, interpolation: str, images: int) -> dict[str, float]:
    """How far our crops and flips are from those that PIL makes of the same files and draws.

    Returns: largest and mean difference in levels of 255, and the share of values that differ by more than 2.
    """
    ours = crop_transform(size, interpolation)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, CROP_RATIO, ASPECT_RATIO, InterpolationMode(interpolation)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    folder = ImageFolder(data_path)
    differences = []
    for number in range(min(len(folder), images)):
        torch.manual_seed(number)
        our_crop = ours(decode_image(folder.path(number)))
        torch.manual_seed(number)
        their_crop = theirs(pil_image(folder.path(number)))
        differences.append((our_crop.int() - their_crop.int()).abs().byte())
    levels = torch.stack(differences)
    return {
        "largest": levels.max().item(),
        "mean": levels.double().mean().item(),
        "share_above_2": (levels > 2).double().mean().item(),
    }


class FullSpectrum:
    """Filter and loss of a public code: a mask for each image, spectra in shifted order.

    Args:
        keep_low: (B,) bool, on the device of the images.
        size: side of the images in pixels.
    """

    def __init__(self, recipe: Recipe, keep_low: torch.Tensor, size: int):
        self.recipe = recipe
        u = torch.arange(size, device=keep_low.device) - size // 2
        low = (u[:, None] ** 2 + u**2 < RADIUS**2)[None, None]
        self.mask = torch.where(keep_low[:, None, None, None], low, ~low).float()  # (B, 1, U, V)

    def filtered(self, images: torch.Tensor) -> torch.Tensor:
        filtered = torch.fft.ifftshift(shifted_spectrum(images) * self.mask, dim=(-2, -1))
        filtered = torch.fft.ifft2(filtered, norm="ortho")
        if self.recipe.output == "abs":
            filtered = filtered.abs()
        else:
            filtered = filtered.real
        if self.recipe.clamp is not None:
            filtered = filtered.clamp(*self.recipe.clamp)
        return filtered

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """predicted, target (B, C, H, W) -> a scalar."""
        predicted_parts = torch.view_as_real(shifted_spectrum(predicted))  # (B, C, U, V, 2)
        target_parts = torch.view_as_real(shifted_spectrum(target))
        distance = ((predicted_parts - target_parts).square().sum(-1) + self.recipe.eps).sqrt()
        removed = (1 - self.mask).expand_as(distance)
        if self.recipe.reduction == "batch":
            return (distance * removed).sum() / removed.sum()
        return ((distance * removed).sum((-2, -1)) / removed.sum((-2, -1))).mean()


def shifted_spectrum(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) real -> (B, C, U, V) complex, frequency 0 in the middle."""
    return torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))


class FullSpectrumFilterAndLoss(FilterAndLoss):
    def __init__(self, recipe: Recipe, batch: int, size: int, device: str):
        super().__init__(recipe, batch, size, device)
        self.full_spectrum = FullSpectrum(recipe, self.keep_low, size)

    def filtered(self, images: torch.Tensor) -> torch.Tensor:
        return self.full_spectrum.filtered(images)

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.full_spectrum.loss(predicted, target)


class CoinCheungStep:
    """CoinCheung/MFM's step by its recipe: NCHW, float32 on a CPU, float16 with a scaler on a GPU, the loss read."""

    def __init__(self, model: str, batch: int, size: int, device: str):
        self.device = device
        self.model = masked_frequency_network(make_trunk(model), out_channels=1).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.05)
        self.half_precision = device != "cpu"
        self.scaler = torch.amp.GradScaler(device, enabled=self.half_precision)
        self.images, self.keep_low = noise_batch(batch, size, device)
        self.full_spectrum = FullSpectrum(COINCHEUNG, self.keep_low, size)
        self.gray = torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]
        self.work = batch

    def __call__(self) -> float:
        """The loss, before the update."""
        clean = (self.images.float() / 255 - 0.4) / 0.2
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.float16, enabled=self.half_precision):
            predicted = self.model(self.full_spectrum.filtered(clean)).float()
        loss = self.full_spectrum.loss(predicted, (clean * self.gray).sum(1, keepdim=True))
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


class TorchvisionListing:
    """A folder's images, listed by torchvision's ImageFolder."""

    def __init__(self, data_path: str, files: int):
        self.data_path, self.work = data_path, files

    def __call__(self) -> int:
        return len(TorchvisionFolder(self.data_path))
