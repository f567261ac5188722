"""What training a ResNet-50 on ImageNet takes on 1 to 512 GPUs, predicted from the images/s of one.

One of N GPUs takes a micro-batches of b images a step; a·b·N = train.batch_size, the recipe's whatever N is.
  rate      images/s of one GPU at 224 pixels · (224 / data.train_crop_size)²; --rates takes files of measured ones
  exchange  2·(N − 1)/N · 4 bytes · parameters / bandwidth: NVLink or PCIe in a machine of 8, else --network-gbit
  exposed   max(0, exchange − 2/3 · b/rate): DDP sends in the backward pass, 2/3, of the last micro-batch
  images/s  train.batch_size / (a·b/rate + exposed); hours are of floor(1281167 / train.batch_size) batches an epoch
  loader    cores: images/s / --images-per-core; reading: images/s · 115 kB
Hours are the fewest: slower small batches, latency, filter, loss, optimizer, waiting for data, evaluation are ignored.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from utils.errors import UserError
from utils.run.reading import resolved_config
from utils.tables import markdown_table, readable_cell

IMAGES, ARCHIVE = 1_281_167, 147_897_477_120  # published: of ImageNet-1k's train; bytes of ILSVRC2012_img_train.tar
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHOWN = (1, 8, 64, 512)  # in the table
GPUS_OF_MACHINE = 8
FEWEST = 32  # images a GPU: below, BatchNorm errs more (arXiv 1803.08494, figure 1)
BACKWARD = 2 / 3  # of a step's time


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Args:
        rate: images/s of training a ResNet-50 on one.
        label: where the rate is from: "measured", "published" or "predicted".
        pixels: side of the images that it is of.
        exchange: GB/s of NCCL's all_reduce in a machine of 8.
    """

    rate: float
    label: str
    pixels: int
    exchange: float


CARDS = {
    # A roofline, float32; assumed: PCIe 3 x16, 15.75 less overhead.
    "P40": Card(rate=215, label="predicted", pixels=224, exchange=12),
    # NVIDIA/DeepLearningExamples, PyTorch, AMP; assumed: 150 less overhead.
    "V100": Card(rate=1156, label="published", pixels=224, exchange=130),
    # The same; published: NVIDIA/nccl-tests/issues/149.
    "A100": Card(rate=2470, label="published", pixels=224, exchange=230),
    # A roofline, bfloat16; published, of H100: nccl-tests/issues/212.
    "H200": Card(rate=8512, label="predicted", pixels=224, exchange=370),
}


@dataclass(frozen=True)
class Recipe:
    """What a config says of the cost of a training."""

    name: str
    crop_size: int  # pixels
    batch_size: int
    images_per_device: int | None
    epochs: float
    parameters: int


def plan(options: argparse.Namespace) -> dict:
    """Forecasts for each recipe on each card, for 1 to 512 GPUs.

    Raises: UserError if a file of --rates or a recipe is not one, or a figure is not above 0.
    """
    cards = dict(CARDS)
    for path in options.rates:
        device, card = read_rate(path)
        cards[device] = card
    positive = [options.network_gbit, options.images_per_core]
    for card in cards.values():
        positive += [card.rate, card.pixels]
    if not all(value > 0 for value in positive):
        raise UserError("rates, their pixels, --network-gbit and --images-per-core must be above 0")
    rows = []
    for path in options.recipe:
        recipe = read_recipe(path)
        for gpu, card in cards.items():
            forecasts = [forecast(gpus, card, recipe, options.network_gbit, options.images_per_core) for gpus in GPUS]
            rows.append({"recipe": recipe.name, "gpu": gpu, "of": forecasts})
    return {"network_gbit": options.network_gbit, "images_per_core": options.images_per_core, "rows": rows}


def read_rate(path: str) -> tuple[str, Card]:
    """A measured rate and its device. A device that is not in CARDS gets a P40's bandwidth."""
    try:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        device, rate, pixels = measured["device"], +measured["images_per_second"], +measured["pixels"]
        words = device.replace("-", " ").split()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: must hold device, images_per_second and pixels ({error!r})") from error
    for name, card in CARDS.items():
        if name in words:
            return name, Card(rate, "measured", pixels, card.exchange)
    return device, Card(rate, "measured", pixels, CARDS["P40"].exchange)


