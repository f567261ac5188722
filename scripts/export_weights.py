"""A checkpoint's weights as a bare torchvision state dict, checked by loading it back.

python scripts/export_weights.py runs/finetune_resnet50_bce/checkpoints/last.pt resnet50.pth
    >>> torchvision.models.resnet50().load_state_dict(torch.load("resnet50.pth"))                  # finetuned
    >>> torchvision.models.resnet50().load_state_dict(torch.load("trunk.pth"), strict=False)       # pretrained: no fc
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from models.resnet import resnet
from models.weights import weights_of
from utils.checkpoint import read_checkpoint, write_atomically
from utils.distributed import run_entry
from utils.errors import UserError


def export_weights(checkpoint: str, output: Path, use_ema: bool = False) -> str:
    """Write the torchvision part of a checkpoint and tell what was written.

    A finetuned checkpoint gives all of torchvision's tensors, a pretraining one those of the trunk (no `fc`).
    Raises: UserError if the checkpoint is none of ours.
    """
    saved = read_checkpoint(checkpoint)
    weights = {
        name: tensor.contiguous()
        for name, tensor in weights_of(saved, checkpoint, use_ema)[1].items()
        if not name.startswith("decoder.")
    }
    name = saved.get("config", {}).get("model", {}).get("name")
    if name is None:
        raise UserError(f"{checkpoint}: names no model; give a checkpoint of pretrain.py or finetune.py")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda file: torch.save(weights, file))

    model = resnet(name, len(saved.get("classes", range(1000))))
    missing, unexpected = model.load_state_dict(torch.load(output, weights_only=True), strict=False)
    if unexpected or not set(missing) <= {"fc.weight", "fc.bias"} or (missing and "classes" in saved):
        raise UserError(
            f"{output}: does not load into torchvision's {name}: missing {missing}, unexpected {unexpected}"
        )
    kind = "trunk without fc" if missing else f"classifier of {len(saved['classes'])} classes"
    return f"wrote {output}: {len(weights)} tensors, {name}, {kind}; loads into torchvision"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="A checkpoint's weights as a bare torchvision state dict.")
    parser.add_argument("checkpoint", help="a checkpoint of pretrain.py or finetune.py")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--ema", action="store_true", help="the averaged weights")
    arguments = parser.parse_args(argv)
    print(export_weights(arguments.checkpoint, arguments.output, arguments.ema))
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
