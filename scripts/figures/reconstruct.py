"""The predictions of a pretrained network: original | filtered | prediction | combined, for each kind of corruption.

python scripts/figures/reconstruct.py runs/sample_pretrain/checkpoints/last.pt sample/val --output reconstruction.png
python scripts/figures/reconstruct.py runs/sample_pretrain/checkpoints/last.pt photo.jpg --size native --radius 2 4 8 16

"combined" has the kept frequencies of the image and the predicted ones of the rest, which is all that the loss asked
for; a bare prediction may hold anything at the kept ones. Below it: its PSNR against the original (or its grey, if that
was the target), and in brackets that of the kept frequencies alone, the level to beat. Super-resolution, blur and noise
keep something of every frequency: there the prediction is compared, and in brackets the network's input. A radius is in
bins of the crop: with --size, the same radius is another frequency in cycles a pixel.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torchvision.transforms.functional import center_crop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs.schema import PretrainConfig
from data.augment import evaluation_crops
from data.decode import decode_image
from models.mfm import MaskedFrequencyModelling, network_from_config
from models.trunk import make_trunk, trunk_children
from models.weights import load_weights, weights_of
from scripts.image_places import images_below
from utils.console import progress_bar, say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import PictureRow, grid, save
from utils.pictures import Reconstruction, combined, eight_bit, psnr
from utils.run.checkpoint import read_checkpoint
from utils.run.reading import checkpoint_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = ("filtered", "prediction", "combined")
NOTE = "dB: PSNR; in brackets: of the network's input alone"


@dataclass(frozen=True)
class Panels:
    """One image, filtered in one way, and the network's prediction.

    Args:
        pictures: "original" and the STAGES that there are -> (H, W, 3) uint8.
        quality: PSNR of the last stage, and of the network's input alone, in words.
    """

    pictures: dict[str, np.ndarray]
    quality: str

    @property
    def stages(self) -> list[str]:
        return [stage for stage in STAGES if stage in self.pictures]

    def caption(self, stage: str) -> str:
        return self.quality if stage == self.stages[-1] else ""


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of pretrain.py: its config, its network, and the pixels that one side of a feature stands for."""

    config: PretrainConfig
    network: nn.Module
    stride: int

    @classmethod
    def read(cls, path: str) -> Pretrained:
        """Raises: UserError if it is no checkpoint of a pretraining."""
        content = read_checkpoint(path)
        config = checkpoint_config(path, content)
        if not isinstance(config, PretrainConfig):
            raise UserError(f"{path}: not a pretraining checkpoint (its config has no filter); give one of pretrain.py")
        network = network_from_config(config)
        _, weights = weights_of(content, path)
        load_weights(network, weights, path, trunk_children(config.model.name))
        with torch.device("meta"):  # takes no memory
            stride = make_trunk(config.model.name).stride
        return cls(config, network, stride)

    def panels(self, image: torch.Tensor, radius: float | None) -> dict[str, Panels]:
        """For each kind of corruption.

        Args:
            image: (1, 3, H, W) uint8.
            radius: of the filter, instead of the one in training; None: as in training.
        Raises: UserError if the radius leaves a side of the image's spectrum empty.
        """
        config = self.config
        if radius is not None:
            config = replace(config, filter=replace(config.filter, radius=radius))
        try:
            task = MaskedFrequencyModelling.from_config(config, image.device)
            reconstructions = task.show(self.network, image)
        except ValueError as error:
            raise UserError(f"--radius {self.radius_in_words(radius)}: {error}") from error
        panels = {}
        for kind, reconstruction in reconstructions.items():
            pictures = {}
            for stage, picture in reconstruction.pictures.items():
                pictures[stage] = eight_bit(picture)[0].permute(1, 2, 0).numpy()
            panels[kind] = Panels(pictures, quality(task, reconstruction))
        return panels

    @property
    def filters_disks(self) -> bool:
        return (self.config.corruption.name, self.config.filter.mask) == ("frequency", "disk")

    def radius_in_words(self, radius: float | None) -> str:
        """That of the filter, or of the training if None; empty where no radius decides."""
        if not self.filters_disks:
            return ""
        if radius is None:
            radius = self.config.filter.radius
        if isinstance(radius, tuple):
            return " to ".join(f"{one:g}" for one in radius)
        return f"{radius:g}"


def quality(task: MaskedFrequencyModelling, reconstruction: Reconstruction) -> str:
    """PSNR of the result for one image against what was to be predicted, and in brackets without any prediction."""
    pictures = reconstruction.pictures
    target = task.target(pictures["original"])
    if reconstruction.removed is None:
        result, without_prediction = pictures["prediction"], task.target(pictures["filtered"])
    else:
        mean = task.target(task.normalize.mean[None]).expand_as(target)
        result, without_prediction = pictures["combined"], combined(target, mean, ~reconstruction.removed)
    reached = psnr(eight_bit(result), eight_bit(target)).item()
    to_beat = psnr(eight_bit(without_prediction), eight_bit(target)).item()
    return f"{reached:.1f} dB ({to_beat:.1f})"


def kind_in_words(kind: str) -> str:
    return kind.replace("_", "-")


