"""What export_weights.py writes beside or instead of a state dict: a JSON that describes it, and ONNX."""

import io
import re
import warnings
from pathlib import Path

import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from utils.errors import UserError
from utils.files import write_atomically


def description_of(
    config: PretrainConfig | FinetuneConfig, classes: list[str] | None, source: dict[str, object]
) -> dict[str, object]:
    """What a reader of the weights must know; models/description.py reads it back.

    Args:
        classes: of a classifier, in the order of its outputs; None: the network is none.
        source: where the weights are from, and their fingerprint.
    """
    data = config.data
    description: dict[str, object] = {
        "model": config.model.name, "mean": list(data.mean), "std": list(data.std),
        "pixels": "RGB in [0, 1], minus mean, over std", "interpolation": data.interpolation,
        "train_crop_size": data.train_crop_size,
    }  # fmt: skip
    if classes is not None:
        description |= {
            "val_resize_size": list(data.val_resize_size), "val_crop_size": data.val_crop_size,
            "loss": config.loss.name, "class_order": class_order_note(classes), "classes": classes,
        }  # fmt: skip
    return {**source, **description}


def class_order_note(classes: list[str]) -> str:
    """How other libraries number class folders of these names, against the order of the outputs."""
    by_name = "torchvision's ImageFolder (by name) "
    by_number = "timm (numbers by value, without case) "
    by_name += "sorts these folders as the outputs" if classes == sorted(classes) else "sorts them otherwise"
    if classes == sorted(classes, key=natural_key):
        by_number += "sorts these folders as the outputs"
    else:
        by_number += "sorts them otherwise: give it --class-map FILE.txt with these names, one a line"
    return f"{by_name}; {by_number}"


def natural_key(name: str) -> list[tuple[str, int]]:
    """What timm sorts folders by: text without case, and digits in it as numbers; no digits come first."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name.lower())]


def write_onnx(output: Path, network: nn.Module, size: int) -> str:
    """Write a network for images (B, 3, size, size), normalised, any B, and compare its outputs in onnxruntime.

    Returns: what was checked, in words.
    Raises: UserError without onnx, or if the outputs differ; the file is removed then.
    """
    try:
        import onnx  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise UserError("--layout onnx: needs a library; pip install onnx onnxruntime") from error
    images = torch.randn(2, 3, size, size)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter needs onnxscript, and gives the same operators
        torch.onnx.export(
            network, (images,), content, input_names=["images"], output_names=["outputs"], dynamo=False,
            dynamic_axes={"images": {0: "batch"}, "outputs": {0: "batch"}},
        )  # fmt: skip
    write_atomically(output, lambda file: file.write(content.getvalue()))
    try:
        import onnxruntime
    except ImportError:
        return "not checked: onnxruntime is not installed"
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (outputs,) = session.run(None, {"images": batch.numpy()})
        try:
            torch.testing.assert_close(torch.from_numpy(outputs), network(batch), atol=1e-4, rtol=1e-4)
        except AssertionError as error:
            output.unlink()
            raise UserError(f"{output}: removed, since onnxruntime's outputs are others: {error}") from error
    return f"gives equal outputs in onnxruntime, for normalised images (B, 3, {size}, {size})"
