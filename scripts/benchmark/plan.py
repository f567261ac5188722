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
from pathlib import Path

import torch

from models.trunk import masked_frequency_model, resnet
from scripts.config_diff import resolved
from utils.errors import UserError

IMAGES, ARCHIVE = 1_281_167, 147_897_477_120  # published: of ImageNet-1k's train; bytes of ILSVRC2012_img_train.tar
GPUS, FEWEST = [2**n for n in range(10)], 32  # images a GPU: below, BatchNorm errs more (arXiv 1803.08494, figure 1)
CARDS = {  # images/s of training a ResNet-50, label, pixels; GB/s of NCCL's all_reduce in a machine of 8
    "P40": (215, "predicted", 224, 12),  # a roofline, float32; assumed: PCIe 3 x16, 15.75 less overhead
    "V100": (1156, "published", 224, 130),  # NVIDIA/DeepLearningExamples, PyTorch, AMP; assumed: 150 less overhead
    "A100": (2470, "published", 224, 230),  # the same; published: NVIDIA/nccl-tests/issues/149
    "H200": (8512, "predicted", 224, 370),  # a roofline, bfloat16; published, of H100: nccl-tests/issues/212
}


def measured(path: str) -> tuple[str, tuple]:
    """What a benchmark's JSON adds to CARDS; a device of another name gets a P40's bandwidth."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        name = next((card for card in CARDS if card in told["device"].replace("-", " ").split()), told["device"])
        return name, (+told["images_per_second"], "measured", +told["pixels"], CARDS.get(name, CARDS["P40"])[-1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: must hold device, images_per_second and pixels ({error!r})") from error


def figures(gpus: int, card: tuple, recipe: dict, network_gbit: float, images_per_core: float) -> dict:
    """Of so many GPUs, predicted but for images/s, which has a `label`; `outside`: why the recipe does not fit."""
    (rate, label, pixels, inside), size, batch = card, recipe["data.train_crop_size"], recipe["train.batch_size"]
    rate, share = rate * (pixels / size) ** 2, batch // gpus
    if batch % gpus:
        return {"gpus": gpus, "outside": f"train.batch_size = {batch} does not divide"}
    micro = max(b for b in range(1, 1 + min(share, recipe["train.images_per_device"] or share)) if share % b == 0)
    volume, backward = 2 * (gpus - 1) / gpus * 4 * recipe["parameters"], 2 / 3 * micro / rate  # bytes, s
    exposed = max(0.0, volume / (1e9 * (inside if gpus <= 8 else min(inside, network_gbit / 8))) - backward)
    speed = batch / (share / rate + exposed)
    return {
        "gpus": gpus, "images_per_device": micro, "outside": f"below {FEWEST} images a GPU" if micro < FEWEST else None,
        "images_per_second": speed, "label": label if gpus == 1 and size == pixels else "predicted", "from": label,
        "hours": recipe["schedule.epochs"] * (IMAGES // batch) * batch / speed / 3600, "exposed_seconds": exposed,
        "loader_cores": speed / images_per_core, "read_mb_per_second": speed * ARCHIVE / IMAGES / 1e6,
        "least_gbit": 8 * volume / backward / 1e9,
    }  # fmt: skip


def plan(arguments: argparse.Namespace) -> dict:
    cards, rows = CARDS | dict(map(measured, arguments.rates)), []
    given = arguments.network_gbit, arguments.images_per_core
    if not all(x > 0 for x in (*given, *(card[i] for card in cards.values() for i in (0, 2)))):
        raise UserError("rates, their pixels, --network-gbit and --images-per-core must be above 0")
    for path in arguments.recipe:
        recipe = resolved(path)
        channels = {"gray": 1, "rgb": 3}.get(recipe.get("loss.target"))  # None: a finetuning
        with torch.device("meta"):
            model = masked_frequency_model(recipe["model.name"], channels) if channels else resnet(recipe["model.name"])
        recipe["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        for gpu, card in cards.items():
            rows.append({"recipe": Path(path).stem, "gpu": gpu, "of": [figures(n, card, recipe, *given) for n in GPUS]})
    return {"network_gbit": given[0], "images_per_core": given[1], "rows": rows}


def as_markdown(found: dict) -> str:
    text = "| recipe | GPU | one: images/s | cores | MB/s | hours on 1 | 8 | 64 | 512 | Gbit/s |\n|" + "---|" * 10
    for row in found["rows"]:
        of, form = row["of"][::3], "{hours:,.2f} ({images_per_second:,.0f}/s)"
        one = "{images_per_second:,.0f} {label} | {loader_cores:.1f} | {read_mb_per_second:,.0f}".format(**of[0])
        cells = [form.format(**told) + "†" * bool(told["outside"]) if "hours" in told else "–" for told in of]
        text += f"\n| {row['recipe']} | {row['gpu']} | {one} | {' | '.join(cells)} | {of[2].get('least_gbit', 0):.0f} |"
    return text


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    both = ["configs/pretrain_resnet50.yaml", "configs/finetune_resnet50_bce.yaml"]
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", nargs="+", default=both, help="YAML files; else both of the README")
    parser.add_argument("--rates", nargs="+", default=[], help="JSON: device (a name), images_per_second, pixels")
    parser.add_argument("--network-gbit", type=float, default=100, help="of a machine; 8 GPUs leave it as one (100)")
    parser.add_argument("--images-per-core", type=float, default=720, help="of the loader (720, measured)")
    return parser
