"""Classification finetuning of a ResNet with BCE, and exact evaluation at chosen resize sizes.

    torchrun --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml \
        --weights runs/pretrain_resnet50/checkpoints/last.pt
    torchrun --nproc_per_node=8 finetune.py --config configs/finetune_resnet50_bce.yaml --eval-only \
        --weights runs/finetune_resnet50_bce/checkpoints/last.pt --val-resize-size 234 235 236
    python finetune.py --eval-only --frequency-sweep --weights runs/finetune_resnet50_bce/checkpoints/last.pt
    python finetune.py --help                                         # every knob
"""

import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from configs.schema import COMPARED, FREE_TO_CHANGE, FinetuneConfig
from data.augment import train_transform
from data.folder import ImageFolder
from data.samples import EvaluationSamples, TrainingSamples, batch_loader, label
from data.sampling import BatchPlan
from losses.classification import ClassificationLoss
from models.frequency_filter import FrequencyFilter
from models.mixing import Mixing
from models.normalize import Normalizer, unit_float
from models.trunk import resnet
from models.weights import load_weights, start_from, weights_of
from utils.config import parse_command_line, to_dict, to_yaml
from utils.distributed import run_entry
from utils.errors import UserError
from utils.pictures import confusion_picture, sheet, short
from utils.process import EXIT_REQUEUE
from utils.run.checkpoint import read_checkpoint
from utils.run.job import (
    Run,
    build_state,
    comparable,
    learning_rate_of,
    open_log,
    open_run,
    place,
    resolved,
    resume_state,
)
from utils.run.log import RunLog
from utils.seeding import keyed_torch
from utils.training.evaluation import Mistakes, evaluate, share_of_rank, table
from utils.training.loop import train


def main(argv: list[str]) -> int:
    config = parse_command_line(FinetuneConfig, argv, "Finetuning of a ResNet, and its evaluation.")
    if config.run.eval_only:
        return evaluate_checkpoint(config)
    run = open_run(config)
    where, holdout = str(Path(config.data.data_path) / "train"), config.data.holdout_fraction
    folder = run.world.in_turn(lambda: ImageFolder(where, None, holdout))
    held_out = images_to_select_on(config, folder.classes, holdout)
    val_folder = run.world.in_turn(lambda: ImageFolder(str(Path(config.data.data_path) / "val"), folder.classes))
    t = config.train
    cut = (t.batch_size, t.images_per_device, config.schedule.epochs, config.run.seed, run.world.rank, run.world.size)
    plan = BatchPlan.make(len(folder), *cut)
    config = resolved(config, plan.images_per_device, run.dtype)

    with keyed_torch(config.run.seed, "initialisation"):
        model = resnet(config.model.name, len(folder.classes), config.model.zero_init_last_batch_norm)
    if config.run.weights and not run.resume:
        where = (config.model.name, config.run.weights, config.run.use_ema, run.world)
        note_pretraining(config, run, *start_from(model, *where, config.data.mean, config.data.std))
    state = build_state(config, run, model)
    content = {"config": to_dict(config), "images": len(folder), "classes": folder.classes}
    completed = resume_state(config, run, state, FREE_TO_CHANGE, content)

    log = open_log(config, run, completed, plan.total_steps, f"finetuning {config.model.name} on {len(folder)} images")
    batches = iter(training_batches(config, folder, plan, completed, run))
    for steps in evaluation_intervals(completed, plan, config.run.evaluate_every_epochs):
        done, stopped = train(
            state, batches, finetuning_loss(config, plan, len(folder.classes), run.world.device),
            learning_rate_of(config, plan.steps_per_epoch), steps, plan, run, log, content,
        )  # fmt: skip
        if stopped:
            return EXIT_REQUEUE
        mistakes = Mistakes(len(folder.classes), run.world)
        models = {"model": state.model} | ({"ema": state.average.module} if state.average else {})
        found = evaluate_models(config, run, models, val_folder, held_out, mistakes)
        collected, size = mistakes.collected(), found["results"][0]["val_resize_size"]
        with log.drawing(done):
            show_mistakes(config, log, val_folder, *collected, size, done)
        log.evaluation(found["results"], done)
    log.compare(comparable(config, COMPARED), {"final/top1": found["results"][0]["top1"]}, done)
    log.close()
    run.say(table(found["results"]))
    data = {"train": folder.fingerprint(), "val": val_folder.fingerprint()}
    run.write_result("result.json", {"steps": done, "checkpoint": str(run.checkpoints.newest()), "data": data, **found})
    return 0


