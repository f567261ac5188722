"""Masked frequency pretraining of a ResNet (arXiv 2206.07706).

torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain_resnet50.yaml
python pretrain.py --config configs/sample_pretrain.yaml          # one process
python pretrain.py --help                                         # every knob
"""

import contextlib
import sys
from functools import partial
from pathlib import Path

import torch

from configs.schema import FREE_TO_CHANGE, PretrainConfig
from data.augment import train_transform
from data.folder import ImageFolder
from data.samples import TrainingSamples, batch_loader, filter_coin, fixed_images
from data.sampling import BatchPlan
from losses.frequency import MaskedFrequencyLoss, grayscale
from models.frequency_filter import FrequencyFilter
from models.normalize import Normalizer, unit_float
from models.trunk import masked_frequency_model
from models.weights import start_from
from utils.config import parse_command_line, to_dict
from utils.distributed import run_entry
from utils.errors import UserError
from utils.pictures import combined, curves, eight_bit, log_magnitude, radial_error, sheet
from utils.process import EXIT_REQUEUE
from utils.run.job import Run, build_state, learning_rate_of, open_log, open_run, resolved, resume_state
from utils.run.log import RunLog
from utils.seeding import keyed_torch
from utils.spectrum import kept_when_low
from utils.training.evaluation import in_evaluation
from utils.training.loop import train


def main(argv: list[str]) -> int:
    config = parse_command_line(PretrainConfig, argv, "Masked frequency pretraining of a ResNet.")
    run = open_run(config)
    where, holdout = str(Path(config.data.data_path) / "train"), config.data.holdout_fraction
    folder = run.world.in_turn(lambda: ImageFolder(where, None, holdout))
    t = config.train
    cut = (t.batch_size, t.images_per_device, config.schedule.epochs, config.run.seed, run.world.rank, run.world.size)
    plan = BatchPlan.make(len(folder), *cut)
    config = resolved(config, plan.images_per_device, run.dtype)

    with keyed_torch(config.run.seed, "initialisation"):
        channels = 1 if config.loss.target == "gray" else 3
        model = masked_frequency_model(config.model.name, channels, config.model.zero_init_last_batch_norm)
    if config.run.weights and not run.resume:
        run.say(start_from(model, config.model.name, config.run.weights, config.run.use_ema, run.world)[0])
    state = build_state(config, run, model)
    content = {"config": to_dict(config), "images": len(folder)}
    completed = resume_state(config, run, state, FREE_TO_CHANGE, content)
    if completed == plan.total_steps and (run.output / "result.json").is_file():
        run.say(f"{run.output}: finished already")
        return 0

    log = open_log(config, run, completed, plan.total_steps, f"pretraining {config.model.name} on {len(folder)} images")
    batches = training_batches(config, folder, plan, completed, run)
    done, _ = train(
        state, iter(batches), pretraining_loss(config, run.world.device),
        learning_rate_of(config, plan.steps_per_epoch), range(completed, plan.total_steps), plan,
        run, log, content, pictures_of(config, run, log, state.model, folder, plan.total_steps),
    )  # fmt: skip
    log.close()
    if done < plan.total_steps:
        return EXIT_REQUEUE
    data = {"train": folder.fingerprint()}
    found = {"steps": done, "checkpoint": str(run.checkpoints.newest()), "data": data, **log.last_line}
    run.write_result("result.json", found)
    return 0


def training_batches(config: PretrainConfig, folder: ImageFolder, plan: BatchPlan, completed: int, run: Run):
    """This rank's micro-batches from the first step not yet taken: images (B, 3, S, S) uint8, keep_low (B,) bool."""
    d = config.data
    transform = train_transform(d.train_crop_size, d.crop_ratio, d.aspect_ratio, d.flip_probability, d.interpolation)
    coin = partial(filter_coin, config.run.seed, config.filter.low_pass_probability)
    samples = TrainingSamples(folder, transform, config.run.seed, coin, d.on_bad_image == "skip")
    return batch_loader(samples, plan.micro_batches(completed), *run.loading)


def network_input(config: PretrainConfig, device):
    """A closure: images (B, 3, H, W) uint8, keep_low (B,) bool -> them normalised, and what the network sees."""
    normalize, f = Normalizer(config.data.mean, config.data.std, device), config.filter
    frequency_filter = FrequencyFilter(f.radius, f.outer_radius, f.output, f.clamp)

    def see(images, keep_low):
        clean = normalize(unit_float(images))  # (B, 3, H, W) float32
        if f.order == "normalize_first":
            return clean, frequency_filter(clean, keep_low)
        return clean, normalize(frequency_filter(unit_float(images), keep_low))

    return see


