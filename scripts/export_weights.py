"""A checkpoint's weights for other code, checked by loading the file back strictly and comparing outputs.

python scripts/export_weights.py runs/finetune_resnet50_bce/checkpoints/last.pt resnet50.pth
python scripts/export_weights.py runs/pretrain_resnet50/checkpoints/last.pt trunk.pth --layout timm
python scripts/export_weights.py CHECKPOINT mfm.pth --what pretraining --layout code-b
"""

import argparse
import contextlib
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models.trunk import STRIDE, masked_frequency_model, resnet
from models.weights import weights_of
from utils.distributed import run_entry
from utils.errors import UserError
from utils.files import write_atomically
from utils.run.checkpoint import read_checkpoint

PARTS = {"trunk": "", "classifier": "fc.", "pretraining": "decoder."}  # how the names of its head begin
LAYOUTS = ("torchvision", "timm", "code-a", "code-b")
Weights = dict[str, torch.Tensor]


def export_weights(checkpoint: str, output: Path, what: str | None = None, layout=LAYOUTS[0], use_ema=False) -> str:
    """Write a part of a checkpoint and tell what was written.

    Args:
        what: "trunk" (everything below `fc`), "classifier" (with `fc`) or "pretraining" (trunk and decoder);
            None: the classifier if there is one, else the trunk.
        layout: "torchvision" and "timm", whose names are the same: a bare state dict; "code-a" (CoinCheung/MFM): under
            `model`; "code-b" (Jiahao000/MFM, no classifiers): under `model`, the trunk's names after `encoder.`.
    Raises: UserError if the checkpoint is none of ours, lacks that part, or the file written does not give its outputs.
    """
    saved = read_checkpoint(checkpoint)
    name = saved.get("config", {}).get("model", {}).get("name")
    if name is None:
        raise UserError(f"{checkpoint}: names no model; give a checkpoint of pretrain.py or finetune.py")
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name the file to write")
    what = what or ("classifier" if "classes" in saved else "trunk")
    weights = part_of(weights_of(saved, checkpoint, use_ema)[1], what, checkpoint)
    if layout == "code-b" and what == "classifier":
        raise UserError("--layout code-b: that code has no ResNet classifier; take --what trunk, or --layout timm")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda file: torch.save(in_layout(weights, layout), file))
    into = check(output, name, weights, what, layout)
    return f"wrote {output}: {what} of {name}, {len(weights)} tensors, layout {layout}; loads back strictly into {into}"


def part_of(weights: Weights, what: str, checkpoint: str) -> Weights:
    """The tensors of one of PARTS, in memory as a file should have them."""
    head = PARTS[what]
    if not any(name.startswith(head) for name in weights):
        raise UserError(f"{checkpoint}: has no {head}*: --what {what} is not in it; take --what trunk")
    left_out = tuple({"fc.", "decoder."} - {head})
    return {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith(left_out)}


def in_layout(weights: Weights, layout: str) -> dict:
    if layout == "code-b":
        weights = {name if name.startswith("decoder.") else f"encoder.{name}": weights[name] for name in weights}
    return {"model": weights} if layout.startswith("code-") else weights


@torch.inference_mode()
def check(output: Path, name: str, weights: Weights, what: str, layout: str) -> str:
    """Load the file as its reader will, compare outputs of random images with ours; returns what it was loaded into."""
    written = torch.load(output, weights_only=True)
    written = {name.removeprefix("encoder."): tensor for name, tensor in written.get("model", written).items()}
    library = get_model
    if layout == "timm" and what != "pretraining":
        with contextlib.suppress(ImportError):  # without timm: its names are torchvision's, which checks them too
            from timm import create_model as library
    with torch.device("meta"):  # without initial weights: every tensor is to come from the file
        ours, theirs = build(resnet, name, weights, what), build(library, name, weights, what)
    ours.load_state_dict(weights, assign=True)
    images = torch.randn(2, 3, 2 * STRIDE, 2 * STRIDE)
    try:
        theirs.load_state_dict(written, strict=True, assign=True)
        torch.testing.assert_close(theirs.eval()(images), ours.eval()(images), atol=1e-5, rtol=1e-5)
    except (RuntimeError, AssertionError) as error:
        output.unlink()
        raise UserError(f"{output}: removed, since what was written is not what was to be: {error}") from error
    return f"{library.__module__.partition('.')[0]}'s {name}, with equal outputs"


def build(make, name: str, weights: Weights, what: str) -> nn.Module:
    """A network for this part, its trunk by `make(name, num_classes=...)`."""
    if what == "pretraining":
        return masked_frequency_model(name, weights["decoder.0.bias"].numel() // STRIDE**2)
    model = make(name, num_classes=weights["fc.bias"].numel() if what == "classifier" else 1)
    if what == "trunk":
        model.fc = nn.Identity()
    return model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="A checkpoint's weights for other code, checked by loading them back.")
    parser.add_argument("checkpoint", help="a checkpoint of pretrain.py or finetune.py")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--what", choices=PARTS, help="default: the classifier if there is one, else the trunk")
    parser.add_argument("--layout", choices=LAYOUTS, default="torchvision", help="whose names and file (torchvision)")
    parser.add_argument("--ema", action="store_true", help="the averaged weights")
    arguments = parser.parse_args(argv)
    print(export_weights(arguments.checkpoint, arguments.output, arguments.what, arguments.layout, arguments.ema))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