def note_pretraining(config: FinetuneConfig, run: Run, told: str, pretraining: dict | None) -> None:
    """Tell of the weights, and keep the config of their training (None: unknown) beside config.yaml."""
    run.say(told)
    fraction = pretraining["data"].get("holdout_fraction", 0) if pretraining else 0
    if pretraining and fraction < config.data.holdout_fraction:
        run.say(
            f"warning: {config.run.weights} was trained with data.holdout_fraction {fraction}, so on images that this "
            f"run holds out ({config.data.holdout_fraction})"
        )
    if run.world.rank == 0 and pretraining:
        run.output.mkdir(parents=True, exist_ok=True)
        (run.output / "pretraining.yaml").write_text(to_yaml(pretraining), encoding="utf-8")


def evaluation_intervals(completed: int, plan: BatchPlan, every_epochs: int | None) -> list[range]:
    """The steps still to take, cut where an evaluation is due, as it is now if we stand at a cut."""
    interval = plan.total_steps if every_epochs is None else every_epochs * plan.steps_per_epoch
    ends = [end for end in (*range(interval, plan.total_steps, interval), plan.total_steps) if end >= completed]
    return [range(start, end) for start, end in zip([completed, *ends], ends, strict=False)]


def training_batches(config: FinetuneConfig, folder: ImageFolder, plan: BatchPlan, completed: int, run: Run):
    """This rank's micro-batches from the first step not yet taken: images (B, 3, S, S) uint8, class numbers (B,)."""
    d = config.data
    augment = (d.rand_augment_ops, d.rand_augment_magnitude, d.rand_augment_bins)
    transform = train_transform(
        d.train_crop_size, d.crop_ratio, d.aspect_ratio, d.flip_probability, d.interpolation, augment
    )
    samples = TrainingSamples(folder, transform, config.run.seed, partial(label, folder), d.on_bad_image == "skip")
    return batch_loader(samples, plan.micro_batches(completed), *run.loading)


def finetuning_loss(config: FinetuneConfig, plan: BatchPlan, num_classes: int, device):
    """The closure that the training step calls: a batch's whole way from uint8 to the loss."""
    normalize = Normalizer(config.data.mean, config.data.std, device)
    mixing = Mixing(config.data.mixup_alpha, config.data.cutmix_alpha, num_classes)
    classification_loss = ClassificationLoss(config.loss.name, config.loss.label_smoothing)

    def loss_of(model, step, turn, images, labels):
        """images (B, 3, H, W) uint8, labels (B,) int64 -> scalar, nothing further to log."""
        clean = normalize(unit_float(images))  # (B, 3, H, W) float32
        with keyed_torch(config.run.seed, "mixing", step, plan.micro_batch_number(turn)):
            mixed, targets = mixing(clean, labels)  # (B, 3, H, W), (B, K)
        logits = model(mixed)  # (B, K)
        return classification_loss(logits, targets), {}

    return loss_of


def images_to_select_on(config: FinetuneConfig, classes: list[str], holdout: float) -> ImageFolder | None:
    root = str(Path(config.data.data_path) / "train")
    return ImageFolder(root, classes, holdout, held_out=True) if config.run.select_val_resize_size else None


def evaluate_models(
    config: FinetuneConfig, run: Run, models: dict, val_folder: ImageFolder, held_out, mistakes: Mistakes | None = None
) -> dict:
    """For result.json: `results`, val's rows, and `val_resize_size` with how that was settled.

    Args:
        models: name -> model.
        held_out: the ImageFolder on which to choose a resize size (most images right, then the lower loss), or None.
        mistakes: is told of the first model on val, at the first size.
    """
    rows, scores = [], []
    for name, model in models.items():
        if held_out is not None:
            tried = evaluate_model(config, run, model, held_out, name)
            best = max(tried, key=lambda row: (row["top1_count"], -row["loss"]))["val_resize_size"]
            run.say(f"{name}: val_resize_size {best} is best on {len(held_out)} held-out images")
            scores += tried
        sizes = config.data.val_resize_size if held_out is None else (best,)
        chosen = replace(config, data=replace(config.data, val_resize_size=sizes))
        rows += evaluate_model(chosen, run, model, val_folder, name, mistakes if not rows else None)
    how = {"chosen": "given before"} if held_out is None else {"chosen": "on held-out images of train"}
    return {"results": rows, "val_resize_size": how | ({"held_out": scores} if scores else {})}


