"""Masked frequency pretraining of a ResNet (arXiv 2206.07706).

torchrun --standalone --nproc_per_node=8 pretrain.py --config configs/pretrain_resnet50.yaml
python pretrain.py --config configs/sample_pretrain.yaml          # one process
python pretrain.py --help                                         # every knob
"""

import os
import sys

import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from data.augment import train_transform
from data.folder import ImageFolder
from data.identity import check_pixels, identity
from data.loader import StepBatches
from data.parts import images_beside_train, training_root
from data.samples import TrainingSamples, fixed_images
from data.sampling import BatchPlan
from models.mfm import MaskedFrequencyModelling, network_from_config
from models.weights import load_from_file, normalisation_warning
from utils.config import parse_entry, to_dict
from utils.console import fitted
from utils.distributed import run_entry
from utils.errors import UserError
from utils.learning_rate_advice import unscaled_rate_warning
from utils.process import StopRequest
from utils.run.job import Job, make_state, open_job, with_resolved_choices
from utils.run.log import RunLog, open_log
from utils.run.resume import begin_output, load_resume
from utils.scoring.probe_hook import NeighbourProbe, images_to_probe
from utils.seeding import keyed_torch
from utils.training.hooks import Every, SaveCheckpoint, ShowReconstructions, StopOnBadNumbers, run_due, stop_on_request
from utils.training.schedule import LearningRate
from utils.training.step import training_step

PICTURES = 6  # images that the reconstructions in TensorBoard show


def main(argv: list[str]) -> int:
    description = "Masked frequency pretraining of a ResNet."
    config = parse_entry(PretrainConfig, argv, description, other_entry=("finetune.py", FinetuneConfig))
    job = open_job(config)
    job.warn(unscaled_rate_warning(config, argv))

    # Data: which images there are, and which of them every step takes
    folder = open_images(config, job)
    check_pixels(folder, needs_detail=True)
    data = {"train": identity(folder)}
    to_probe = images_to_probe(config, job, folder)
    job.check_files_agree(data if to_probe is None else data | {"val": identity(to_probe.val)}, config.run.weights)
    plan = batch_plan(config, job, len(folder))
    config = with_resolved_choices(config, plan.images_per_device, job)

    # Model: the task says what is to be learned, the state is what a step changes
    task = MaskedFrequencyModelling.from_config(config, job.world.device)
    network = initial_network(config, job)
    state = make_state(config, job, network, plan.steps_per_epoch)

    # Resume: go on where an earlier start of this run ended
    extra_state = {"config": to_dict(config), "images": len(folder), "data": data}
    start = load_resume(config, job, state, plan, extra_state)
    first_step = start.step
    if job.has_finished(first_step, plan.total_steps):
        job.say(f"{job.output}: finished already")
        return 0
    begin_output(config, job, state, extra_state, start)

    # Train: the loop, and what happens every so many steps
    log = open_log(
        config, job, plan, first_step, task="pretraining", model=state.model, images={"train": len(folder)},
        source=folder.source,
    )  # fmt: skip
    probes = []  # at most one
    if to_probe is not None:
        probes.append(NeighbourProbe(config, job, log, state.model, to_probe))
    stop_on_bad_numbers = StopOnBadNumbers(log, state, job, plan.images_of, before=tuple(probes))
    save_checkpoint = SaveCheckpoint(log, state, job, extra_state, before=tuple(probes))
    hooks = [stop_on_bad_numbers, log, save_checkpoint]
    if config.logging.pictures_every_steps is not None:
        hooks.append(show_reconstructions(config, job, log, task, state.model, folder))
    batches = training_batches(config, job, task, folder, plan, first_step)
    rate = LearningRate(config.schedule, config.optimizer.learning_rate, plan.steps_per_epoch)
    run_due(probes, first_step)  # an earlier start may have ended during this probe
    with StopRequest() as stop:
        for step in range(first_step, plan.total_steps):
            batch = batches.next_step()
            metrics = training_step(state, step, rate.at(step), batch.micro_batches, task.loss)
            log.count(rate.at(step), metrics, batch.waited)
            stop_requested = log.exchange(step + 1, stop.requested, batch.notes)
            run_due(hooks, step + 1)
            if stop_requested:
                return stop_on_request(step + 1, stop_on_bad_numbers, save_checkpoint, log)
            for probe in probes:
                if probe.due(step + 1):
                    with stop.suspended():  # the step was saved just now, so a signal may end the probe at once
                        probe.run(step + 1)

    # Result
    job.write_result("result.json", {
        "steps": plan.total_steps, "checkpoint": str(job.checkpoints.newest()),
        "data": {"train": folder.fingerprint()}, **log.last_line, "probes": [probe.result for probe in probes],
    })  # fmt: skip
    log.close()
    return 0


