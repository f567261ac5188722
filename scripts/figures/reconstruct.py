"""What a pretrained network makes of filtered images: original | filtered | prediction | combined, both filter kinds.

python scripts/figures/reconstruct.py runs/sample_pretrain/checkpoints/last.pt sample/val --output reconstruction.png
python scripts/figures/reconstruct.py runs/sample_pretrain/checkpoints/last.pt photo.jpg --size native --radius 2 4 8 16

"combined" has the kept frequencies of the image and the predicted ones of the rest, which is all that the loss asked
for; a bare prediction may hold anything at the kept ones. Below it: its PSNR against the original (or its grey, if that
was the target), and in brackets that of the kept frequencies alone, the level to beat. A radius is in bins of the crop:
with --size, the same radius is another frequency in cycles a pixel.
"""

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.functional import center_crop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs.schema import PretrainConfig
from data.augment import evaluation_crops
from data.decode import decode_image
from data.folder import EXTENSIONS
from models.trunk import STRIDE, masked_frequency_model
from models.weights import load_weights, weights_of
from pretrain import loss_target, reconstruct
from utils.config import from_dict
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import grid, save
from utils.pictures import combined, eight_bit, psnr
from utils.run.checkpoint import read_checkpoint
from utils.spectrum import kept_when_low

STAGES = ("filtered", "prediction", "combined")
NOTE = "dB: PSNR of the combined image; in brackets: of the kept frequencies alone"


def pretrained(path: str) -> tuple[PretrainConfig, torch.nn.Module]:
    """Config and model of a pretraining checkpoint. Raises: UserError if it is none."""
    saved = read_checkpoint(path)
    if "filter" not in saved.get("config", {}):
        raise UserError(f"{path}: not a pretraining checkpoint (its config has no filter); give one of pretrain.py")
    config = from_dict(PretrainConfig, saved["config"], path)
    model = masked_frequency_model(config.model.name, 1 if config.loss.target == "gray" else 3)
    load_weights(model, weights_of(saved, path)[1], path)
    return config, model


def crop_of(path: str, size: int | None, interpolation: str) -> torch.Tensor:
    """An image as (1, 3, H, W) uint8: resized and cropped as in evaluation, or its middle at its own resolution.

    Args:
        size: None cuts to the largest multiples of 32, which the trunk needs; padding would add frequencies of its own.
    """
    image = decode_image(path)
    if size is not None:
        return evaluation_crops(image, (size,), size, interpolation)
    height, width = (side // STRIDE * STRIDE for side in image.shape[1:])
    if not height or not width:
        raise UserError(f"{path}: {image.shape[2]}×{image.shape[1]} pixels; --size native needs {STRIDE} each way")
    return center_crop(image, [height, width])[None]


def labelled_crops(paths: list[str], size: int | None, interpolation: str) -> dict[str, torch.Tensor]:
    """`crop_of` each, under class and file name, or the whole path where two have the same."""
    names = [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]
    labels = [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]
    return {label: crop_of(path, size, interpolation) for label, path in zip(labels, paths, strict=True)}


def stages(config: PretrainConfig, model, image: torch.Tensor, radius: float) -> dict[str, tuple[dict, str]]:
    """For "low_pass" and "high_pass": the pictures (H, W, 3) uint8 by stage, and the PSNR as text.

    Raises: UserError if the radius leaves a side of the image's spectrum empty.
    """
    config = replace(config, filter=replace(config.filter, radius=radius))
    try:
        pictures, _ = reconstruct(config, model, image)
        low = kept_when_low(*image.shape[-2:], radius, config.filter.outer_radius, image.device)
    except ValueError as error:
        raise UserError(f"--radius {radius:g}: {error}") from error
    found = {}
    for name, columns in pictures.items():
        target = loss_target(config)(columns["original"])
        mean = loss_target(config)(torch.tensor(config.data.mean)[None, :, None, None])
        alone = combined(target, mean.expand_as(target), low if name == "low_pass" else ~low)
        quality, level = (psnr(eight_bit(x), eight_bit(target)).item() for x in (columns["combined"], alone))
        shown = {stage: eight_bit(x)[0].permute(1, 2, 0).numpy() for stage, x in columns.items()}
        found[name] = shown, f"{quality:.1f} dB ({level:.1f})"
    return found


def grid_of_images(config: PretrainConfig, model, crops: dict[str, torch.Tensor], radius: float):
    """One row an image."""
    rows = []
    for label, image in crops.items():
        found = stages(config, model, image, radius)
        pictures = [found["low_pass"][0]["original"], *(shown[s] for shown, _ in found.values() for s in STAGES)]
        rows.append((label, pictures, ["", *(text for _, quality in found.values() for text in ("", "", quality))]))
    titles = ["original", *(f"{s}\n{name} {radius:g}" for name in ("low-pass", "high-pass") for s in STAGES)]
    return grid(rows, titles, NOTE)


def grid_of_radii(config: PretrainConfig, model, image: torch.Tensor, radii: list[float]):
    """One image; one column a radius, and the original beside what is to be it."""
    found = [stages(config, model, image, radius) for radius in radii]
    rows, original = [], found[0]["low_pass"][0]["original"]
    for name, s in itertools.product(("low_pass", "high_pass"), STAGES):
        texts = [of[name][1] if s == "combined" else "" for of in found]
        first = original if s == "combined" else np.full_like(original, 255)
        rows.append((f"{s}, {name.replace('_', '-')}", [first, *(of[name][0][s] for of in found)], ["", *texts]))
    trained = config.filter.radius
    titles = ["original", *(f"radius {r:g}" + ("\n(trained)" if r == trained else "") for r in radii)]
    return grid(rows, titles, f"{NOTE}; trained with radius {trained:g}")


def pick_images(places: list[str], count: int) -> list[str]:
    """Image files named or found below the folders named: at most `count`, evenly spread."""
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"{place}: no such image or folder")
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS)
        found += inside if place.is_dir() else [place]
    if not found:
        raise UserError(f"{', '.join(places)}: no image in it")
    return [str(found[i]) for i in np.linspace(0, len(found), min(count, len(found)), endpoint=False, dtype=int)]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Figure: original | filtered | prediction | combined, both filters.")
    parser.add_argument("checkpoint", help="a pretraining checkpoint")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="the figure (PNG, PDF, SVG)")
    parser.add_argument("--count", type=int, default=5, help="images to show")
    parser.add_argument("--radius", type=float, nargs="+", help="in bins; several: the first image over them")
    parser.add_argument("--size", default="train", help="train: as in training; native: multiples of 32; or pixels")
    arguments = parser.parse_args(argv)
    config, model = pretrained(arguments.checkpoint)
    size = {"train": config.data.train_crop_size, "native": None}.get(arguments.size, arguments.size)
    if isinstance(size, str) and not (size.isdecimal() and int(size) and int(size) % STRIDE == 0):
        raise UserError(f"--size {size}: must be train, native or a multiple of {STRIDE}")
    radii = arguments.radius or [config.filter.radius]
    paths = pick_images(arguments.images, 1 if len(radii) > 1 else max(1, arguments.count))
    crops = labelled_crops(paths, size if size is None else int(size), config.data.interpolation)
    if len(radii) > 1:
        figure = grid_of_radii(config, model, *crops.values(), radii)
    else:
        figure = grid_of_images(config, model, crops, *radii)
    save(figure, arguments.output)
    print(f"wrote {arguments.output}: {len(paths)} images, radius {', '.join(f'{r:g}' for r in radii)}")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
