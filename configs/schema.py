"""Every knob of pretraining and finetuning on one page: default, unit, meaning, allowed values.

A knob is `section.key` in a YAML and on the command line (`python pretrain.py optimizer.learning_rate=3e-4`).
Fields with a `flag` have a shorter spelling too. utils/config.py reads YAML into these classes and checks each value.
"""

import math
from dataclasses import dataclass, field, fields

Problems = list[tuple[str, str]]  # ("section.key", what is wrong and what is allowed)


def knob(
    default, meaning, unit="", *, low=None, high=None, above=None, choices=None, flag=None,
    affects="weights", compared=False,
):  # fmt: skip
    """One knob of a section.

    Args:
        meaning: what it does, for `--help` and for errors.
        low, high, above: inclusive bounds and an exclusive lower one, for each number of a tuple.
        choices: the values it may have.
        flag: a shorter spelling on the command line.
        affects: what changes with the knob. "weights": it belongs to the recipe, and a resumed run must keep it.
            "score": only the result of an evaluation. "nothing": where the run works and what it leaves behind.
        compared: whether it is a column of TensorBoard's HParams tab, where finetunings compare.
    """
    return field(default=default, metadata={
        "meaning": meaning, "unit": unit, "low": low, "high": high, "above": above, "choices": choices, "flag": flag,
        "affects": affects, "compared": compared,
    })  # fmt: skip


INTERPOLATIONS = ("bilinear", "bicubic")


# fmt: off
@dataclass(frozen=True)
class RunOptions:
    output_dir: str = knob("runs/unnamed", "folder for config, log, checkpoints and result",
                           flag="--output-dir", affects="nothing")
    weights: str | None = knob(None, "checkpoint to start from (weights only), or to evaluate",
                               flag="--weights", affects="nothing", compared=True)
    use_ema: bool = knob(False, "take the averaged weights (`ema`) of run.weights instead of `model`", affects="score")
    resume: str | None = knob(None, "checkpoint to continue, or `auto`: the newest in output_dir",
                              flag="--resume", affects="nothing")
    allow_config_change: bool = knob(False, "resume with another recipe",
                                     flag="--allow-config-change", affects="nothing")
    seed: int = knob(0, "seed of every random choice", low=0, high=2**63 - 1, compared=True)
    deterministic: bool = knob(False, "bit-identical reruns on CUDA too, at some cost in speed")
    device: str = knob("auto", "auto takes the rank's GPU if there is one",
                       choices=("auto", "cpu", "cuda"), affects="nothing")
    timeout_minutes: float = knob(30.0, "how long a rank waits for another before the job ends", "minutes",
                                  above=0, affects="nothing")


@dataclass(frozen=True)
class FinetuneRunOptions(RunOptions):
    eval_only: bool = knob(False, "evaluate run.weights and stop", flag="--eval-only", affects="nothing")
    frequency_sweep: bool = knob(False, "with eval_only: top-1 on low- and high-passed images too, over sweep_radii",
                                 flag="--frequency-sweep", affects="nothing")
    sweep_radii: tuple[float, ...] = knob(
        (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96),
        "cutoff radii of the frequency sweep (those beyond the crop's last bin are skipped)", "bins of the crop",
        above=0, affects="nothing")
    evaluate_every_epochs: int | None = knob(None, "evaluate after so many epochs; null: after the last one only",
                                             "epochs", low=1, affects="nothing")
    select_val_resize_size: bool = knob(
        False, "choose one of data.val_resize_size on held-out images, then evaluate val once at that size",
        flag="--select-val-resize-size", affects="score")


