"""How many images a GPU holds at once, by computation: the README's table of train.images_per_device.

python scripts/benchmark/memory_card.py                     # ResNet-50; other trunks: --model resnet101

The rule: activations are what autograd keeps of a forward pass for the backward pass, counted on the CPU in that
precision, a batch of 2 minus a batch of 1; weights, gradients and AdamW's two moments take 16 bytes a parameter; CUDA's
context, cuDNN's workspaces and the backward pass's own temporaries take 1 GB and 10 %. Of what fits, the largest power
of two, so that a batch of 2048 divides. A GB is 10^9 bytes. Nothing of it is measured on a GPU.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from utils.console import say
from utils.distributed import run_entry
from utils.tables import markdown_table

CARDS = (8, 11, 16, 24, 32, 80, 141)  # GB
SIZES = (224, 160)  # pixels
PRECISIONS = {"float32": torch.float32, "float16, bfloat16": torch.bfloat16}
BYTES_A_PARAMETER = 4 * 4  # weight, gradient, two moments, all float32
RESERVED, HEAD_ROOM = 1e9, 0.1


def kept_bytes(model: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps for its backward pass, each piece of memory once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(images)
    return sum(storage.nbytes() for storage in kept.values())


def bytes_an_image(model: torch.nn.Module, size: int, dtype: torch.dtype) -> int:
    """What one more image (3, size, size) adds: weights and their low-precision copies cancel."""
    one = kept_bytes(model, torch.zeros(1, 3, size, size), dtype)
    two = kept_bytes(model, torch.zeros(2, 3, size, size), dtype)
    return two - one


def images_that_fit(gigabytes: float, per_image: int, parameters: int) -> int:
    """The largest power of two of images, `per_image` bytes each, that fit; 0 if none does."""
    free = (gigabytes * 1e9 - RESERVED) * (1 - HEAD_ROOM) - BYTES_A_PARAMETER * parameters
    if free < per_image:
        return 0
    fit = int(free // per_image)
    return 1 << (fit.bit_length() - 1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="How many images a GPU holds at once, by computation.")
    parser.add_argument("--model", default="resnet50", help="a torchvision ResNet")
    model = masked_frequency_network(make_trunk(parser.parse_args(argv).model), out_channels=3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for size in SIZES:
        for precision, dtype in PRECISIONS.items():
            per_image = bytes_an_image(model, size, dtype)
            row = {"pixels": size, "precision": precision, "MB an image": f"{per_image / 1e6:.0f}"}
            for gigabytes in CARDS:
                row[f"{gigabytes} GB"] = images_that_fit(gigabytes, per_image, parameters)
            rows.append(row)
    say(markdown_table(rows))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:], output_is_result=True)
