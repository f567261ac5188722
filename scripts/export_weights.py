"""A checkpoint's weights for other code, checked by loading the file back strictly and comparing outputs.

python scripts/export_weights.py runs/finetune_resnet50_bce/checkpoints/last.pt resnet50.pth
python scripts/export_weights.py runs/pretrain_resnet50/checkpoints/last.pt trunk.pth --layout timm
python scripts/export_weights.py CHECKPOINT mfm.pth --what pretraining --layout code-b
python scripts/export_weights.py CHECKPOINT resnet50.onnx --layout onnx

Beside OUT lies OUT.json: model, classes in the order of the outputs, normalisation, sizes, interpolation, and a
fingerprint of the weights. Whatever loads OUT reads it.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configs.schema import FinetuneConfig, PretrainConfig
from models.description import class_names, weights_fingerprint, write_description
from models.mfm import masked_frequency_network
from models.trunk import make_trunk
from models.weights import Weights, weights_of
from scripts.export_files import class_order_note, description_of, write_onnx
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.files import write_atomically
from utils.run.checkpoint import read_checkpoint
from utils.run.reading import checkpoint_config

PARTS = ("trunk", "classifier", "pretraining")
LAYOUTS = ("torchvision", "timm", "code-a", "code-b", "onnx")
DECODER_CHANNELS = {"code-a": 1, "code-b": 3}  # CoinCheung/MFM predicts grey, the authors' code colours
DECODER = "decoder"  # the head of pretraining: the child of its network that is not of the trunk


def export_weights(
    checkpoint: str, output: Path, what: str | None = None, layout: str = "torchvision", use_ema: bool = False
) -> str:
    """Write a part of a checkpoint. Returns: what was written, in words.

    Args:
        what: one of PARTS: the trunk alone, with its classifier, or with the decoder of pretraining. None: the
            classifier if there is one, else the trunk.
        layout: one of LAYOUTS. "torchvision" and "timm", whose names are the same: a bare state dict. "code-a"
            (CoinCheung/MFM): under `model`, for a classifier with the `epoch` and `scaler` that its test reads.
            "code-b" (the authors' code, Jiahao000/MFM): under `model`, the trunk's names after `encoder.`.
            "onnx": a graph with its weights, for images of the size of evaluations, of a pretraining's crops.
        use_ema: take the averaged weights.
    Raises: UserError if the checkpoint is none of ours, lacks that part, does not fit the other code, or if the file
        written does not give its outputs.
    """
    content = read_checkpoint(checkpoint)
    if "config" not in content:
        raise UserError(f"{checkpoint}: names no model; give a checkpoint of pretrain.py or finetune.py")
    config = checkpoint_config(checkpoint, content)
    model_name = config.model.name
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name the file to write")
    if what is None:
        what = "classifier" if "classes" in content else "trunk"
    _, weights = weights_of(content, checkpoint, use_ema)
    part = Part.of(weights, what, model_name, checkpoint)
    refuse_misfit(part, layout)
    classes = None
    if what == "classifier":
        classes = class_names(content, checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    if layout == "onnx":
        checked = write_onnx(output, part.filled_network(), size_of_images(config, what))
    else:
        exported = in_layout(part.weights, layout)
        if layout == "code-a" and what == "classifier":
            exported |= resume_state(content, config)
        checked = write_state_dict(output, exported, part, library_of(layout, what))
    source = {
        "exported_from": checkpoint, "part": what, "weights": "ema" if use_ema else "model", "layout": layout,
        "fingerprint": weights_fingerprint(part.weights),
    }  # fmt: skip
    described = write_description(output, description_of(config, classes, source))
    message = f"wrote {output}: {what} of {model_name}, {len(part.weights)} tensors, layout {layout}; {checked}"
    if classes is None:
        return f"{message}\nwrote {described}: normalisation"
    order = class_order_note(classes)
    return f"{message}\nwrote {described}: classes, normalisation and sizes\nclass order: {order}"


def write_state_dict(output: Path, exported: dict, part: "Part", library: ModuleType) -> str:
    """Write a file and read it back into the other library's network. Returns: what was checked, in words."""
    write_atomically(output, lambda file: torch.save(exported, file))
    check(output, part, library)
    return f"loads back strictly into {library.__name__}'s {part.model_name}, with equal outputs"


def size_of_images(config: PretrainConfig | FinetuneConfig, what: str) -> int:
    """The side in pixels of the images that a part is meant for."""
    if what == "classifier":
        return config.data.val_crop_size
    return config.data.train_crop_size


@dataclass(frozen=True)
class Part:
    """Tensors of a checkpoint that are exported together, and the networks that they are for.

    Args:
        what: one of PARTS.
        model_name: of the trunk.
        classifier_head: the child of the library's network that computes the logits; `fc` of a ResNet.
        weights: under torchvision's names, contiguous as files should have them, whatever training used.
    """

    what: str
    model_name: str
    classifier_head: str
    weights: Weights

    @classmethod
    def of(cls, weights: Weights, what: str, model_name: str, checkpoint: str) -> "Part":
        """Raises: UserError if the part's head is not among the weights of the checkpoint."""
        with torch.device("meta"):  # takes no memory
            classifier_head = make_trunk(model_name).head
        own_head = {"trunk": None, "classifier": classifier_head, "pretraining": DECODER}[what]
        children = {name.split(".")[0] for name in weights}
        if own_head and own_head not in children:
            raise UserError(f"{checkpoint}: has no {own_head}.*: --what {what} is not in it; take --what trunk")
        other_heads = {classifier_head, DECODER} - {own_head}
        exported = {}
        for name, tensor in weights.items():
            if name.split(".")[0] not in other_heads:
                exported[name] = tensor.contiguous()
        return cls(what, model_name, classifier_head, exported)

    @property
    def num_classes(self) -> int:
        if self.what != "classifier":
            return 1
        return self.weights[f"{self.classifier_head}.bias"].numel()

    @property
    def decoder_channels(self) -> int:
        """Of the image that the decoder predicts: 1, grey, or 3, colours."""
        return self.weights[f"{DECODER}.0.bias"].numel() // make_trunk(self.model_name).stride ** 2

    def own_network(self) -> nn.Module:
        """This project's."""
        trunk = make_trunk(self.model_name, self.num_classes)
        if self.what == "pretraining":
            return masked_frequency_network(trunk, self.decoder_channels)
        return self.without_unused_head(trunk.classifier)

    def filled_network(self) -> nn.Module:
        """This project's, with its weights, for evaluation."""
        with torch.device("meta"):  # without initial weights
            network = self.own_network()
        network.load_state_dict(self.weights, assign=True)
        return network.eval()

    def library_network(self, library: ModuleType) -> nn.Module:
        """timm's or torchvision's; this project's for pretraining, which they do not have."""
        if self.what == "pretraining":
            return self.own_network()
        if library is torchvision:
            network = torchvision.models.get_model(self.model_name, num_classes=self.num_classes)
        else:
            network = library.create_model(self.model_name, num_classes=self.num_classes)
        return self.without_unused_head(network)

    def without_unused_head(self, network: nn.Module) -> nn.Module:
        if self.what == "trunk":
            setattr(network, self.classifier_head, nn.Identity())
        return network


def refuse_misfit(part: Part, layout: str) -> None:
    """Raises: UserError with the reason if the other code has no network that takes this part."""
    if layout == "code-b" and part.what == "classifier":
        raise UserError("--layout code-b: that code has no ResNet classifier; take --what trunk, or --layout timm")
    if part.what != "pretraining" or layout not in DECODER_CHANNELS:
        return
    channels, expected = part.decoder_channels, DECODER_CHANNELS[layout]
    if channels != expected:
        raise UserError(
            f"--layout {layout}: that code's decoder predicts {expected} channels an image, this one {channels}\n"
            f"(loss.target = {'gray' if channels == 1 else 'rgb'}); take --what trunk, or the other code's layout"
        )


def resume_state(content: dict, config: PretrainConfig | FinetuneConfig) -> dict:
    """What CoinCheung/MFM's test command reads beside the weights: the last epoch's number and a gradient scaler."""
    epochs = config.schedule.epochs
    step, images = content.get("step"), content.get("images")
    if isinstance(step, int) and isinstance(images, int):
        steps_per_epoch = max(1, images // config.train.batch_size)
        epochs = step // steps_per_epoch
    return {"epoch": max(0, epochs - 1), "scaler": torch.amp.GradScaler("cpu").state_dict()}


def in_layout(weights: Weights, layout: str) -> dict:
    """What the file holds."""
    if layout in ("torchvision", "timm"):
        return dict(weights)
    if layout == "code-a":
        return {"model": weights}
    renamed = {}
    for name, tensor in weights.items():
        in_decoder = name.startswith(f"{DECODER}.")
        renamed[name if in_decoder else f"encoder.{name}"] = tensor
    return {"model": renamed}


def library_of(layout: str, what: str) -> ModuleType:
    """The library whose network a file is checked with."""
    if layout == "timm" and what != "pretraining":
        try:
            import timm

            return timm
        except ImportError:  # its names are torchvision's, which checks them too
            return torchvision
    return torchvision


@torch.inference_mode()
def check(output: Path, part: Part, library: ModuleType) -> None:
    """Load the file as its reader will, and compare outputs of random images with those of our own network.

    Raises: UserError if they differ; the file is removed.
    """
    content = torch.load(output, weights_only=True)
    written = {name.removeprefix("encoder."): tensor for name, tensor in content.get("model", content).items()}
    with torch.device("meta"):  # without initial weights: every tensor is to come from the file
        reader = part.library_network(library)
        stride = make_trunk(part.model_name).stride
    images = torch.randn(2, 3, 2 * stride, 2 * stride)
    try:
        reader.load_state_dict(written, strict=True, assign=True)
        torch.testing.assert_close(reader.eval()(images), part.filled_network()(images), atol=1e-5, rtol=1e-5)
    except (RuntimeError, AssertionError) as error:
        output.unlink()
        raise UserError(f"{output}: removed, since what was written is not what was to be: {error}") from error


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="A checkpoint's weights for other code, checked by loading them back.")
    parser.add_argument("checkpoint", help="a checkpoint of pretrain.py or finetune.py")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--what", choices=PARTS, help="default: the classifier if there is one, else the trunk")
    parser.add_argument("--layout", choices=LAYOUTS, default="torchvision", help="whose names and file (torchvision)")
    parser.add_argument("--ema", action="store_true", help="the averaged weights")
    arguments = parser.parse_args(argv)
    message = export_weights(
        checkpoint=arguments.checkpoint,
        output=arguments.output,
        what=arguments.what,
        layout=arguments.layout,
        use_ema=arguments.ema,
    )
    say(message)
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