def open_images(config: PretrainConfig, job: Job) -> ImageFolder:
    """The images to train on, without classes."""
    folder = job.open_folder(lambda: ImageFolder(
        training_root(config.data.data_path), holdout_fraction=config.data.holdout_fraction,
        train_list=config.data.train_list, labelled=False,
    ))  # fmt: skip
    job.warn(images_beside_train(config.data.data_path, folder.source))
    return folder


def batch_plan(config: PretrainConfig, job: Job, images: int) -> BatchPlan:
    return BatchPlan.make(
        length=images, batch_size=config.train.batch_size, images_per_device=config.train.images_per_device,
        epochs=config.schedule.epochs, steps=config.schedule.steps, seed=config.run.seed,
        rank=job.world.rank, world_size=job.world.size,
    )  # fmt: skip


def initial_network(config: PretrainConfig, job: Job) -> nn.Sequential:
    """Trunk and decoder as training starts from them: random, or the weights of run.weights."""
    with keyed_torch(config.run.seed, "initialisation"):
        network = network_from_config(config)
    if config.run.weights and job.resume is None:
        loaded = load_from_file(network, config.model.name, config.run.weights, config.run.use_ema, job.world)
        job.say(fitted(loaded.report))
        job.warn(normalisation_warning(loaded, config.data.mean, config.data.std))
    return network


def training_batches(
    config: PretrainConfig, job: Job, task: MaskedFrequencyModelling, folder: ImageFolder, plan: BatchPlan,
    first_step: int,
) -> StepBatches:  # fmt: skip
    """This rank's micro-batches from the first step on: images (B, 3, S, S) uint8, choices (B,) of the task."""
    transform = train_transform(
        crop_size=config.data.train_crop_size, crop_ratio=config.data.crop_ratio,
        aspect_ratio=config.data.aspect_ratio, flip_probability=config.data.flip_probability,
        interpolation=config.data.interpolation,
    )  # fmt: skip
    skip_bad = config.data.on_bad_image == "skip"
    samples = TrainingSamples(folder, transform, config.run.seed, target_of=task.draw, skip_bad=skip_bad)
    return StepBatches.of_plan(
        samples, plan, first_step, workers=job.workers, device=job.world.device,
        timeout_minutes=config.run.timeout_minutes, ranks=job.world.local_size, image_size=config.data.train_crop_size,
    )  # fmt: skip


def show_reconstructions(
    config: PretrainConfig, job: Job, log: RunLog, task: MaskedFrequencyModelling, model: torch.nn.Module,
    folder: ImageFolder,
) -> ShowReconstructions:  # fmt: skip
    """The hook that shows a few images of val, or of train where val cannot be used."""
    images = torch.empty(0)
    if job.world.rank == 0:
        val = os.path.join(config.data.data_path, "val")
        if os.path.isdir(val):
            try:
                folder = ImageFolder(val, labelled=False)
            except UserError as error:
                log.say(f"warning: {error}; TensorBoard shows images of train instead")
        images = fixed_images(folder, PICTURES, config.data.train_crop_size, config.data.interpolation)
    every = Every(config.logging.pictures_every_steps, log.total_steps)
    return ShowReconstructions(every, task, model, images.to(job.world.device), task.corruption.radii, log)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