@dataclass(frozen=True)
class DataOptions:
    data_path: str = knob("imagenet", "folder with train/ and val/, one folder a class in each",
                          flag="--data-path", affects="nothing")
    train_crop_size: int = knob(224, "side of a training image", "pixels", low=8, high=4096, compared=True)
    crop_ratio: tuple[float, float] = knob(
        (0.2, 1.0), "smallest and largest share of the area in a random crop", above=0, high=1, flag="--crop-ratio")
    aspect_ratio: tuple[float, float] = knob((0.75, 4 / 3), "narrowest and widest crop", "width/height", above=0)
    interpolation: str = knob("bicubic", "resampling filter, always antialiased", choices=INTERPOLATIONS)
    holdout_fraction: float = knob(0.0, "share of train that a hash of the path sets apart, never trained on",
                                   low=0, high=0.9)
    flip_probability: float = knob(0.5, "chance of a horizontal flip", low=0, high=1)
    mean: tuple[float, float, float] = knob((0.485, 0.456, 0.406), "normalisation, channels in [0, 1]")
    std: tuple[float, float, float] = knob((0.229, 0.224, 0.225), "normalisation, channels in [0, 1]", above=0)
    workers: int | None = knob(None, "loader processes a rank; null: the cores a rank has",
                               low=0, high=256, affects="nothing")
    on_bad_image: str = knob("error", "skip: train on another image instead of an unreadable one, and log it",
                             choices=("error", "skip"), affects="nothing")
    max_bad_images_share: float = knob(0.01, "with skip: unreadable images of an epoch, above 20, that end the run",
                                       "share", low=0, high=1, affects="nothing")

    def problems(self) -> Problems:
        problems = ordered(self, "crop_ratio") + ordered(self, "aspect_ratio")
        if min(self.mean) < 0 or max(self.mean) > 1:
            problems.append(("mean", "must lie in [0, 1], as images do; divide a mean of 0–255 pixels by 255"))
        if max(self.std) > 1:
            problems.append(("std", "must be at most 1, as images lie in [0, 1]; divide one of 0–255 pixels by 255"))
        return problems


@dataclass(frozen=True)
class FinetuneDataOptions(DataOptions):
    train_crop_size: int = knob(160, "side of a training image", "pixels", low=8, high=4096, compared=True)
    crop_ratio: tuple[float, float] = knob(
        (0.08, 1.0), "smallest and largest share of the area in a random crop", above=0, high=1, flag="--crop-ratio")
    rand_augment_ops: int = knob(2, "RandAugment operations an image; 0 turns it off", low=0, high=16)
    rand_augment_magnitude: int = knob(6, "strength of each operation, below rand_augment_bins", low=0)
    rand_augment_bins: int = knob(10, "number of strengths; the last is the strongest", low=2)
    mixup_alpha: float = knob(0.1, "Beta parameter of mixup; 0 turns it off", low=0)
    cutmix_alpha: float = knob(1.0, "Beta parameter of cutmix; 0: off; with both, one of the two a batch", low=0)
    val_resize_size: tuple[int, ...] = knob(
        (235,), "short side before the centre crop; one result for each", "pixels",
        low=8, flag="--val-resize-size", affects="score")
    val_crop_size: int = knob(224, "side of the centre crop in evaluation", "pixels", low=8, affects="score")
    val_batch_size: int = knob(128, "images a rank evaluates at once", "images", low=1, affects="nothing")

    def problems(self) -> Problems:
        problems = super().problems()
        if min(self.val_resize_size) < self.val_crop_size:
            problems.append(("val_resize_size", f"must be at least data.val_crop_size = {self.val_crop_size} pixels"))
        if len(set(self.val_resize_size)) < len(self.val_resize_size):
            problems.append(("val_resize_size", "must not name a size twice"))
        if self.rand_augment_ops and self.rand_augment_magnitude >= self.rand_augment_bins:
            limit = f"must be below data.rand_augment_bins = {self.rand_augment_bins}"
            problems.append(("rand_augment_magnitude", limit))
        return problems


@dataclass(frozen=True)
class FilterOptions:
    radius: float = knob(16.0, "frequencies with u² + v² < radius² are low", "bins of the crop", above=0, high=4096)
    outer_radius: float | None = knob(None, "only the ring radius ≤ d < outer_radius is high", "bins", high=4096)
    low_pass_probability: float = knob(0.5, "chance that an image keeps its low frequencies", low=0, high=1)
    output: str = knob("real", "the filtered image, or its absolute value (CoinCheung/MFM)", choices=("real", "abs"))
    clamp: tuple[float, float] | None = knob(None, "limits of the filtered image, in the units it has there")
    order: str = knob("normalize_first", "filter after normalisation (CoinCheung/MFM), or before it (paper)",
                      choices=("normalize_first", "filter_first"))

    def problems(self) -> Problems:
        problems = ordered(self, "clamp") if self.clamp else []
        if self.outer_radius is not None and self.outer_radius <= self.radius:
            problems.append(("outer_radius", f"must be above filter.radius = {self.radius}"))
        return problems


