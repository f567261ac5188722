"""What scripts/benchmark/benchmark.py runs side by side: this project's parts, and the public codes' recipes from their formulas.

A maker takes the settings and returns (task, work): `task()` does the work once, `work` says how much that is. The
public recipes are written out plainly, as their formulas read: the whole complex spectrum with shifts, one transform
for the prediction and one for the target; PIL transforms with float normalisation; float32 NCHW, the loss read each
step.
"""

import itertools
import shutil
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torchvision import transforms as pil_transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import InterpolationMode, v2

from configs.schema import PretrainConfig
from data.augment import train_transform
from data.decode import decode_image
from data.folder import ImageFolder
from data.index import cache_file
from data.samples import EvaluationSamples, TrainingSamples, collate, filter_coin
from losses.frequency import MaskedFrequencyLoss
from models.frequency_filter import FrequencyFilter
from models.trunk import masked_frequency_model
from pretrain import pretraining_loss
from utils.config import parse_command_line
from utils.distributed import World
from utils.precision import choose_precision, set_numerics
from utils.run.job import place
from utils.training.step import TrainingState, adamw, training_step

MEAN, STD, CROP_RATIO, ASPECT = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], (0.2, 1.0), (0.75, 4 / 3)
Task = tuple[Callable[[], object], int]


def in_rounds(images: int, load: Callable[[int], object], total: int, batch_of: Callable = collate) -> Task:
    """Load so many images more each time, round and round, as a batch, in one thread."""
    torch.set_num_threads(1)
    numbers = itertools.cycle(range(total))
    return lambda: batch_of([load(number) for number in itertools.islice(numbers, images)]), images


def our_input(s: dict) -> Task:
    folder = ImageFolder(s["data_path"])
    transform = train_transform(s["size"], CROP_RATIO, ASPECT, 0.5, s["interpolation"])
    samples = TrainingSamples(folder, transform, 0, partial(filter_coin, 0, 0.5))
    return in_rounds(s["images"], lambda number: samples[0, number], len(folder))


def pil_input(s: dict) -> Task:
    """Both public codes' CPU path: PIL decodes and resizes, then floats are made and normalised."""
    crop = pil_transforms.RandomResizedCrop(s["size"], CROP_RATIO, ASPECT, InterpolationMode(s["interpolation"]))
    rest = [pil_transforms.RandomHorizontalFlip(), pil_transforms.ToTensor(), pil_transforms.Normalize(MEAN, STD)]
    folder = TorchvisionFolder(s["data_path"], pil_transforms.Compose([crop, *rest]))
    return in_rounds(s["images"], folder.__getitem__, len(folder), default_collate)


def decoding_alone(s: dict) -> Task:
    folder = ImageFolder(s["data_path"])
    return in_rounds(s["images"], lambda number: decode_image(folder.path(number)) is None, len(folder), len)


def evaluation_input(s: dict) -> Task:
    folder = ImageFolder(s["data_path"])
    samples = EvaluationSamples(folder, tuple(s["resize_sizes"]), s["size"], s["interpolation"])
    return in_rounds(s["images"], samples.__getitem__, len(folder))


