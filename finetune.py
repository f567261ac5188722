"""Classification finetuning of a ResNet with BCE, and exact evaluation at chosen resize sizes.

    torchrun --standalone --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml \
        --weights runs/pretrain_resnet50/checkpoints/last.pt
    torchrun --standalone --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml --eval-only \
        --weights runs/finetune_resnet50_bce/checkpoints/last.pt --val-resize-size 234 235 236
    python finetune.py --eval-only --frequency-sweep --weights runs/finetune_resnet50_bce/checkpoints/last.pt
    python finetune.py --probe --weights runs/pretrain_resnet50/checkpoints/last.pt
    python finetune.py --help                                         # every knob
"""

import sys

from configs.schema import FinetuneConfig, PretrainConfig
from data.augment import augmentations, train_transform
from data.folder import ImageFolder
from data.identity import check_pixels, identity, shared_images_warning
from data.loader import StepBatches
from data.samples import TrainingSamples
from data.sampling import BatchPlan
from models.classifier import Classification
from models.trunk import Trunk, freeze, make_trunk
from models.weights import LoadedWeights, load_from_file, normalisation_warning
from utils.config import keys_given, parse_entry, to_dict, to_yaml
from utils.console import fitted
from utils.distributed import run_entry
from utils.errors import UserError
from utils.learning_rate_advice import unscaled_rate_warning
from utils.process import StopRequest
from utils.run.job import Job, make_state, open_job, with_resolved_choices
from utils.run.log import open_log
from utils.run.resume import begin_output, load_resume
from utils.scoring.checkpoint import evaluate_checkpoint
from utils.scoring.evaluation import EvaluationData, open_labelled_images
from utils.scoring.hook import Evaluation
from utils.scoring.probe import probe_checkpoint
from utils.seeding import keyed_torch
from utils.training.evaluation import results_table
from utils.training.hooks import SaveCheckpoint, StopOnBadNumbers, run_due, stop_on_request
from utils.training.schedule import LearningRate
from utils.training.step import training_step


def main(argv: list[str]) -> int:
    description = "Finetuning of a ResNet, and its evaluation."
    config = parse_entry(FinetuneConfig, argv, description, other_entry=("pretrain.py", PretrainConfig))
    given = keys_given(FinetuneConfig, argv)
    if config.run.eval_only:
        return evaluate_checkpoint(config, given)
    if config.run.probe:
        return probe_checkpoint(config, given)
    job = open_job(config)
    job.warn(unscaled_rate_warning(config, argv))

    # Data: which images there are, and which of them every step takes
    folder = open_labelled_images(config, job)
    check_pixels(folder, needs_detail=False)
    evaluation_data = EvaluationData.open(config, job, folder.classes, config.data.holdout_fraction)
    job.warn(shared_images_warning(folder, evaluation_data.val))
    data = {"train": identity(folder), **evaluation_data.identities()}
    job.check_files_agree(data, config.run.weights)
    plan = batch_plan(config, job, len(folder))
    config = with_resolved_choices(config, plan.images_per_device, job)

    # Model: the task says what is to be learned, the state is what a step changes
    task = Classification.from_config(config, folder.labels, len(folder.classes), job.world.device)
    trunk = initial_trunk(config, job, folder.classes)
    state = make_state(config, job, trunk.classifier, plan.steps_per_epoch)

    # Resume: go on where an earlier start of this run ended
    extra_state = {"config": to_dict(config), "images": len(folder), "classes": folder.classes, "data": data}
    start = load_resume(config, job, state, plan, extra_state)
    first_step = start.step
    if job.has_finished(first_step, plan.total_steps):
        job.say(f"{job.output}: finished already")
        return 0
    begin_output(config, job, state, extra_state, start)

    # Train: the loop, and what happens every so many steps
    log = open_log(
        config, job, plan, first_step, task="finetuning", model=state.model, classes=len(folder.classes),
        images={"train": len(folder), **evaluation_data.counts()}, source=folder.source,
    )  # fmt: skip
    evaluation = Evaluation(config, job, state, evaluation_data, log)
    stop_on_bad_numbers = StopOnBadNumbers(log, state, job, plan.images_of, before=(evaluation,))
    save_checkpoint = SaveCheckpoint(log, state, job, extra_state, before=(evaluation,))
    hooks = [stop_on_bad_numbers, log, save_checkpoint]  # the evaluation comes below, since signals end it at once
    batches = training_batches(config, job, task, folder, plan, first_step)
    rate = LearningRate(config.schedule, config.optimizer.learning_rate, plan.steps_per_epoch)
    run_due([evaluation], first_step)  # an earlier start may have ended during this evaluation
    with StopRequest() as stop:
        for step in range(first_step, plan.total_steps):
            batch = batches.next_step()
            metrics = training_step(state, step, rate.at(step), batch.micro_batches, task.loss)
            log.count(rate.at(step), metrics, batch.waited)
            stop_requested = log.exchange(step + 1, stop.requested, batch.notes)
            run_due(hooks, step + 1)
            if stop_requested:
                return stop_on_request(step + 1, stop_on_bad_numbers, save_checkpoint, log)
            if evaluation.due(step + 1):
                with stop.suspended():  # the step was saved just now, so a signal may end the evaluation at once
                    evaluation.run(step + 1)

    # Result
    rows = evaluation.result["results"]
    log.board.add_hparams(config, {"final/top1": rows[0]["top1"]}, plan.total_steps)
    log.say(results_table(rows))
    job.write_result("result.json", {
        "steps": plan.total_steps, "checkpoint": str(job.checkpoints.newest()),
        "data": {"train": folder.fingerprint(), "val": evaluation_data.val.fingerprint()},
        "train_images": {"used": len(folder), "found": folder.images_found}, **evaluation.result,
    })  # fmt: skip
    log.close()
    return 0