def read_recipe(path: str) -> Recipe:
    config = resolved_config(path)
    with torch.device("meta"):
        trunk = make_trunk(config["model.name"])
        if "loss.target" not in config:  # a finetuning
            model = trunk.classifier
        elif config["loss.target"] == "gray":
            model = masked_frequency_network(trunk, out_channels=1)
        else:
            model = masked_frequency_network(trunk, out_channels=3)
    batch_size = config["train.batch_size"]
    epochs = config["schedule.epochs"]
    if config["schedule.steps"] is not None:
        epochs = config["schedule.steps"] / (IMAGES // batch_size)
    return Recipe(
        name=Path(path).stem,
        crop_size=config["data.train_crop_size"],
        batch_size=batch_size,
        images_per_device=config["train.images_per_device"],
        epochs=epochs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def forecast(gpus: int, card: Card, recipe: Recipe, network_gbit: float, images_per_core: float) -> dict:
    """What so many GPUs take. `label` is of the images/s; `outside` says why the recipe does not fit, or is None."""
    batch = recipe.batch_size
    if batch % gpus:
        return {"gpus": gpus, "outside": f"train.batch_size = {batch} does not divide"}
    rate = card.rate * (card.pixels / recipe.crop_size) ** 2
    share = batch // gpus
    micro_batch = largest_micro_batch(share, recipe.images_per_device)
    exchanged = 2 * (gpus - 1) / gpus * 4 * recipe.parameters  # bytes
    bandwidth = card.exchange  # GB/s
    if gpus > GPUS_OF_MACHINE:
        bandwidth = min(card.exchange, network_gbit / 8)
    backward = BACKWARD * micro_batch / rate  # seconds
    exposed = max(0.0, exchanged / (1e9 * bandwidth) - backward)
    speed = batch / (share / rate + exposed)
    label = "predicted"
    if gpus == 1 and card.pixels == recipe.crop_size:
        label = card.label
    outside = None
    if micro_batch < FEWEST:
        outside = f"below {FEWEST} images a GPU"
    return {
        "gpus": gpus,
        "images_per_device": micro_batch,
        "outside": outside,
        "images_per_second": speed,
        "label": label,
        "from": card.label,
        "hours": recipe.epochs * (IMAGES // batch) * batch / speed / 3600,
        "exposed_seconds": exposed,
        "loader_cores": speed / images_per_core,
        "read_mb_per_second": speed * ARCHIVE / IMAGES / 1e6,
        "least_gbit": 8 * exchanged / backward / 1e9,  # a network that hides the whole exchange
    }


def largest_micro_batch(share: int, images_per_device: int | None) -> int:
    """The largest divisor of a GPU's share of a batch that images_per_device allows."""
    size = min(share, images_per_device or share)
    while share % size:
        size -= 1
    return size


def as_markdown(figures: dict) -> str:
    rows = []
    for row in figures["rows"]:
        by_gpus = {one["gpus"]: one for one in row["of"]}
        single = by_gpus[1]
        cells = {
            "recipe": readable_cell(row["recipe"]),
            "GPU": readable_cell(row["gpu"]),
            "one: images/s": f"{single['images_per_second']:,.0f} {single['label']}",
            "cores": f"{single['loader_cores']:.1f}",
            "MB/s": f"{single['read_mb_per_second']:,.0f}",
        }
        for gpus in SHOWN:
            header = "hours on 1" if gpus == 1 else str(gpus)
            cells[header] = hours_cell(by_gpus[gpus])
        cells["Gbit/s"] = f"{by_gpus[64].get('least_gbit', 0):.0f}"
        rows.append(cells)
    return markdown_table(rows)


def hours_cell(figures: dict) -> str:
    """Hours and images/s; † where the recipe does not fit, – where its batch does not divide."""
    if "hours" not in figures:
        return "–"
    cell = f"{figures['hours']:,.2f} ({figures['images_per_second']:,.0f}/s)"
    if figures["outside"] is not None:
        cell += "†"
    return cell


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    both = ["configs/pretrain_resnet50.yaml", "configs/finetune_resnet50_bce.yaml"]
    parser.description = __doc__
    parser.add_argument("--recipe", nargs="+", default=both, help="YAML files; default: both of the README")
    parser.add_argument("--rates", nargs="+", default=[], help="JSON: device (a name), images_per_second, pixels")
    parser.add_argument(
        "--network-gbit", type=float, default=100, help="Gbit/s of a machine; 8 GPUs leave it as one (100)"
    )
    parser.add_argument(
        "--images-per-core", type=float, default=720, help="images/s of a loader process (720, measured)"
    )
