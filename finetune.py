"""Classification finetuning of a ResNet with BCE, and exact evaluation at chosen resize sizes.

    torchrun --standalone --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml \
        --weights runs/pretrain_resnet50/checkpoints/last.pt
    torchrun --standalone --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml --eval-only \
        --weights runs/finetune_resnet50_bce/checkpoints/last.pt --val-resize-size 234 235 236
    python finetune.py --eval-only --frequency-sweep --weights runs/finetune_resnet50_bce/checkpoints/last.pt
    python finetune.py --help                                         # every knob
"""

import os
import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from data.augment import augmentations, train_transform
from data.folder import ImageFolder, check_labels
from data.identity import identity
from data.loader import StepBatches, batch_loader
from data.samples import EvaluationSamples, TrainingSamples
from data.sampling import BatchPlan
from models.classifier import Classification, FilteredViews, ResizedViews
from models.normalize import Normalizer
from models.trunk import make_trunk, trunk_children
from models.weights import LoadedWeights, load_from_file, load_weights, normalisation_warning, read_weights
from utils.config import parse_entry, to_dict, to_yaml
from utils.console import fitted
from utils.distributed import run_entry
from utils.errors import UserError, printable
from utils.figures import confusion_figure
from utils.pictures import sheet
from utils.process import StopRequest
from utils.run.job import Job, make_state, open_job, to_device, with_resolved_choices
from utils.run.log import RunLog, open_log
from utils.run.resume import begin_output, load_resume
from utils.seeding import keyed_torch
from utils.tables import markdown_cell, markdown_table
from utils.training.evaluation import Mistake, Mistakes, evaluate, results_table, share_of_rank
from utils.training.hooks import Every, SaveCheckpoint, StopOnBadNumbers, run_due, stop_on_request
from utils.training.schedule import LearningRate
from utils.training.step import TrainingState, training_step


def main(argv: list[str]) -> int:
    description = "Finetuning of a ResNet, and its evaluation."
    config = parse_entry(FinetuneConfig, argv, description, other_entry=("pretrain.py", PretrainConfig))
    if config.run.eval_only:
        return evaluate_checkpoint(config)
    job = open_job(config)

    # Data: which images there are, and which of them every step takes
    root = os.path.join(config.data.data_path, "train")
    folder = job.open_folder(lambda: ImageFolder(root, holdout_fraction=config.data.holdout_fraction))
    check_labels(folder)
    evaluation_data = EvaluationData.open(config, job, folder.classes, config.data.holdout_fraction)
    data = {"train": identity(folder), **evaluation_data.identities()}
    job.check_files_agree(data, config.run.weights)
    plan = BatchPlan.make(
        length=len(folder), batch_size=config.train.batch_size, images_per_device=config.train.images_per_device,
        epochs=config.schedule.epochs, seed=config.run.seed, rank=job.world.rank, world_size=job.world.size,
        augmentation_repeats=config.data.augmentation_repeats,
    )  # fmt: skip
    config = with_resolved_choices(config, plan.images_per_device, job.dtype)

    # Model: the task says what is to be learned, the state is what a step changes
    task = Classification.from_config(config, folder.labels, len(folder.classes), job.world.device)
    with keyed_torch(config.run.seed, "initialisation"):
        trunk = make_trunk(
            config.model.name, len(folder.classes), drop_path=config.model.drop_path,
            zero_init_last_batch_norm=config.model.zero_init_last_batch_norm,
        )  # fmt: skip
    if config.run.weights and job.resume is None:
        loaded = load_from_file(
            trunk.classifier, config.model.name, config.run.weights, config.run.use_ema, job.world, folder.classes
        )
        note_pretraining(config, job, loaded)
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
        images={"train": len(folder), **evaluation_data.counts()},
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
        "data": {"train": folder.fingerprint(), "val": evaluation_data.val.fingerprint()}, **evaluation.result,
    })  # fmt: skip
    log.close()
    return 0