def grid_of_images(pretrained: Pretrained, crops: dict[str, torch.Tensor], radius: float | None) -> Figure:
    """One row an image: label -> (1, 3, H, W) uint8. `radius` as in Pretrained.panels."""
    rows, titles = [], []
    for label, image in progress_bar(crops.items(), desc="reconstructions", unit="image"):
        row = PictureRow(label, pictures=[], captions=[])
        titles = ["original"]
        for kind, panels in pretrained.panels(image, radius).items():
            if not row.pictures:
                row.pictures.append(panels.pictures["original"])
                row.captions.append("")
            for stage in panels.stages:
                row.pictures.append(panels.pictures[stage])
                row.captions.append(panels.caption(stage))
                titles.append(f"{stage}\n{kind_in_words(kind)} {pretrained.radius_in_words(radius)}".rstrip())
        rows.append(row)
    return grid(rows, titles, NOTE)


def grid_of_radii(pretrained: Pretrained, image: torch.Tensor, radii: list[float]) -> Figure:
    """One image (1, 3, H, W) uint8; one column a radius, and the original beside what is to be it."""
    trained_radius = pretrained.config.filter.radius
    titles = ["original"]
    rows: dict[tuple[str, str], PictureRow] = {}  # of a kind and a stage
    for radius in progress_bar(radii, desc="reconstructions", unit="radius"):
        title = f"radius {radius:g}"
        if radius == trained_radius:
            title += "\n(trained)"
        titles.append(title)
        for kind, panels in pretrained.panels(image, radius).items():
            for stage in panels.stages:
                if (kind, stage) not in rows:
                    first = panels.pictures["original"]
                    if stage != "combined":
                        first = np.full_like(first, 255)  # white
                    rows[kind, stage] = PictureRow(f"{stage}, {kind_in_words(kind)}", [first], [""])
                rows[kind, stage].pictures.append(panels.pictures[stage])
                rows[kind, stage].captions.append(panels.caption(stage))
    trained = pretrained.radius_in_words(None)
    return grid(list(rows.values()), titles, f"{NOTE}; trained with radius {trained}")


def crop_of(path: str, size: int | None, interpolation: str, stride: int) -> torch.Tensor:
    """An image as (1, 3, H, W) uint8: resized and cropped as in evaluation, or its middle at its own resolution.

    Args:
        size: None: cut to the largest multiples of stride, which the trunk needs. Padding would add frequencies.
    """
    image = decode_image(path)
    if size is not None:
        return evaluation_crops(image, (size,), size, interpolation)
    height, width = image.shape[1:]
    if height < stride or width < stride:
        raise UserError(f"{path}: {width}×{height} pixels; --size native needs {stride} each way")
    return center_crop(image, [height // stride * stride, width // stride * stride])[None]


def labelled_crops(paths: list[str], size: int | None, interpolation: str, stride: int) -> dict[str, torch.Tensor]:
    """`crop_of` each, under class and file name, or under the whole path where two have the same."""
    names = [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]
    crops = {}
    for name, path in zip(names, paths, strict=True):
        label = name if names.count(name) == 1 else path
        crops[label] = crop_of(path, size, interpolation, stride)
    return crops


def pick_images(places: list[str], count: int) -> list[str]:
    """Image files named, or in the folders named or below: at most `count`, evenly spread.

    A folder is listed as training does, and what is left out of it is said.
    Raises: UserError if there is no such place, or no image in it.
    """
    images = []
    for place in places:
        if os.path.isdir(place):
            images += images_below(place)
        elif os.path.exists(place):
            images.append(place)
        else:
            raise UserError(f"{place}: no such image or folder")
    numbers = np.linspace(0, len(images), min(count, len(images)), endpoint=False, dtype=int)
    return [images[number] for number in numbers]


def crop_size(argument: str, pretrained: Pretrained) -> int | None:
    """The meaning of --size: pixels, or None for native. Raises: UserError if it is none."""
    if argument == "train":
        return pretrained.config.data.train_crop_size
    if argument == "native":
        return None
    if not argument.isdecimal() or int(argument) == 0 or int(argument) % pretrained.stride:
        raise UserError(f"--size {argument}: must be train, native or a multiple of {pretrained.stride}")
    return int(argument)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Figure: original | filtered | prediction | combined, both filters.")
    parser.add_argument("checkpoint", help="a pretraining checkpoint")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="the figure (PNG, PDF, SVG)")
    parser.add_argument("--count", type=int, default=5, help="images to show")
    parser.add_argument("--radius", type=float, nargs="+", help="in bins; several: the first image over them")
    parser.add_argument("--size", default="train", help="train: as in training; native: multiples of 32; or pixels")
    arguments = parser.parse_args(argv)
    pretrained = Pretrained.read(arguments.checkpoint)
    size = crop_size(arguments.size, pretrained)
    if arguments.radius and not pretrained.filters_disks:
        raise UserError(f"--radius: {arguments.checkpoint} was not trained with a radius; leave --radius out")
    radii = arguments.radius or [None]
    count = 1 if len(radii) > 1 else max(1, arguments.count)
    paths = pick_images(arguments.images, count)
    crops = labelled_crops(paths, size, pretrained.config.data.interpolation, pretrained.stride)
    if len(radii) > 1:
        (image,) = crops.values()
        figure = grid_of_radii(pretrained, image, radii)
    else:
        figure = grid_of_images(pretrained, crops, radii[0])
    save(figure, arguments.output)
    message = f"wrote {arguments.output}: {len(paths)} images"
    if pretrained.filters_disks:
        message += f", radius {', '.join(pretrained.radius_in_words(radius) for radius in radii)}"
    say(message)
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
