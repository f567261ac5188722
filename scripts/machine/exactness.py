"""Whether a device computes what it should: filter and loss beside a float64 formula, steps beside the CPU's."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from configs.schema import PretrainConfig
from models.mfm import MaskedFrequencyModelling
from scripts.machine.rows import Row, at_most
from scripts.machine.workload import Training, Workload, config_of, made_batch, named_tensors
from utils.distributed import World
from utils.precision import choose_precision, exact_float32, set_tf32, without_algorithm_search

NUMBERS = "filter and loss"
STEPS = "training steps"
RECIPES = ("pretrain_resnet50", "pretrain_resnet50_paper")
# float32 on a CPU is off by 1e-6 here (loss and gradient by less); TF32, with its 10 bits, by 4e-4.
FILTER_LIMIT, LOSS_LIMIT, GRADIENT_LIMIT = 2e-5, 1e-5, 1e-4
TF32_REMEDY = (
    "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and NVIDIA_TF32_OVERRIDE, which some containers set; if it is not that, "
    "do not train on this device"
)
# A CPU computes the other side, so they are small. In a deeper network each BatchNorm enlarges the rounding: with a
# ResNet-50 at this size two orders of the same sums are 0.3 of AdamW's way apart after three steps.
STEP_MODEL, STEP_PIXELS, STEP_IMAGES = "resnet18", 64, 8
STEP_COUNT, ACCUMULATION = 3, 2
CLIP = 0.5  # below the norms that come up, so that every step is clipped
# Two memory layouts on a CPU differ by 2e-4 in the gradient norms, by 2e-4 of the way that the weights go by SGD, and
# by 1e-3 of it by AdamW. AdamW's first updates have the learning rate's size, whatever the gradient's: where that is
# itself rounding, they go one way or the other. A wrong clip, average or accumulation makes 0.1 and more.
LOSS_OF_STEPS_LIMITS = {"sgd": 2e-3, "adamw": 1e-2}
WAY_LIMITS = {"sgd": 5e-3, "adamw": 0.1}


@contextlib.contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Inside, TF32 is on for convolutions, and autocast where a training has it: filter and loss must not mind.

    Float32 matrix products stay as torch has them, as in a training. The filter is such products, so where something
    turned TF32 on for them, its rows fail.
    """
    before = torch.backends.cudnn.allow_tf32
    dtype = choose_precision("auto", device)
    set_tf32(True)
    try:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        set_tf32(before)


def filter_and_loss_rows(work: Workload) -> list[Row]:
    """Filter, loss and the loss's gradient, as the two recipes have them, beside the formula in float64 on the CPU."""
    rows = []
    for recipe in RECIPES:
        config = config_of(work, recipe=recipe)
        images, keep_low = made_batch(work.few_images, work.pixels, torch.device("cpu"), 0)
        channels = 1 if config.loss.target == "gray" else 3
        predicted = made_batch(len(images), work.pixels, torch.device("cpu"), 1)[0][:, :channels].double() / 128 - 1
        expected = formula(config, images, keep_low, predicted)
        with as_in_training(work.device):
            measured = on_device(config, images, keep_low, predicted, work.device)
        errors = [relative_error(value, truth) for value, truth in zip(measured, expected, strict=True)]
        rows += [
            at_most(NUMBERS, f"filtered images, {recipe}: largest error", errors[0], FILTER_LIMIT, TF32_REMEDY),
            at_most(NUMBERS, f"loss, {recipe}: relative error", errors[1], LOSS_LIMIT, TF32_REMEDY),
            at_most(NUMBERS, f"its gradient, {recipe}: relative error", errors[2], GRADIENT_LIMIT, TF32_REMEDY),
        ]
    return rows


Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # filtered images (B, 3, S, S), loss, its gradient


def on_device(
    config: PretrainConfig, images: torch.Tensor, keep_low: torch.Tensor, predicted: torch.Tensor, device: torch.device
) -> Numbers:
    """What this project computes; on the CPU again."""
    task = MaskedFrequencyModelling.from_config(config, device)
    clean, filtered, removed = task.corrupt(images.to(device), keep_low.to(device))
    leaf = predicted.float().to(device).requires_grad_()
    loss = task.frequency_loss(leaf, task.target(clean), removed)
    loss.backward()
    return filtered.cpu(), loss.detach().cpu(), leaf.grad.cpu()