def pixel_difference(s: dict) -> dict[str, float]:
    """Of our crops and flips from those that PIL makes of the same files and draws: levels of 255; share above 2."""
    crop = (s["size"], CROP_RATIO, ASPECT, InterpolationMode(s["interpolation"]))
    theirs = v2.Compose([v2.RandomResizedCrop(*crop), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    ours = train_transform(s["size"], CROP_RATIO, ASPECT, 0.5, s["interpolation"])
    folder, differences = ImageFolder(s["data_path"]), []
    for number in range(min(len(folder), s["images"])):
        torch.manual_seed(number)
        one = ours(decode_image(folder.path(number)))
        torch.manual_seed(number)
        other = theirs(Image.open(folder.path(number)).convert("RGB"))
        differences.append((one.int() - other.int()).abs().byte())
    found = torch.stack(differences)
    means = {"mean": found.double().mean().item(), "share_above_2": (found > 2).double().mean().item()}
    return {"largest": found.max().item(), **means}


def half_batch(s: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of noise (B, 3, S, S) uint8 and coins (B,), every other image low-passed."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (s["batch"], 3, s["size"], s["size"]), dtype=torch.uint8, generator=draw)
    return images.to(s["device"]), (torch.arange(s["batch"]) % 2 == 0).to(s["device"])


def our_filter_loss(s: dict) -> Task:
    paper = s["recipe"] == "paper"
    frequency_filter = FrequencyFilter(16, None, "real", (0, 1)) if paper else FrequencyFilter(16, None, "abs")
    loss = MaskedFrequencyLoss(16, eps=1e-12, reduction="batch") if paper else MaskedFrequencyLoss(16)
    return filter_and_loss(s, frequency_filter, loss)


def full_spectrum_filter_loss(s: dict) -> Task:
    return filter_and_loss(s, *full_spectrum(s, half_batch(s)[1]))


def full_spectrum(s: dict, keep_low: torch.Tensor) -> tuple[Callable, Callable]:
    """Filter and loss of the paper's code or of public code A: a mask for each image, spectra in shifted order."""
    paper = s["recipe"] == "paper"
    u = torch.arange(s["size"], device=s["device"]) - s["size"] // 2
    low = (u[:, None] ** 2 + u**2 < 16**2)[None, None]
    mask = torch.where(keep_low[:, None, None, None], low, ~low).float()  # (B, 1, H, W)

    def spectrum(images):
        return torch.fft.fftshift(torch.fft.fft2(images, norm="ortho"), dim=(-2, -1))

    def frequency_filter(images, _keep_low):
        filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum(images) * mask, dim=(-2, -1)), norm="ortho")
        return filtered.real.clamp(0, 1) if paper else filtered.abs()

    def loss(predicted, target, _keep_low):
        one, other = (torch.view_as_real(spectrum(images)) for images in (predicted, target))
        distance = ((one - other).square().sum(-1) + (1e-12 if paper else 1e-7)).sqrt()
        removed = (1 - mask).expand_as(distance)
        if paper:
            return (distance * removed).sum() / removed.sum()
        return ((distance * removed).sum((-2, -1)) / removed.sum((-2, -1))).mean()

    return frequency_filter, loss


def filter_and_loss(s: dict, frequency_filter: Callable, loss: Callable) -> Task:
    images, keep_low = half_batch(s)
    clean = images.float() / 255
    target = clean if s["recipe"] == "paper" else clean.mean(1, keepdim=True)
    predicted = torch.rand_like(target).requires_grad_()

    times = max(1, 128 // s["batch"])  # a turn of some milliseconds would tell of the change of processes

    def task():
        for _ in range(times):
            frequency_filter(clean, keep_low)
            loss(predicted, target, keep_low).backward()
            predicted.grad = None

    return task, times * s["batch"]


def our_step(s: dict) -> Task:
    config = parse_command_line(PretrainConfig, ["--config", "configs/pretrain_resnet50.yaml"], "")
    device = torch.device(s["device"])
    dtype = choose_precision(s["precision"], device)
    set_numerics(dtype, None, False)
    model = place(masked_frequency_model(s["model"], 1), device, channels_last=True)
    state = TrainingState(model, adamw(model, 1e-4, (0.9, 0.95), 0.05, "all"), World(0, 1, 1, device), dtype, 3.0)
    loss_of, batch = pretraining_loss(config, device), half_batch(s)
    return lambda: training_step(state, 0, 1e-4, [batch], loss_of), s["batch"]


def full_spectrum_step(s: dict) -> Task:
    """Public code A's step by its recipe: NCHW, float32 on a CPU, float16 with a scaler on a GPU, the loss read."""
    model = masked_frequency_model(s["model"], 1).to(s["device"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.05)
    images, keep_low = half_batch(s)
    half = s["device"] != "cpu"
    scaler = torch.amp.GradScaler(s["device"], enabled=half)
    frequency_filter, frequency_loss = full_spectrum(s, keep_low)
    gray = torch.tensor([0.299, 0.587, 0.114], device=s["device"])[:, None, None]

    def task():
        clean = (images.float() / 255 - 0.4) / 0.2
        optimizer.zero_grad()
        with torch.autocast(s["device"], torch.float16, enabled=half):
            predicted = model(frequency_filter(clean, keep_low)).float()
        loss = frequency_loss(predicted, (clean * gray).sum(1, keepdim=True), keep_low)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return task, s["batch"]


def our_listing(s: dict) -> Task:
    def task():
        shutil.rmtree(cache_file(s["data_path"]).parent, ignore_errors=True)
        return len(ImageFolder(s["data_path"]))

    return task, s["files"]


def cached_listing(s: dict) -> Task:
    return lambda: len(ImageFolder(s["data_path"])), s["files"]


def torchvision_listing(s: dict) -> Task:
    return lambda: len(TorchvisionFolder(s["data_path"])), s["files"]
