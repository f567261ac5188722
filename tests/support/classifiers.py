"""A classifier that answers every class about as often, without any training, and images that it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from configs.schema import FinetuneConfig
from data.augment import evaluation_crops
from data.decode import decode_image
from models.normalize import Normalizer, unit_float
from tests.support.weights import classifier, lively
from utils.config import parse_command_line, to_dict

CLASSES = ("ant", "bee", "cat", "dog")
SIZES = ("data.val_resize_size=[36]", "data.val_crop_size=32")
NORMALISATION = ("data.mean=[0.4, 0.4, 0.4]", "data.std=[0.2, 0.2, 0.2]")


def coloured_images(root: Path, classes: Sequence[str] = CLASSES, per_class: int = 4, seed: int = 0) -> Path:
    """Write root/<class>/<n>.png, each of a colour of its own with some noise, about 44 by 40 pixels; returns root."""
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            colour = random.uniform(0, 200, 3)
            pixels = colour + random.uniform(0, 55, (40, 44 + number, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@dataclass(frozen=True)
class Untrained:
    """A checkpoint of a finetuning, as far as an evaluation reads it, and the same network."""

    checkpoint: Path
    images: Path  # folder with val
    network: nn.Module

    @property
    def paths(self) -> list[str]:
        return sorted(map(str, (self.images / "val").rglob("*.png")))

    def logits(self, paths: Sequence[str], resize_size: int = 36) -> torch.Tensor:
        """(N, K), one image after the other, by hand."""
        return logits_by_hand(self.network, paths, resize_size)


@torch.inference_mode()
def logits_by_hand(network: nn.Module, paths: Sequence[str], resize_size: int = 36) -> torch.Tensor:
    normalize = Normalizer((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    rows = []
    for path in paths:
        crop = evaluation_crops(decode_image(path), (resize_size,), 32, "bicubic")
        rows.append(network(normalize(unit_float(crop))))
    return torch.cat(rows)


def untrained(root: Path, loss: str = "bce") -> Untrained:
    """A ResNet-18 of CLASSES for crops of 32 pixels, whose head is centred on the images: no class wins always."""
    torch.manual_seed(0)
    coloured_images(root / "images/val")
    network = lively(classifier("resnet18", len(CLASSES)))
    paths = sorted(map(str, (root / "images/val").rglob("*.png")))
    with torch.no_grad():
        logits = logits_by_hand(network, paths)
        scale = 2 / logits.std(0)
        network.fc.weight.mul_(scale[:, None])
        network.fc.bias.mul_(scale).sub_(scale * logits.mean(0))
    words = ["model.name=resnet18", *SIZES, *NORMALISATION, f"loss.name={loss}"]
    if loss == "ce":
        words.append("loss.label_smoothing=0")
    config = to_dict(parse_command_line(FinetuneConfig, words, "a test"))
    checkpoint = root / "run/checkpoints/step_00000007.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"model": network.state_dict(), "classes": list(CLASSES), "config": config, "step": 7}, checkpoint)
    return Untrained(checkpoint, root / "images", network)