def formula(config: PretrainConfig, images: torch.Tensor, keep_low: torch.Tensor, predicted: torch.Tensor) -> Numbers:
    """The same from the formulas (arXiv 2206.07706, section 3), with whole spectra in float64 and torch's autograd."""
    size = images.shape[-1]
    frequencies = torch.fft.fftfreq(size, dtype=torch.float64) * size
    low = frequencies[:, None] ** 2 + frequencies**2 < config.filter.radius**2  # (S, S)
    kept = torch.where(keep_low[:, None, None], low, ~low)[:, None]  # (B, 1, S, S)
    mean = torch.tensor(config.data.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(config.data.std, dtype=torch.float64)[:, None, None]
    pixels = images.double() / 255
    clean = (pixels - mean) / std
    filter_first = config.filter.order == "filter_first"
    filtered = torch.fft.ifft2(torch.fft.fft2(pixels if filter_first else clean) * kept).real
    if config.filter.output == "abs":
        filtered = filtered.abs()
    if config.filter.clamp is not None:
        filtered = filtered.clamp(*config.filter.clamp)
    if filter_first:
        filtered = (filtered - mean) / std
    target = clean
    if config.loss.target == "gray":
        target = (clean * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(1, keepdim=True)
    leaf = predicted.clone().requires_grad_()
    difference = torch.fft.fft2(leaf - target, norm="ortho")
    distance = (difference.real**2 + difference.imag**2 + config.loss.eps) ** (config.loss.gamma / 2)
    removed = (~kept).double().expand_as(distance)
    if config.loss.reduction == "image":
        loss = ((distance * removed).sum((2, 3)) / removed.sum((2, 3))).mean()
    else:
        loss = (distance * removed).sum() / removed.sum()
    loss.backward()
    return filtered, loss.detach(), leaf.grad


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest error as a share of the largest true value."""
    return ((value.double() - truth).abs().max() / truth.abs().max()).item()


def training_step_rows(work: Workload) -> list[Row]:
    """Three steps in float32, clipped and accumulated, with an average of the weights, beside the CPU's."""
    rows = []
    cpu = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    small = replace(work, model=STEP_MODEL, pixels=STEP_PIXELS, images=STEP_IMAGES)
    for optimizer, limit in WAY_LIMITS.items():
        settings = {
            "train.precision": "float32",
            "optimizer.name": optimizer,
            "optimizer.clip_grad_norm": CLIP,
            "optimizer.ema_decay": 0.5,
            "train.batch_size": ACCUMULATION * small.images,
        }
        with exact_float32(), without_algorithm_search():
            expected = steps_taken(small, settings | {"model.channels_last": False}, cpu)
            measured = steps_taken(small, settings, work.alone)
        what = f"{STEP_COUNT} steps of {optimizer} beside the CPU's"
        remedy = "compare with another device of this kind; if it is not the device alone, report it with the JSON file"
        losses = relative_error(measured["losses"], expected["losses"])
        rows.append(
            at_most(STEPS, f"{what}: losses and gradient norms", losses, LOSS_OF_STEPS_LIMITS[optimizer], remedy)
        )
        for part in ("model", "ema"):
            error = error_of_way(measured, expected, part)
            rows.append(at_most(STEPS, f"{what}: error of {part} over the way it went", error, limit, remedy))
    return rows


Steps = dict[str, torch.Tensor]  # "losses" (2 · steps,), and "before" and "after" of model and average as one line


def steps_taken(work: Workload, settings: dict, world: World) -> Steps:
    training = Training.start(work, config_of(work, settings), world, ACCUMULATION)
    steps = {"before": weights_of(training, "model")}
    numbers = []
    for step in range(STEP_COUNT):
        metrics = training.step(step)
        loss, count = metrics["loss"]
        numbers += [(loss / count).item(), metrics["grad_norm"][0].item()]
    steps["losses"] = torch.tensor(numbers, dtype=torch.float64)
    for part in ("model", "ema"):
        steps[part] = weights_of(training, part)
    return steps


def weights_of(training: Training, part: str) -> torch.Tensor:
    """Every weight of the model or the average in one line, float64 on the CPU."""
    average = training.state.average
    network = training.state.model if part == "model" else average.module
    tensors = named_tensors(dict(network.named_parameters())).values()
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def error_of_way(measured: Steps, expected: Steps, part: str) -> float:
    """The distance of the weights from those expected, as a share of the way that these went."""
    way = (expected[part] - expected["before"]).norm()
    return ((measured[part] - expected[part]).norm() / way).item()