def batch_plan(config: FinetuneConfig, job: Job, images: int) -> BatchPlan:
    return BatchPlan.make(
        length=images, batch_size=config.train.batch_size, images_per_device=config.train.images_per_device,
        epochs=config.schedule.epochs, steps=config.schedule.steps, seed=config.run.seed,
        rank=job.world.rank, world_size=job.world.size, augmentation_repeats=config.data.augmentation_repeats,
    )  # fmt: skip


def initial_trunk(config: FinetuneConfig, job: Job, classes: list[str]) -> Trunk:
    """The network as training starts from it: the trunk of run.weights, if they are given, and a new head."""
    with keyed_torch(config.run.seed, "initialisation"):
        trunk = make_trunk(
            config.model.name, len(classes), drop_path=config.model.drop_path,
            zero_init_last_batch_norm=config.model.zero_init_last_batch_norm,
        )  # fmt: skip
    if config.run.weights and job.resume is None:
        loaded = load_from_file(
            trunk.classifier, config.model.name, config.run.weights, config.run.use_ema, job.world, classes
        )
        note_pretraining(config, job, loaded)
    freeze_if_asked(config, job, trunk)
    return trunk


def freeze_if_asked(config: FinetuneConfig, job: Job, trunk: Trunk) -> None:
    """Raises: UserError if a frozen trunk would have neither weights of a file nor those of a checkpoint to resume."""
    if not config.model.freeze_trunk:
        return
    if job.resume is None and not config.run.weights:
        raise UserError(
            "model.freeze_trunk = true: needs run.weights (--weights): a trunk that keeps its random weights, and "
            "BatchNorm statistics of no image, has no features worth a head"
        )
    freeze(trunk)


def note_pretraining(config: FinetuneConfig, job: Job, loaded: LoadedWeights) -> None:
    """Say what was loaded, and keep the config of its training, if that is known, beside config.yaml."""
    job.say(fitted(loaded.report))
    job.warn(normalisation_warning(loaded, config.data.mean, config.data.std))
    if loaded.config is None:
        return
    fraction = loaded.config["data"].get("holdout_fraction", 0)
    if fraction < config.data.holdout_fraction:
        job.say(
            f"warning: {config.run.weights} was trained with data.holdout_fraction {fraction}, so on images that this "
            f"run holds out ({config.data.holdout_fraction})"
        )
    if job.world.rank == 0:
        (job.output / "pretraining.yaml").write_text(to_yaml(loaded.config), encoding="utf-8")


def training_batches(
    config: FinetuneConfig, job: Job, task: Classification, folder: ImageFolder, plan: BatchPlan, first_step: int
) -> StepBatches:
    """This rank's micro-batches from the first step on: images (B, 3, S, S) uint8, class numbers (B,)."""
    options = config.data
    then = augmentations(
        rand_augment_ops=options.rand_augment_ops, rand_augment_style=options.rand_augment_style,
        rand_augment_magnitude=options.rand_augment_magnitude, rand_augment_bins=options.rand_augment_bins,
        rand_augment_noise=options.rand_augment_noise, rand_augment_probability=options.rand_augment_probability,
        auto_augment=options.auto_augment, random_erasing=options.random_erasing,
        interpolation=options.interpolation, mean=options.mean,
    )  # fmt: skip
    transform = train_transform(
        crop_size=options.train_crop_size, crop_ratio=options.crop_ratio, aspect_ratio=options.aspect_ratio,
        flip_probability=options.flip_probability, interpolation=options.interpolation, then=then,
    )  # fmt: skip
    skip_bad = options.on_bad_image == "skip"
    samples = TrainingSamples(folder, transform, config.run.seed, target_of=task.draw, skip_bad=skip_bad)
    return StepBatches.of_plan(
        samples, plan, first_step, workers=job.workers, device=job.world.device,
        timeout_minutes=config.run.timeout_minutes, ranks=job.world.local_size, image_size=config.data.train_crop_size,
    )  # fmt: skip


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
