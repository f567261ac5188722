"""torchvision ResNets, whole for classification, their trunk with a decoder for pretraining."""

from collections import OrderedDict

from torch import nn
from torchvision import models

from utils.errors import UserError

STRIDE = 32  # of every ResNet trunk: pixels of the image a feature's side stands for


def resnet(name: str, num_classes: int = 1000, zero_init_last_batch_norm: bool = False) -> models.ResNet:
    """A torchvision ResNet by name, newly initialised, so that its state dict is torchvision's own.

    Raises: UserError with the names there are.
    """
    families = ("resnet", "resnext", "wide_resnet")
    known = [known for known in models.list_models(module=models) if known.startswith(families)]
    if name not in known:
        raise UserError(f"model.name = {name}: not a torchvision ResNet; there are {', '.join(known)}")
    return models.get_model(name, weights=None, num_classes=num_classes, zero_init_residual=zero_init_last_batch_norm)


def masked_frequency_model(name: str, out_channels: int, zero_init_last_batch_norm: bool = False) -> nn.Sequential:
    """Trunk, then decoder: a 1×1 convolution to out_channels · 32² channels and a pixel shuffle (paper, section 3.3).

    (B, 3, H, W) -> (B, out_channels, H, W), H and W multiples of 32. Parameters are named as torchvision names them
    (conv1, bn1, layer1 … layer4), plus decoder.*: the trunk of a checkpoint loads into torchvision by name.
    """
    whole = resnet(name, zero_init_last_batch_norm=zero_init_last_batch_norm)
    trunk = OrderedDict((child, module) for child, module in whole.named_children() if child not in ("avgpool", "fc"))
    head = nn.Conv2d(whole.fc.in_features, out_channels * STRIDE**2, kernel_size=1)
    return nn.Sequential(OrderedDict(trunk, decoder=nn.Sequential(head, nn.PixelShuffle(STRIDE))))
