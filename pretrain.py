"""Masked frequency pretraining of a ResNet (arXiv 2206.07706).

torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain_resnet50.yaml
python pretrain.py --config configs/sample_pretrain.yaml          # one process
python pretrain.py --help                                         # every knob
"""

import sys
from functools import partial
from pathlib import Path

from configs.schema import FREE_TO_CHANGE, PretrainConfig
from data.folder import ImageFolder
from data.frequency_filter import FrequencyFilter
from data.geometry import train_transform
from data.pixels import Normalizer, unit_float
from data.samples import TrainingSamples, batch_loader, filter_coin
from data.sampling import BatchPlan
from losses.frequency import MaskedFrequencyLoss, grayscale
from models.resnet import masked_frequency_model
from models.weights import start_from
from utils.config import parse_command_line, to_dict
from utils.distributed import run_entry
from utils.loop import STOPPED, train
from utils.run import Run, build_state, learning_rate_of, open_log, open_run, resolved, resume_state
from utils.seeding import keyed_torch


def main(argv: list[str]) -> int:
    config = parse_command_line(PretrainConfig, argv, "Masked frequency pretraining of a ResNet.")
    run = open_run(config)
    folder = ImageFolder(str(Path(config.data.data_path) / "train"), None, config.data.holdout_fraction)
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
    done = train(
        state, iter(batches), pretraining_loss(config, run.world.device),
        learning_rate_of(config, plan.steps_per_epoch), range(completed, plan.total_steps), plan,
        run, log, content,
    )  # fmt: skip
    log.close()
    if done < plan.total_steps:
        return STOPPED
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


def pretraining_loss(config: PretrainConfig, device):
    """The closure that the training step calls: a batch's whole way from uint8 to the loss."""
    normalize = Normalizer(config.data.mean, config.data.std, device)
    f, g = config.filter, config.loss
    frequency_filter = FrequencyFilter(f.radius, f.outer_radius, f.output, f.clamp)
    frequency_loss = MaskedFrequencyLoss(f.radius, f.outer_radius, g.gamma, g.eps, g.reduction, g.scope)
    target_of = grayscale if g.target == "gray" else lambda images: images

    def loss_of(model, _step, _turn, images, keep_low):
        """images (B, 3, H, W) uint8, keep_low (B,) bool -> scalar, sums and counts to log."""
        clean = normalize(unit_float(images))  # (B, 3, H, W) float32
        if f.order == "normalize_first":
            filtered = frequency_filter(clean, keep_low)
        else:
            filtered = normalize(frequency_filter(unit_float(images), keep_low))
        predicted = model(filtered)  # (B, C, H, W), C = 1 or 3
        errors, bins = frequency_loss.per_image(predicted, target_of(clean), keep_low)  # (B,), (B,)
        told = errors.detach()
        return frequency_loss.reduce(errors, bins), {
            "loss_low_pass": ((told * keep_low).sum(), keep_low.sum()),
            "loss_high_pass": ((told * ~keep_low).sum(), (~keep_low).sum()),
        }

    return loss_of


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