def loss_target(config: PretrainConfig):
    return grayscale if config.loss.target == "gray" else lambda images: images


def pretraining_loss(config: PretrainConfig, device):
    """The closure that the training step calls: a batch's whole way from uint8 to the loss."""
    see, target_of = network_input(config, device), loss_target(config)
    f, g = config.filter, config.loss
    frequency_loss = MaskedFrequencyLoss(f.radius, f.outer_radius, g.gamma, g.eps, g.reduction, g.scope)

    def loss_of(model, _step, _turn, images, keep_low):
        """images (B, 3, H, W) uint8, keep_low (B,) bool -> scalar, sums and counts to log."""
        clean, filtered = see(images, keep_low)  # (B, 3, H, W) float32
        predicted = model(filtered)  # (B, C, H, W), C = 1 or 3
        errors, bins = frequency_loss.per_image(predicted, target_of(clean), keep_low)  # (B,), (B,)
        told = errors.detach()
        return frequency_loss.reduce(errors, bins), {
            "loss_low_pass": ((told * keep_low).sum(), keep_low.sum()),
            "loss_high_pass": ((told * ~keep_low).sum(), (~keep_low).sum()),
        }

    return loss_of


@torch.no_grad()
def reconstruct(config: PretrainConfig, model, images: torch.Tensor) -> tuple[dict, dict]:
    """What the model, in evaluation mode, makes of images (B, 3, H, W) uint8 without either side's frequencies.

    Returns, for "low_pass" and "high_pass" inputs: pictures original, filtered, prediction, combined, (B, 3 or 1, H, W)
    in [0, 1], not clipped (grey is true where data.std is alike for all channels); and the prediction's `radial_error`.
    """
    device, f = images.device, config.filter
    normalize = Normalizer(config.data.mean, config.data.std, device)
    see, target_of = network_input(config, device), loss_target(config)
    mean, std = (target_of(constant[None]) for constant in (normalize.mean, normalize.std))
    low = kept_when_low(*images.shape[-2:], f.radius, f.outer_radius, device)
    pictures, errors = {}, {}
    for name, kept in (("low_pass", low), ("high_pass", ~low)):
        clean, filtered = see(images, torch.full((len(images),), name == "low_pass", device=device))
        with in_evaluation(model):
            predicted, target = model(filtered), target_of(clean)
        # Without frequency 0 an image filtered in [0, 1] is around 0, that is, black; a normalised one around the mean.
        lift = normalize.mean if name == "high_pass" and f.order == "filter_first" else 0
        pictures[name] = {
            "original": unit_float(images), "filtered": normalize.undo(filtered) + lift,
            "prediction": predicted * std + mean, "combined": combined(target, predicted, kept) * std + mean,
        }  # fmt: skip
        errors[name] = radial_error(predicted, target)
    return pictures, errors


def pictures_of(config: PretrainConfig, run: Run, log: RunLog, model, folder: ImageFolder, total_steps: int):
    """The closure for the loop: where it is due, rank 0 shows what the model makes of the same few images.

    They are of val, or of train if there is none. Nothing that training uses is changed, no random number drawn.
    """
    every, d = config.logging.pictures_every_steps, config.data
    if run.world.rank != 0 or every is None:
        return lambda done: None
    with contextlib.suppress(UserError):
        folder = ImageFolder(str(Path(d.data_path) / "val"))
    images = fixed_images(folder, 6, d.train_crop_size, d.interpolation).to(run.world.device)

    def show(done):
        if not len(images) or (done % every and done != total_steps):
            return
        with log.drawing(done):
            draw(done)

    def draw(done):
        pictures, errors = reconstruct(config, model, images)
        for name, columns in pictures.items():
            for tag, shade in (("reconstruction", eight_bit), ("log_magnitude", log_magnitude)):
                drawn = {title: shade(column) for title, column in columns.items()}
                log.show("image", {f"pictures/{tag}_{name}": sheet(drawn)}, done)
        for kind, title in (
            ("error", "mean |error|"),
            ("relative", "mean |error| / mean |target|: 1 is predicting nothing"),
        ):
            lines = {f"{name} input": error[kind] for name, error in errors.items()}
            log.show("image", {f"pictures/radial_{kind}": curves(lines, title, config.filter.radius)}, done)
            log.show("tensor", {f"radial_error/{kind}/{name}": error[kind] for name, error in errors.items()}, done)

    return show


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