@dataclass(frozen=True)
class FrequencyLossOptions:
    gamma: float = knob(1.0, "exponent of the spectral distance", above=0)
    eps: float = knob(1e-7, "added to the squared distance, so that its root has a gradient at 0", above=0)
    reduction: str = knob("image", "mean of each image (CoinCheung/MFM), or of pooled bins (paper)",
                          choices=("image", "batch"))
    scope: str = knob("removed", "bins that count", choices=("removed", "all"))
    target: str = knob("gray", "predict grey (CoinCheung/MFM) or colours (paper)", choices=("gray", "rgb"))


@dataclass(frozen=True)
class ClassificationLossOptions:
    name: str = knob("bce", "binary (per class) or softmax cross-entropy", choices=("bce", "ce"), compared=True)
    label_smoothing: float = knob(0.1, "taken from the true class, shared by the others", low=0, high=0.999)


@dataclass(frozen=True)
class ModelOptions:
    name: str = knob("resnet50", "the trunk, a torchvision ResNet: resnet18…152, resnext50_32x4d, wide_resnet50_2, …",
                     compared=True)
    zero_init_last_batch_norm: bool = knob(False, "each block's last BatchNorm starts at 0 instead of 1")
    sync_batch_norm: bool = knob(False, "BatchNorm statistics over all GPUs")
    channels_last: bool = knob(True, "NHWC memory layout, faster wherever convolutions use matrix units")


@dataclass(frozen=True)
class OptimizerOptions:
    name: str = knob("adamw", "AdamW, or SGD with Nesterov momentum", choices=("adamw", "sgd"), compared=True)
    learning_rate: float = knob(1.2e-3, "peak learning rate for this batch size (not scaled automatically)",
                                low=0, compared=True)
    betas: tuple[float, float] = knob((0.9, 0.999), "AdamW's beta1 and beta2", low=0, high=0.999999)
    momentum: float = knob(0.9, "SGD's Nesterov momentum", above=0, high=0.999999)
    weight_decay: float = knob(0.05, "AdamW's is decoupled, SGD's is part of the gradient", low=0, compared=True)
    weight_decay_on: str = knob("all", "all parameters (CoinCheung/MFM), or not 1-D ones (paper)",
                                choices=("all", "matrices"))
    clip_grad_norm: float | None = knob(None, "largest gradient norm of a step; null: any", above=0)
    ema_decay: float | None = knob(None, "average the weights with this decay a step", above=0, high=0.999999)


@dataclass(frozen=True)
class ScheduleOptions:
    epochs: int = knob(300, "passes over the training images", "epochs", low=1, flag="--epochs", compared=True)
    warmup_epochs: float = knob(20.0, "linear rise to the peak learning rate", "epochs", low=0)
    warmup_learning_rate: float = knob(1.2e-5, "where the rise starts", low=0)
    final_learning_rate: float = knob(0.0, "where the cosine ends", low=0)
    interval: str = knob("step", "the learning rate changes each step or each epoch", choices=("step", "epoch"))
    cosine_from: str = knob("warmup", "the cosine starts after the warm-up (CoinCheung/MFM), or at step 0 (paper)",
                            choices=("warmup", "start"))

    def problems(self) -> Problems:
        if self.warmup_epochs >= self.epochs:
            return [("warmup_epochs", f"must be below schedule.epochs = {self.epochs}")]
        return []


@dataclass(frozen=True)
class TrainOptions:
    batch_size: int = knob(2048, "images an optimizer step, over all ranks", "images",
                           low=1, flag="--batch-size", compared=True)
    images_per_device: int | None = knob(None, "images per forward pass on one device; null: batch_size / ranks",
                                         "images", low=1)
    precision: str = knob("auto", "auto: bfloat16 or float16 where the device is fast in it",
                          choices=("auto", "float32", "float16", "bfloat16"), compared=True)
    tf32: bool | None = knob(None, "TF32 matrix units for float32 work; null: on where bf16 or fp16 is used")


