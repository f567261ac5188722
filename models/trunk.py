"""Backbones by name: the trunk that pretraining and finetuning share.

A new family of trunks is a function that builds a `Trunk`, and its names in `TRUNKS`.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models

from utils.errors import UserError


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


def torchvision_resnet(name: str, num_classes: int, zero_init_last_batch_norm: bool) -> Trunk:
    """A ResNet, ResNeXt or Wide ResNet, whose state dict is torchvision's own."""
    resnet = models.get_model(name, weights=None, num_classes=num_classes, zero_init_residual=zero_init_last_batch_norm)
    below_pooling = OrderedDict(resnet.named_children())
    del below_pooling["avgpool"], below_pooling["fc"]
    return Trunk(module=nn.Sequential(below_pooling), stride=32, width=resnet.fc.in_features, classifier=resnet)


RESNET_FAMILIES = ("resnet", "resnext", "wide_resnet")
TRUNKS = {name: torchvision_resnet for name in models.list_models(module=models) if name.startswith(RESNET_FAMILIES)}


def make_trunk(name: str, num_classes: int = 1000, zero_init_last_batch_norm: bool = False) -> Trunk:
    """The backbone of that name, initialised from torch's CPU generator.

    Args:
        num_classes: outputs K of the classifier.
        zero_init_last_batch_norm: each residual block's last BatchNorm starts at 0 instead of 1.
    Raises: UserError with the names there are.
    """
    if name not in TRUNKS:
        raise UserError(f"model.name = {name}: no such trunk; there are {', '.join(TRUNKS)}")
    return TRUNKS[name](name, num_classes, zero_init_last_batch_norm)


def trunk_children(name: str) -> frozenset[str]:
    """`Trunk.children` of the backbone of that name; no memory is taken and no random number drawn."""
    with torch.device("meta"):
        return make_trunk(name).children
