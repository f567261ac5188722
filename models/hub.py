"""torchvision's pretrained weights, downloaded into the cache of torch's hub."""

import os
import re

import torch
from torchvision.models import get_model_weights

from utils.distributed import World
from utils.errors import UserError

HUB = "torchvision:"  # as in torchvision:IMAGENET1K_V1


def hub_file(path: str, model_name: str, world: World) -> str:
    """The file of torchvision's weights in torch's hub. One rank of a machine downloads it there if need be."""
    known = get_model_weights(model_name).__members__
    name = path.removeprefix(HUB)
    if name not in known:
        raise UserError(f"run.weights = {path}: torchvision has for {model_name}: {HUB}{f', {HUB}'.join(known)}")
    url = known[name].url
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))

    def download_if_missing() -> None:
        if os.path.exists(file):
            return
        checksum = re.search(r"-([0-9a-f]{8,})\.", url)[1]
        try:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            torch.hub.download_url_to_file(url, file, checksum, progress=False)
        except Exception as error:  # of the network, the disk or the checksum
            raise UserError(f"{path}: cannot download {url} ({error}); put it at {file} yourself") from error

    world.in_turn(download_if_missing)
    return file