@dataclass(frozen=True)
class CheckpointOptions:
    every_steps: int | None = knob(None, "save after so many optimizer steps; null: by time alone", "steps",
                                   low=1, affects="nothing")
    every_minutes: float = knob(15.0, "save after so many minutes", "minutes", above=0, affects="nothing")
    keep: int = knob(3, "newest checkpoints kept", low=1, affects="nothing")
    on_save_error: str = knob(
        "stop", "if a checkpoint cannot be written: stop, or continue training (the last save must succeed)",
        choices=("stop", "continue"), affects="nothing")


@dataclass(frozen=True)
class LoggingOptions:
    every_steps: int = knob(50, "a line in log.jsonl, on the console and in TensorBoard", "steps",
                            low=1, affects="nothing")
    pictures_every_steps: int | None = knob(
        500, "pretraining: reconstructions, spectra and errors by frequency in TensorBoard, at the last step too; "
        "null: none", "steps", low=1, affects="nothing")

# fmt: on


@dataclass(frozen=True)
class PretrainConfig:
    """What `pretrain.py` takes."""

    run: RunOptions = RunOptions()
    data: DataOptions = DataOptions()
    filter: FilterOptions = FilterOptions()
    loss: FrequencyLossOptions = FrequencyLossOptions()
    model: ModelOptions = ModelOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    logging: LoggingOptions = LoggingOptions()

    def problems(self) -> Problems:
        problems = section_problems(self)
        size, radius, outer = self.data.train_crop_size, self.filter.radius, self.filter.outer_radius
        # With an outer radius the high side is the ring between the two, which may hold no bin at all.
        limit = math.inf if outer is None else outer**2
        half = size // 2
        if not any(radius**2 <= u * u + v * v < limit for u in range(half + 1) for v in range(u + 1)):
            farthest = f"at {size} pixels the farthest bin is at {math.sqrt(2) * half:.2f}"
            problems.append(("filter.radius", f"leaves no high frequency: {farthest}"))
        return problems


@dataclass(frozen=True)
class FinetuneConfig:
    """What `finetune.py` takes."""

    run: FinetuneRunOptions = FinetuneRunOptions()
    data: FinetuneDataOptions = FinetuneDataOptions()
    loss: ClassificationLossOptions = ClassificationLossOptions()
    model: ModelOptions = ModelOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    logging: LoggingOptions = LoggingOptions()

    def problems(self) -> Problems:
        problems = section_problems(self)
        if self.run.eval_only and not self.run.weights:
            problems.append(("run.eval_only", "needs run.weights (--weights): the finetuned checkpoint to evaluate"))
        if self.run.select_val_resize_size and not (self.data.holdout_fraction or self.run.eval_only):
            problems.append(("run.select_val_resize_size", "needs data.holdout_fraction above 0: images to choose on"))
        if self.run.frequency_sweep and not (self.run.eval_only and len(self.data.val_resize_size) == 1):
            problems.append(("run.frequency_sweep", "needs run.eval_only (--eval-only) and one data.val_resize_size"))
        if self.run.frequency_sweep and min(self.run.sweep_radii) ** 2 > 2 * (self.data.val_crop_size // 2) ** 2:
            problems.append(("run.sweep_radii", f"all lie beyond the last bin of {self.data.val_crop_size} pixels"))
        if self.run.frequency_sweep and self.run.select_val_resize_size:
            problems.append(("run.select_val_resize_size", "run.frequency_sweep takes one size; choose one of the two"))
        return problems


def section_problems(config: "PretrainConfig | FinetuneConfig") -> Problems:
    """The problems of every section that can have some, keys as `section.key`."""
    problems = []
    for section in fields(config):
        options = getattr(config, section.name)
        if hasattr(options, "problems"):
            problems += [(f"{section.name}.{key}", what) for key, what in options.problems()]
    return problems


def ordered(options: object, key: str) -> Problems:
    low, high = getattr(options, key)
    return [] if low <= high else [(key, f"must have the smaller number first: [{high}, {low}]")]