def note_pretraining(config: FinetuneConfig, job: Job, loaded: LoadedWeights) -> None:
    """Say what was loaded, and keep the config of its training, if that is known, beside config.yaml."""
    job.say(fitted(loaded.report))
    if warning := normalisation_warning(loaded, config.data.mean, config.data.std):
        job.say(warning)
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
        timeout_minutes=config.run.timeout_minutes,
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluationData:
    """The images to evaluate on: val, and those of train to choose a resize size on, if one is to be chosen."""

    val: ImageFolder
    held_out: ImageFolder | None

    @classmethod
    def open(
        cls, config: FinetuneConfig, job: Job, classes: list[str] | None, holdout_fraction: float
    ) -> "EvaluationData":
        """Args: classes: None: in the order of val's folders. holdout_fraction: of the model's training."""
        held_out = None
        if config.run.select_val_resize_size:
            train = os.path.join(config.data.data_path, "train")
            held_out = job.world.in_turn(lambda: ImageFolder(train, classes, holdout_fraction, held_out=True))
        val = os.path.join(config.data.data_path, "val")
        return cls(job.open_folder(lambda: ImageFolder(val, classes)), held_out)

    def identities(self) -> dict[str, dict]:
        """Which images these are, for a comparison between ranks or with an earlier start."""
        identities = {"val": identity(self.val)}
        if self.held_out is not None:
            identities["held_out"] = identity(self.held_out)
        return identities

    def counts(self) -> dict[str, int]:
        """Images of each set."""
        counts = {"val": len(self.val)}
        if self.held_out is not None:
            counts["held out"] = len(self.held_out)
        return counts


class Evaluation:
    """The hook that evaluates the model, and its average if there is one, every so many epochs and at the end."""

    def __init__(self, config: FinetuneConfig, job: Job, state: TrainingState, data: EvaluationData, log: RunLog):
        self.config, self.job, self.data, self.log = config, job, data, log
        self.models = {"model": state.model}
        if state.average is not None:
            self.models["ema"] = state.average.module
        every_epochs = config.run.evaluate_every_epochs
        every_steps = None if every_epochs is None else every_epochs * log.steps_per_epoch
        self.every = Every(every_steps, log.total_steps)
        self.result: dict = {}  # the latest

    def due(self, step: int) -> bool:
        return self.every.due(step)

    def run(self, step: int) -> None:
        mistakes = Mistakes(len(self.data.val.classes), self.job.world)
        self.result = evaluate_models(self.config, self.job, self.models, self.data, mistakes)
        confusion, surest = mistakes.collected()
        rows = self.result["results"]
        with self.log.board.guard(step):
            show_mistakes(self.config, self.log, self.data.val, confusion, surest, rows[0]["val_resize_size"], step)
        self.log.evaluation(rows, step)


def evaluate_models(
    config: FinetuneConfig, job: Job, models: dict[str, nn.Module], data: EvaluationData,
    mistakes: Mistakes | None = None,
) -> dict:  # fmt: skip
    """For result.json: `results`, val's rows, and `val_resize_size` with how that was settled.

    Args:
        models: name -> model.
        mistakes: collects those of the first model on val, at the first size.
    """
    rows: list[dict] = []
    settled: dict = {"chosen": "given before"}
    if data.held_out is not None:
        settled = {"chosen": "on held-out images of train", "held_out": []}
    for name, model in models.items():
        at_size = config
        if data.held_out is not None:
            candidates = evaluate_model(config, job, model, data.held_out, name)
            settled["held_out"] += candidates
            # Most images right, then the lower loss.
            size = max(candidates, key=lambda row: (row["top1_count"], -row["loss"]))["val_resize_size"]
            job.say(f"{name}: val_resize_size {size} is best on {len(data.held_out)} held-out images")
            at_size = replace(config, data=replace(config.data, val_resize_size=(size,)))
        rows += evaluate_model(at_size, job, model, data.val, name, mistakes)
        mistakes = None
    return {"results": rows, "val_resize_size": settled}


