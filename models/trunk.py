"""Backbones by name: the trunk that pretraining and finetuning share.

A new family of trunks is a function that builds a `Trunk`, and its names in `TRUNKS`.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models
from torchvision.ops import stochastic_depth

from utils.errors import UserError, printable


@dataclass(frozen=True)
class Trunk:
    """A newly initialised backbone, and the classifier around it.

    Args:
        module: (B, 3, H, W) -> features (B, width, H / stride, W / stride). Its children name the tensors of a
            checkpoint, so a ResNet's trunk loads into torchvision by name.
        stride: pixels of the image that one side of a feature stands for.
        width: channels of the features.
        classifier: (B, 3, H, W) -> logits (B, K), the library's own network around the very same tensors.
    """

    module: nn.Sequential
    stride: int
    width: int
    classifier: nn.Module

    @property
    def children(self) -> frozenset[str]:
        """The first parts of its tensors' names."""
        return frozenset(name for name, _ in self.module.named_children())

    @property
    def head(self) -> str:
        """The child of the classifier that has tensors and is not of the trunk; `fc` of a ResNet."""
        children = [name.split(".")[0] for name in self.classifier.state_dict()]
        return next(child for child in children if child not in self.children)


class DropPathBlock(nn.Module):
    """A block of torchvision's ResNet whose residual branch is dropped at random, image by image (stochastic depth).

    What stays is divided by the share that stays; in evaluation nothing is dropped. The modules are those of `block`,
    under their own names. A hook on the last BatchNorm would do the same, until SyncBatchNorm takes its place.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        rate: chance that an image's branch is dropped, in [0, 1). It is drawn from torch's default generators.
    Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, block: nn.Module, rate: float):
        super().__init__()
        self.rate = rate
        for name, module in block.named_children():
            self.add_module(name, module)
        self.downsample = block.downsample  # None where the shortcut is the block's input itself

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        out = stochastic_depth(self.residual(x), self.rate, "row", self.training)
        out += shortcut
        return self.relu(out)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if hasattr(self, "conv3"):  # a Bottleneck
            out = self.bn3(self.conv3(self.relu(out)))
        return out


def add_drop_path(resnet: models.ResNet, last_rate: float) -> None:
    """Drop path in every block; its rate rises linearly from 0 in the first block to `last_rate` in the last."""
    layers = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    last_number = sum(len(layer) for layer in layers) - 1
    number = 0
    for layer in layers:
        for index in range(len(layer)):
            layer[index] = DropPathBlock(layer[index], rate=last_rate * number / last_number)
            number += 1


def torchvision_resnet(name: str, num_classes: int, zero_init_last_batch_norm: bool, drop_path: float) -> Trunk:
    """A ResNet, ResNeXt or Wide ResNet, whose state dict is torchvision's own."""
    resnet = models.get_model(name, weights=None, num_classes=num_classes, zero_init_residual=zero_init_last_batch_norm)
    if drop_path > 0:
        add_drop_path(resnet, drop_path)
    below_pooling = OrderedDict(resnet.named_children())
    del below_pooling["avgpool"], below_pooling["fc"]
    return Trunk(module=nn.Sequential(below_pooling), stride=32, width=resnet.fc.in_features, classifier=resnet)


RESNET_FAMILIES = ("resnet", "resnext", "wide_resnet")
TRUNKS = {name: torchvision_resnet for name in models.list_models(module=models) if name.startswith(RESNET_FAMILIES)}


def make_trunk(
    name: str, num_classes: int = 1000, *, zero_init_last_batch_norm: bool = False, drop_path: float = 0.0
) -> Trunk:
    """The backbone of that name, initialised from torch's CPU generator.

    Args:
        num_classes: outputs K of the classifier.
        zero_init_last_batch_norm: each residual block's last BatchNorm starts at 0 instead of 1.
        drop_path: chance that the last block's residual branch is dropped for an image; earlier ones have less.
    Raises: UserError with the names there are.
    """
    if name not in TRUNKS:
        raise UserError(f"model.name = {printable(name)}: no such trunk; there are {', '.join(TRUNKS)}")
    return TRUNKS[name](
        name, num_classes=num_classes, zero_init_last_batch_norm=zero_init_last_batch_norm, drop_path=drop_path
    )


def freeze(trunk: Trunk) -> None:
    """Have training leave the trunk as it is, and change the classifier's head alone.

    Its parameters get no gradient. Its BatchNorms take their running statistics, as in evaluation, and leave them.
    """
    trunk.module.requires_grad_(False)
    trunk.module.eval()


def trunk_children(name: str) -> frozenset[str]:
    """`Trunk.children` of the backbone of that name; no memory is taken and no random number drawn."""
    with torch.device("meta"):
        return make_trunk(name).children
