"""Features of every image of a folder, once, in float32, on all ranks; rank 0 collects them.

An image's features depend on nothing but the image and the network: the network always gets BLOCK images, since
libraries of convolutions choose another order of sums for another number of images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from data.loader import batch_loader
from data.samples import EvaluationSamples
from models.normalize import Normalizer, unit_float
from utils.console import progress_bar
from utils.distributed import World
from utils.errors import UserError
from utils.precision import exact_float32, without_algorithm_search
from utils.training.evaluation import in_evaluation, share_of_rank

BLOCK = 64  # images that the network gets at once; the last ones of a rank are filled up with zeros
ROWS_SENT = 4096  # that each rank sends to rank 0 at once
STORAGES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Features:
    """Of a set of images, in the order of its folder, in the CPU's memory.

    Args:
        vectors: (N, D) float32 or float16.
        labels: (N,) int64 class numbers.
    """

    vectors: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


View = Callable[[torch.Tensor], torch.Tensor]  # crops (B, 3, S, S) uint8 on the device -> (B, D) float32


@dataclass(frozen=True)
class PooledTrunk:
    """The trunk's output, averaged over the image.

    Args:
        trunk: (B, 3, S, S) normalised -> (B, D, H, W).
    """

    trunk: nn.Module
    normalize: Normalizer

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.normalize(unit_float(crops))).float().mean((2, 3))


@dataclass(frozen=True)
class AveragedPixels:
    """Colours of `side` × `side` squares of the image: what neighbours see without any learning.

    They are normalised, since the cosine of plain pixels, which are all positive, tells little of them.
    """

    side: ClassVar[int] = 8
    width: ClassVar[int] = 3 * side**2  # numbers an image

    normalize: Normalizer

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.normalize(unit_float(crops)), self.side).flatten(1)


@torch.inference_mode()
@exact_float32()
@without_algorithm_search()
def extract(
    views: dict[str, View], samples: EvaluationSamples, model: nn.Module, world: World, *, workers: int,
    storage: str = "float32", timeout_minutes: float = 0,
) -> dict[str, Features]:  # fmt: skip
    """The features of each view of the samples, on rank 0; nothing on the other ranks, which compute their share.

    Args:
        samples: of one resize size.
        model: what the views run; it is left in training mode if it was in it.
        storage: a name of STORAGES.
    Raises: UserError on all ranks if features are not finite, or too large for float16, or a rank has no image.
    """
    length = len(samples.folder)
    if length < world.size:
        raise UserError(f"{samples.folder.root}: has {length} images for {world.size} ranks; take fewer ranks")
    batches = share_of_rank(length, world, BLOCK)
    own_images = sum(map(len, batches))
    loader = batch_loader(
        samples, batches, workers, world.device, timeout_minutes,
        ranks=world.local_size, batch_bytes=3 * BLOCK * samples.crop_size**2,
    )  # fmt: skip
    shares: dict[str, torch.Tensor] = {}
    world.copy_from_rank_0(model.buffers())
    done = 0
    for crops, labels in progress_bar(loader, desc="features", unit="batch"):
        images = len(labels)
        crops = filled_up(crops[:, 0].to(world.device, non_blocking=True))
        rows = slice(done, done + images)
        for name, view in views.items():
            with in_evaluation(model):
                vectors = view(crops)[:images]
            if name not in shares:
                shares[name] = torch.empty(own_images, vectors.shape[1], dtype=STORAGES[storage])
            shares[name][rows] = vectors.to("cpu", STORAGES[storage])
        done += images
    check_finite(shares, world, storage)
    labels = torch.from_numpy(samples.folder.labels).long()
    features = {}
    for name in views:
        vectors = collected(shares.pop(name), length, world)
        if world.rank == 0:
            features[name] = Features(vectors, labels)
    return features


def filled_up(images: torch.Tensor) -> torch.Tensor:
    """(B, …) -> (BLOCK, …), the further ones zero."""
    missing = BLOCK - len(images)
    if missing == 0:
        return images
    return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])


def check_finite(shares: dict[str, torch.Tensor], world: World, storage: str) -> None:
    bad = torch.zeros(1, dtype=torch.int64)
    for vectors in shares.values():
        for rows in vectors.split(ROWS_SENT):
            bad += (~rows.isfinite().all(1)).sum()
    world.sum(bad)
    if bad:
        remedy = "evaluate an earlier checkpoint"
        if storage == "float16":
            remedy = "set run.probe_storage=float32, or " + remedy
        raise UserError(f"probe: the features of {int(bad)} images are not finite; {remedy}")


def collected(share: torch.Tensor, total: int, world: World) -> torch.Tensor:
    """Rank 0: the rows of all ranks, (total, D), of which rank r has r, r + W, …; other ranks: their own."""
    if world.size == 1:
        return share
    rows_of_each = -(-total // world.size)
    rows = torch.empty(total if world.rank == 0 else 0, share.shape[1], dtype=share.dtype)
    for start in range(0, rows_of_each, ROWS_SENT):
        sent = torch.zeros(min(ROWS_SENT, rows_of_each - start), share.shape[1], dtype=share.dtype)
        own = share[start : start + len(sent)]
        sent[: len(own)] = own
        for rank, received in enumerate(world.tensors_on_rank_0(sent)):
            places = rows[rank + world.size * start :: world.size][: len(sent)]
            places.copy_(received[: len(places)])
    return rows if world.rank == 0 else share


def bytes_of_features(images: int, width: int, storage: str) -> int:
    return images * width * STORAGES[storage].itemsize