def evaluate_model(
    config: FinetuneConfig, job: Job, model: nn.Module, folder: ImageFolder, weights: str,
    mistakes: Mistakes | None = None,
) -> list[dict]:  # fmt: skip
    """A row for each resize size, or each filter of the sweep; `weights` names what was evaluated."""
    options = config.data
    normalize = Normalizer(options.mean, options.std, job.world.device)
    if config.run.frequency_sweep:
        last_bin_squared = 2 * (options.val_crop_size // 2) ** 2
        radii = tuple(radius for radius in config.run.sweep_radii if radius**2 <= last_bin_squared)
        views = FilteredViews(normalize, radii)
    else:
        views = ResizedViews(normalize, options.val_resize_size)
    batches = batch_loader(
        EvaluationSamples(folder, options.val_resize_size, options.val_crop_size, options.interpolation),
        share_of_rank(len(folder), job.world, options.val_batch_size),
        workers=job.workers, device=job.world.device, timeout_minutes=config.run.timeout_minutes,
    )  # fmt: skip
    rows = evaluate(model, batches, views, len(folder), job.world, mistakes)
    return [{"weights": weights, **row} for row in rows]


def show_mistakes(
    config: FinetuneConfig, log: RunLog, folder: ImageFolder, confusion: torch.Tensor, surest: list[Mistake],
    resize_size: int, step: int,
) -> None:  # fmt: skip
    """To TensorBoard: the confusion matrix, and the wrong predictions of which the model was surest, with names."""
    if len(confusion):
        log.board.add_drawing("val/confusion_matrix", lambda: confusion_figure(confusion, folder.classes), step)
    if not surest or not log.board.active:
        return
    samples = EvaluationSamples(folder, (resize_size,), config.data.val_crop_size, config.data.interpolation)
    images, rows = [], []
    for number, mistake in enumerate(surest, start=1):
        images.append(samples[mistake.image][0])  # (1, 3, S, S)
        true, predicted = folder.classes[mistake.true], folder.classes[mistake.predicted]
        row = {"": number, "confidence": f"{mistake.confidence:.1%}", "true": markdown_cell(true)}
        rows.append(row | {"predicted": markdown_cell(predicted), "file": markdown_cell(folder.path(mistake.image))})
    log.board.add("image", "val/surest_mistakes", sheet(images), step)
    log.board.add("text", "val/surest_mistakes", markdown_table(rows), step)


def evaluate_checkpoint(config: FinetuneConfig) -> int:
    """--eval-only: model, classes and normalisation are the file's where it tells them, sizes the command line's."""
    path = config.run.weights
    job = open_job(config, writes_checkpoints=False)
    file = read_weights(path, config.model.name, config.run.use_ema, job.world)
    if file.config is not None and file.classes is None:
        raise UserError(
            f"{path}: not a finetuned checkpoint (it names no classes); finetune from it with --weights first"
        )
    if config.run.select_val_resize_size and not file.holdout_fraction:
        raise UserError(f"{path}: was trained on all of train (data.holdout_fraction 0): nothing to choose a size on")
    if file.mean is not None:
        config = replace(config, data=replace(config.data, mean=tuple(file.mean), std=tuple(file.std)))
    data = EvaluationData.open(config, job, file.classes, file.holdout_fraction)
    job.check_files_agree(data.identities(), path)
    name = printable(file.model_name or config.model.name)
    network = make_trunk(name, len(data.val.classes)).classifier
    account = load_weights(network, file.weights, path, trunk_children(name), whole=True)
    job.say(f"{path}: layout: {file.layout}; {account}")
    job.say(file.evaluated_with(data.val.classes, config.data.mean, config.data.std))
    network = to_device(network, job.world.device, config.model)
    result = evaluate_models(config, job, {"ema" if config.run.use_ema else "model": network}, data)
    job.say(results_table(result["results"]))
    file_name = "frequency_sweep.json" if config.run.frequency_sweep else "evaluation.json"
    source = {"checkpoint": path, "step": file.step, "val_crop_size": config.data.val_crop_size}
    job.write_result(file_name, {**source, **result})
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
