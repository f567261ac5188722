"""What a pretrained network makes of filtered images: original | filtered | prediction | completed, both filter kinds.

python scripts/reconstruct.py runs/sample_pretrain/checkpoints/last.pt sample/val --output reconstruction.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configs.schema import PretrainConfig
from data.decode import decode_image
from data.folder import EXTENSIONS
from data.frequency_filter import FrequencyFilter
from data.geometry import evaluation_crops
from data.pixels import Normalizer, unit_float
from losses.frequency import grayscale
from models.resnet import masked_frequency_model
from models.weights import load_weights, weights_of
from utils.checkpoint import read_checkpoint
from utils.config import from_dict
from utils.distributed import run_entry
from utils.errors import UserError


@torch.inference_mode()
def reconstruct(checkpoint: str, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Columns of the figure, each (B, 1 or 3, S, S) in [0, 1].

    The loss asks for the removed frequencies only, so a bare prediction may hold anything at the kept ones; "completed"
    is what the method is about: the kept frequencies of the target and the predicted ones.

    Args:
        checkpoint: a pretraining checkpoint; its config says how images are normalised and filtered.
        images: (B, 3, S, S) uint8, S as in training.
    """
    saved = read_checkpoint(checkpoint)
    config = pretraining_config(saved, checkpoint)
    model = masked_frequency_model(config.model.name, 1 if config.loss.target == "gray" else 3)
    load_weights(model, weights_of(saved, checkpoint)[1], checkpoint)
    model.eval()
    normalize, f = Normalizer(config.data.mean, config.data.std), config.filter
    frequency_filter = FrequencyFilter(f.radius, f.outer_radius, f.output, f.clamp)
    # A grey target is grey of the normalised image; this gives back its brightness where the channels share one std.
    mean, std = normalize.mean, normalize.std
    if config.loss.target == "gray":
        mean, std = grayscale(mean[None])[0], grayscale(std[None])[0]
    target = grayscale(normalize(unit_float(images))) if config.loss.target == "gray" else normalize(unit_float(images))
    plain_filter = FrequencyFilter(f.radius, f.outer_radius)
    columns = {"original": unit_float(images)}
    for name, keep in (("low-pass", True), ("high-pass", False)):
        keep_low = torch.full((len(images),), keep)
        if f.order == "normalize_first":
            filtered = frequency_filter(normalize(unit_float(images)), keep_low)
        else:
            filtered = normalize(frequency_filter(unit_float(images), keep_low))
        predicted = model(filtered)
        completed = plain_filter(target, keep_low) + plain_filter(predicted, ~keep_low)
        columns["input\n" + name] = normalize.undo(filtered)
        columns["prediction\n" + name] = predicted * std + mean
        columns["completed\n" + name] = completed * std + mean
    return {name: column.clamp(0, 1) for name, column in columns.items()}


def pretraining_config(saved: dict, path: str) -> PretrainConfig:
    if "filter" not in saved.get("config", {}):
        raise UserError(f"{path}: not a pretraining checkpoint (its config has no filter); give one of pretrain.py")
    return from_dict(PretrainConfig, saved["config"], path)


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
    count = min(count, len(found))
    return [str(found[i * len(found) // count]) for i in range(count)]


def draw(columns: dict[str, torch.Tensor], output: Path) -> None:
    """One row an image, one column a stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(next(iter(columns.values())))
    figure, axes = pyplot.subplots(rows, len(columns), figsize=(2 * len(columns), 2 * rows + 0.4), squeeze=False)
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[row, column].set_axis_off()
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Figure: original | filtered | prediction, for both filter kinds.")
    parser.add_argument("checkpoint", help="a pretraining checkpoint")
    parser.add_argument("images", nargs="+", help="image files or folders of them")
    parser.add_argument("--output", type=Path, default=Path("reconstruction.png"), help="the figure (PNG, PDF, SVG)")
    parser.add_argument("--count", type=int, default=5, help="images to show")
    arguments = parser.parse_args(argv)
    size = pretraining_config(read_checkpoint(arguments.checkpoint), arguments.checkpoint).data.train_crop_size
    paths = pick_images(arguments.images, max(1, arguments.count))
    crops = torch.stack([evaluation_crops(decode_image(path), (size,), size)[0] for path in paths])
    draw(reconstruct(arguments.checkpoint, crops), arguments.output)
    print(f"wrote {arguments.output}: {len(paths)} images at {size} pixels")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