def evaluate_model(
    config: FinetuneConfig, run: Run, model, folder: ImageFolder, weights: str, mistakes: Mistakes | None = None
) -> list[dict]:
    """A row for each resize size, or each filter of the sweep; `weights` names what was evaluated."""
    d = config.data
    samples = EvaluationSamples(folder, d.val_resize_size, d.val_crop_size, d.interpolation)
    mine = share_of_rank(len(folder), run.world, d.val_batch_size)
    batches = batch_loader(samples, mine, *run.loading)
    normalize = Normalizer(d.mean, d.std, run.world.device)

    def sizes(crops):
        """(B, sizes, 3, S, S) uint8 -> (B, 3, S, S) float32 for each size."""
        return (normalize(unit_float(images)) for images in crops.unbind(1))

    views, names = sizes, [{"val_resize_size": size} for size in d.val_resize_size]
    if config.run.frequency_sweep:
        radii = [radius for radius in config.run.sweep_radii if radius**2 <= 2 * (d.val_crop_size // 2) ** 2]
        filters = [(None, "all"), *((radius, kind) for kind in ("low_pass", "high_pass") for radius in radii)]
        views = partial(filtered_views, sizes, filters)
        names = [{"kind": kind, "radius": radius} for radius, kind in filters]
    rows = evaluate(model, batches, views, names, len(folder), run.world, mistakes)
    return [{"weights": weights, **row} for row in rows]


def filtered_views(sizes, filters: list[tuple[float | None, str]], crops: torch.Tensor):
    """The one size's images, filtered after normalisation, on their device, in each of several ways, and not clipped.

    The filter is linear: low-passed, they are what filtering the pixels gives. High-passed, they have lost frequency 0,
    their mean, and stand around data.mean, not black. Clipping would bring removed frequencies back.
    """
    (clean,) = sizes(crops)
    for radius, kind in filters:
        keep_low = torch.full((len(clean),), kind == "low_pass", device=clean.device)
        yield FrequencyFilter(radius)(clean, keep_low) if radius else clean


def show_mistakes(
    config: FinetuneConfig, log: RunLog, folder: ImageFolder, confusion, surest: list, resize_size: int, step: int
) -> None:
    """To TensorBoard, from rank 0: the confusion matrix, and the wrong images of which the model was surest."""
    if len(confusion):
        log.show("image", {"val/confusion_matrix": confusion_picture(confusion, folder.classes)}, step)
    if not surest:
        return
    d, pictures = config.data, {}
    samples = EvaluationSamples(folder, (resize_size,), d.val_crop_size, d.interpolation)
    lines = ["| | confidence | true | predicted | file |", "|---|---|---|---|---|"]
    for n, (confidence, image, *classes) in enumerate(surest, start=1):
        names = [folder.classes[number] for number in classes]
        pictures[f"{n} {short(names[0], 8)} as {short(names[1], 8)}"] = samples[image][0]
        # Neither Markdown nor HTML may be read into a name: what is no letter becomes a character reference.
        cells = [re.sub(r"[^A-Za-z0-9 .-]", lambda c: f"&#{ord(c[0])};", name) for name in (*names, folder.path(image))]
        lines.append(f"| {n} | {confidence:.1%} | {' | '.join(cells)} |")
    log.show("image", {"val/surest_mistakes": sheet(pictures)}, step)
    log.show("text", {"val/surest_mistakes": "\n".join(lines)}, step)


def evaluate_checkpoint(config: FinetuneConfig) -> int:
    """--eval-only: model, class order and normalisation are the checkpoint's, sizes the command line's."""
    path = config.run.weights
    saved = read_checkpoint(path)
    if not {"model", "config", "step", "classes"} <= saved.keys():
        raise UserError(
            f"{path}: not a finetuned checkpoint (it names no classes); finetune from it with --weights first"
        )
    trained = saved["config"]["data"]
    holdout = trained.get("holdout_fraction", 0.0)
    if config.run.select_val_resize_size and not holdout:
        raise UserError(f"{path}: was trained on all of train (data.holdout_fraction 0): nothing to choose a size on")
    data = replace(config.data, mean=tuple(trained["mean"]), std=tuple(trained["std"]))
    config = replace(config, data=data)
    run = open_run(config, writes_checkpoints=False)
    folder = run.world.in_turn(lambda: ImageFolder(str(Path(config.data.data_path) / "val"), saved["classes"]))
    held_out = run.world.in_turn(lambda: images_to_select_on(config, saved["classes"], holdout))
    model = resnet(saved["config"]["model"]["name"], len(saved["classes"]))
    run.say(load_weights(model, weights_of(saved, path, config.run.use_ema)[1], path))
    model = place(model, run.world.device, config.model.channels_last)
    found = evaluate_models(config, run, {"ema" if config.run.use_ema else "model": model}, folder, held_out)
    run.say(table(found["results"]))
    name = "frequency_sweep.json" if config.run.frequency_sweep else "evaluation.json"
    run.write_result(name, {"checkpoint": path, "step": saved["step"], "val_crop_size": data.val_crop_size, **found})
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
