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
    deterministic: bool = knob(False, "bit-identical reruns on CUDA too: algorithms without atomic sums in cuDNN, "
                               "cuBLAS and NCCL, at some cost in speed")
    device: str = knob("auto", "auto takes the rank's GPU if there is one",
                       choices=("auto", "cpu", "cuda"), affects="nothing")
    timeout_minutes: float = knob(30.0, "how long a rank waits for another before the job ends", "minutes",
                                  above=0, affects="nothing")
    probe_storage: str = knob("float32", "how probes keep the features of all images in memory",
                              choices=("float32", "float16"), affects="score")


@dataclass(frozen=True)
class PretrainRunOptions(RunOptions):
    probe_every_epochs: int | None = knob(
        None, "after so many epochs, and at the end: top-1 on val of the 20 nearest neighbours in train (it needs "
        "classes; no weight is trained on them); null: off", "epochs", low=1, affects="nothing")


@dataclass(frozen=True)
class FinetuneRunOptions(RunOptions):
    eval_only: bool = knob(False, "evaluate run.weights and stop", flag="--eval-only", affects="nothing")
    probe: bool = knob(
        False, "score frozen features of run.weights and stop: neighbours, a linear probe, 8×8 pixels as the anchor; "
        "neighbours flatter contrastive methods (MAE: kNN 11, finetuned 81)", flag="--probe", affects="nothing")
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
    data_path: str = knob("imagenet", "folder with train/<class>/ and val/<class>/; pretraining takes any folder",
                          flag="--data-path", affects="nothing")
    train_crop_size: int = knob(224, "side of a training image", "pixels", low=8, high=4096, compared=True)
    crop_ratio: tuple[float, float] = knob(
        (0.2, 1.0), "smallest and largest share of the area in a random crop", above=0, high=1, flag="--crop-ratio")
    aspect_ratio: tuple[float, float] = knob((0.75, 4 / 3), "narrowest and widest crop", "width/height", above=0)
    interpolation: str = knob("bicubic", "resampling filter, always antialiased", choices=INTERPOLATIONS)
    holdout_fraction: float = knob(0.0, "share of train that a hash of the path sets apart, never trained on",
                                   low=0, high=0.9)
    train_list: str | None = knob(None, "text file that names the images of train to use, one per line: ant/1.jpg, or "
                                  "a file name alone as in SimCLR's lists; null: all")
    flip_probability: float = knob(0.5, "chance of a horizontal flip", low=0, high=1)
    mean: tuple[float, float, float] = knob((0.485, 0.456, 0.406), "normalisation, channels in [0, 1]")
    std: tuple[float, float, float] = knob((0.229, 0.224, 0.225), "normalisation, channels in [0, 1]", above=0)
    workers: int | None = knob(None, "loader processes per rank; null: as many as the rank has cores",
                               low=0, high=256, affects="nothing")
    on_bad_image: str = knob("error", "skip: train on another image instead of an unreadable one, and log it",
                             choices=("error", "skip"), affects="nothing")
    max_bad_images_share: float = knob(
        0.01, "with skip: the run ends if more than this share of an epoch's images is unreadable (20 images, or half "
        "of a smaller set, are always allowed)", "share", low=0, high=1, affects="nothing")

    def problems(self) -> Problems:
        problems = ordered(self, "crop_ratio") + ordered(self, "aspect_ratio")
        if min(self.mean) < 0 or max(self.mean) > 1:
            problems.append(("mean", "must lie in [0, 1], as images do; divide a mean of 0–255 pixels by 255"))
        if min(self.std) < 0.02:
            problems.append(("std", "must be at least 0.02: images lie in [0, 1] already, and need no factor of 1/255"))
        if max(self.std) > 1:
            problems.append(("std", "must be at most 1, as images lie in [0, 1]; divide one of 0–255 pixels by 255"))
        return problems


@dataclass(frozen=True)
class FinetuneDataOptions(DataOptions):
    train_crop_size: int = knob(160, "side of a training image", "pixels", low=8, high=4096, compared=True)
    crop_ratio: tuple[float, float] = knob(
        (0.08, 1.0), "smallest and largest share of the area in a random crop", above=0, high=1, flag="--crop-ratio")
    label_fraction: float = knob(
        1.0, "share of the images of each class to train on, at least one; a smaller share is part of a larger one",
        above=0, high=1, compared=True)
    rand_augment_ops: int = knob(2, "RandAugment operations per image; 0 turns it off", low=0, high=16)
    rand_augment_style: str = knob(
        "torchvision", "14 operations of one strength (CoinCheung/MFM), or timm's 15 of random strength (RSB)",
        choices=("torchvision", "timm"))
    rand_augment_magnitude: int = knob(
        6, "strength of each operation, below rand_augment_bins; timm's style: mean strength, 0 to 10", low=0)
    rand_augment_bins: int = knob(10, "torchvision's style: number of strengths; the last is the strongest", low=2)
    rand_augment_noise: float = knob(0.5, "timm's style: standard deviation of the strength (timm's mstd)", low=0)
    rand_augment_probability: float = knob(0.5, "timm's style: chance of each operation to be applied", low=0, high=1)
    auto_augment: str | None = knob(None, "torchvision's, in place of RandAugment (rand_augment_ops 0); null: none",
                                    choices=("trivial_augment_wide", "augmix", "auto_augment"))
    random_erasing: float = knob(0.0, "chance that a rectangle takes the colour data.mean; 0: off", low=0, high=1)
    augmentation_repeats: int = knob(
        1, "times in a row that an epoch takes an image, augmented anew; it sees a share 1 / repeats of them", low=1)
    mixup_alpha: float = knob(0.1, "Beta parameter of mixup; 0 turns it off", low=0)
    cutmix_alpha: float = knob(1.0, "Beta parameter of cutmix; 0: off; with both, one of the two per batch", low=0)
    val_resize_size: tuple[int, ...] = knob(
        (235,), "short side before the centre crop; one result for each", "pixels",
        low=8, flag="--val-resize-size", affects="score")
    val_crop_size: int = knob(224, "side of the centre crop in evaluation", "pixels", low=8, affects="score")
    val_batch_size: int = knob(128, "images per rank in one evaluation batch", "images", low=1, affects="nothing")
    classes: str = knob("all", "with eval_only: val has all classes of the model, or is scored over those present",
                        choices=("all", "present"), affects="score")
    class_names: str | None = knob(
        None, "with eval_only: the outputs' names in their order, a file with one per line or a folder of class "
        "folders; null: the checkpoint's", affects="score")

    def problems(self) -> Problems:
        problems = super().problems()
        if len(set(self.val_resize_size)) < len(self.val_resize_size):
            problems.append(("val_resize_size", "must not name a size twice"))
        if self.label_fraction < 1 < self.label_fraction + self.holdout_fraction:
            limit = f"must be at most 1 − data.holdout_fraction = {1 - self.holdout_fraction:g}, or 1: all others"
            problems.append(("label_fraction", limit))
        return problems + self.rand_augment_problems()

    def rand_augment_problems(self) -> Problems:
        if self.rand_augment_ops == 0:
            return []
        if self.auto_augment is not None:
            return [("auto_augment", f"not with data.rand_augment_ops = {self.rand_augment_ops}; set one to 0 or null")]
        if self.rand_augment_style == "timm":
            if self.rand_augment_magnitude > 10:
                return [("rand_augment_magnitude", "must be at most 10 with data.rand_augment_style = timm")]
        elif self.rand_augment_magnitude >= self.rand_augment_bins:
            limit = f"must be below data.rand_augment_bins = {self.rand_augment_bins}"
            return [("rand_augment_magnitude", limit)]
        return []


@dataclass(frozen=True)
class CorruptionOptions:
    name: str = knob("frequency", "the method's own filter (section filter), or one of the paper's baselines, which "
                     "work on pixels (filter.order=filter_first) and need loss.scope=all",
                     choices=("frequency", "super_resolution", "blur", "noise"))
    downscale: int = knob(8, "of super_resolution: the factor", low=2, high=256)
    blur_sizes: tuple[int, int] = knob((7, 21), "of blur: smallest and largest side, odd; one is drawn for each image",
                                       "pixels", low=1, high=255)
    blur_sigma: float = knob(5.0, "of blur: standard deviation of the Gaussian", "pixels", above=0)
    noise_std: float = knob(75.0, "of noise: standard deviation", "levels of 255", above=0, high=255)

    def problems(self) -> Problems:
        problems = ordered(self, "blur_sizes")
        if any(size % 2 == 0 for size in self.blur_sizes):
            problems.append(("blur_sizes", "must be odd numbers"))
        return problems


@dataclass(frozen=True)
class FilterOptions:
    mask: str = knob("disk", "low frequencies are those within radius, or the share largest ones of each image (FOLK)",
                     choices=("disk", "magnitude"))
    radius: float | tuple[float, float] = knob(
        16.0, "frequencies with u² + v² < radius² are low; [smallest, largest]: drawn for each image",
        "bins of the crop", above=0, high=4096)
    outer_radius: float | None = knob(None, "only the ring radius ≤ d < outer_radius is high", "bins", high=4096)
    share: float = knob(0.05, "of mask=magnitude: share of all frequencies that is called low", above=0, high=0.999)
    low_pass_probability: float = knob(0.5, "chance that an image keeps its low frequencies", low=0, high=1)
    output: str = knob("real", "the filtered image, or its absolute value (CoinCheung/MFM)", choices=("real", "abs"))
    clamp: tuple[float, float] | None = knob(None, "limits of the filtered image, in the units it has there")
    order: str = knob("normalize_first", "filter after normalisation (CoinCheung/MFM), or before it (paper)",
                      choices=("normalize_first", "filter_first"))

    def problems(self) -> Problems:
        problems = ordered(self, "clamp") if self.clamp else []
        if isinstance(self.radius, tuple):
            problems += ordered(self, "radius")
        if self.outer_radius is not None and self.outer_radius <= self.largest_radius:
            problems.append(("outer_radius", f"must be above filter.radius = {self.largest_radius}"))
        return problems

    @property
    def largest_radius(self) -> float:
        return max(self.radius) if isinstance(self.radius, tuple) else self.radius


@dataclass(frozen=True)
class FrequencyLossOptions:
    gamma: float = knob(1.0, "exponent of the spectral distance", above=0)
    eps: float = knob(1e-7, "added to the squared distance, so that its root has a gradient at 0", above=0)
    reduction: str = knob("image", "mean of each image (CoinCheung/MFM), or of pooled bins (paper)",
                          choices=("image", "batch"))
    scope: str = knob("removed", "bins that count", choices=("removed", "all"))
    outer_radius: float | None = knob(None, "frequencies at this distance or beyond do not count", "bins of the crop",
                                      above=0, high=4096)
    focal_alpha: float | None = knob(None, "focal weight: a bin's distance to this power, over the largest one, "
                                     "multiplies its loss; null: off (so in all published recipes)", above=0)
    focal_log: bool = knob(False, "focal weight: take ln(1 + weight) first")
    focal_maximum: str = knob("image", "focal weight: the largest one of each image and channel, or of the batch",
                              choices=("image", "batch"))
    patch_factor: int = knob(1, "with scope=all: spectra of patch_factor × patch_factor tiles", low=1, high=1024)
    average_spectrum: bool = knob(False, "with scope=all: compare the batch's average spectra")
    target: str = knob("gray", "predict grey (CoinCheung/MFM) or colours (paper)", choices=("gray", "rgb"))

    def problems(self) -> Problems:
        needs_all = []
        if self.patch_factor > 1:
            needs_all.append("patch_factor")
        if self.average_spectrum:
            needs_all.append("average_spectrum")
        if self.scope == "all":
            return []
        return [(key, "needs loss.scope = all: a mask belongs to the spectrum of one whole image") for key in needs_all]


@dataclass(frozen=True)
class ClassificationLossOptions:
    name: str = knob("bce", "binary (per class) or softmax cross-entropy", choices=("bce", "ce"), compared=True)
    label_smoothing: float = knob(0.1, "taken from the true class, shared by the others", low=0, high=0.999)
    multi_label: bool = knob(False, "bce: smoothed targets above 0.2 become 1, all others 0 (RSB: both of a mixed one)")

    def problems(self) -> Problems:
        if self.multi_label and (self.name != "bce" or self.label_smoothing > 0.2):
            return [("multi_label", "needs loss.name = bce, and loss.label_smoothing of at most 0.2, its threshold")]
        return []


@dataclass(frozen=True)
class ModelOptions:
    name: str = knob("resnet50", "the trunk, a torchvision ResNet: resnet18…152, resnext50_32x4d, wide_resnet50_2, …",
                     compared=True)
    zero_init_last_batch_norm: bool = knob(False, "each block's last BatchNorm starts at 0 instead of 1")
    drop_path: float = knob(
        0.0, "chance that an image skips the last residual block; linear from 0 in the first one", low=0, high=0.99)
    sync_batch_norm: bool = knob(False, "BatchNorm statistics over all GPUs")
    channels_last: bool | None = knob(
        None, "NHWC memory layout; null: on for a CPU, and for a GPU in bf16 and fp16; off for a GPU in float32, and "
        "so in its evaluations")


@dataclass(frozen=True)
class FinetuneModelOptions(ModelOptions):
    freeze_trunk: bool = knob(False, "train the head alone: the trunk keeps its weights and BatchNorm its statistics")

    def problems(self) -> Problems:
        if not self.freeze_trunk:
            return []
        problems = []
        if self.drop_path > 0:
            problems.append(("drop_path", "must be 0 with model.freeze_trunk, whose blocks work as in evaluation"))
        if self.sync_batch_norm:
            problems.append(("sync_batch_norm", "must be false with model.freeze_trunk: no statistics are taken"))
        return problems


@dataclass(frozen=True)
class OptimizerOptions:
    name: str = knob("adamw", "AdamW, SGD with momentum, or LAMB (RSB)", choices=("adamw", "sgd", "lamb"),
                     compared=True)
    learning_rate: float = knob(1.2e-3, "peak learning rate for this batch size (not scaled automatically)",
                                low=0, compared=True)
    betas: tuple[float, float] = knob((0.9, 0.999), "AdamW's and LAMB's beta1 and beta2", low=0, high=0.999999)
    momentum: float = knob(0.9, "SGD's momentum", above=0, high=0.999999)
    nesterov: bool = knob(True, "SGD looks ahead along its momentum (Nesterov)")
    weight_decay: float = knob(
        0.05, "AdamW's is decoupled, SGD's is part of the gradient, LAMB's of the step before it is scaled",
        low=0, compared=True)
    weight_decay_on: str = knob("all", "all parameters (CoinCheung/MFM), or not 1-D ones (paper)",
                                choices=("all", "matrices"))
    clip_grad_norm: float | None = knob(
        None, "largest gradient norm of a step; null: any, but LAMB itself clips to 1", above=0)
    ema_decay: float | None = knob(None, "average the weights with this decay per update; null: no average", above=0,
                                   high=0.999999)
    ema_every_steps: int = knob(
        1, "update the average after the first step of an epoch and every so many steps of it (CoinCheung/MFM: 32)",
        "steps", low=1)
    ema_buffers: str = knob("copied", "the average's BatchNorm statistics: the latest, or averaged (CoinCheung/MFM)",
                            choices=("copied", "averaged"))
    ema_restart_in_warmup: bool = knob(
        False, "until the first update after the warm-up, set the average to the weights (CoinCheung/MFM)")


@dataclass(frozen=True)
class FinetuneOptimizerOptions(OptimizerOptions):
    layer_decay: float | None = knob(
        None, "factor of the learning rate from a group of layers to the one below it; the head has the whole rate "
        "(SparK: 0.7 for a ResNet-50); null: all layers have it", above=0, high=1, compared=True)


@dataclass(frozen=True)
class ScheduleOptions:
    epochs: int = knob(300, "passes over the training images", "epochs", low=1, flag="--epochs", compared=True)
    steps: int | None = knob(
        None, "length of the training, for any number of images, in place of epochs; epochs is then the unit alone: "
        "warm-up, milestones and whatever else is given in epochs keep their share of it", "steps",
        low=1, compared=True)
    warmup_epochs: float = knob(20.0, "linear rise to the peak learning rate", "epochs", low=0)
    warmup_learning_rate: float = knob(1.2e-5, "where the rise starts", low=0)
    shape: str = knob("cosine", "what follows the warm-up: a cosine, or steps down to decay_rate times the rate",
                      choices=("cosine", "step", "multistep"))
    final_learning_rate: float = knob(0.0, "where the cosine ends", low=0)
    interval: str = knob("step", "the learning rate changes each step or each epoch", choices=("step", "epoch"))
    delay_steps: int = knob(0, "1: each step has the rate of the step before it (the authors' code)", "steps",
                            low=0, high=1)
    cosine_from: str = knob("warmup", "the cosine starts after the warm-up (CoinCheung/MFM), or at step 0 (paper)",
                            choices=("warmup", "start"))
    decay_epochs: int = knob(30, "of shape step: epochs between two steps down", "epochs", low=1)
    milestones: tuple[int, ...] = knob((60, 80), "of shape multistep: a step down after so many epochs", "epochs",
                                       low=1)
    decay_rate: float = knob(0.1, "of shapes step and multistep: factor of a step down", above=0, high=1)

    def problems(self) -> Problems:
        problems = []
        limit = f"must be below schedule.epochs = {self.epochs}"
        if self.warmup_epochs >= self.epochs:
            problems.append(("warmup_epochs", limit))
        if self.shape == "step" and self.decay_epochs >= self.epochs:
            problems.append(("decay_epochs", limit))
        if self.shape == "multistep" and max(self.milestones) >= self.epochs:
            problems.append(("milestones", limit))
        return problems


@dataclass(frozen=True)
class TrainOptions:
    batch_size: int = knob(2048, "images per optimizer step, over all ranks", "images",
                           low=1, flag="--batch-size", compared=True)
    images_per_device: int | None = knob(
        None, "most images per forward pass on one device: the largest number up to it that divides "
        "batch_size / ranks; null: all of them", "images", low=1)
    precision: str = knob("auto", "auto: bfloat16 or float16 where the device is fast in it",
                          choices=("auto", "float32", "float16", "bfloat16"), compared=True)
    tf32: bool | None = knob(None, "TF32 matrix units for float32 convolutions; null: on with bf16 or fp16")
    compile: str | None = knob(
        None, "backend of torch.compile: inductor makes faster code, the others find faults; null: not compiled",
        choices=("inductor", "aot_eager", "eager"))


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

    run: PretrainRunOptions = PretrainRunOptions()
    data: DataOptions = DataOptions()
    corruption: CorruptionOptions = CorruptionOptions()
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
        size = self.data.train_crop_size
        if size % self.loss.patch_factor:
            problems.append(("loss.patch_factor", f"must divide data.train_crop_size = {size}"))
        if self.corruption.name == "frequency":
            return problems + self.clamp_problems() + self.filter_problems()
        if self.filter.order != "filter_first":
            problems.append(
                ("filter.order", f"must be filter_first: corruption.name = {self.corruption.name} is for pixels")
            )
        if self.loss.scope != "all":
            problems.append(
                ("loss.scope", f"must be all: corruption.name = {self.corruption.name} removes no frequency")
            )
        if self.corruption.name == "super_resolution" and self.corruption.downscale > size:
            problems.append(("corruption.downscale", f"must be at most data.train_crop_size = {size}"))
        if self.corruption.name == "blur" and max(self.corruption.blur_sizes) // 2 >= size:
            problems.append(("corruption.blur_sizes", f"must be below twice data.train_crop_size = {size}"))
        return problems

    def clamp_problems(self) -> Problems:
        """Whether the limits leave the network more than one value to see."""
        if self.filter.clamp is None:
            return []
        low, high = self.filter.clamp
        if low > high:
            return []  # said already
        darkest, brightest = 0.0, 1.0
        if self.filter.order == "normalize_first":
            darkest = min(-mean / std for mean, std in zip(self.data.mean, self.data.std, strict=True))
            brightest = max((1 - mean) / std for mean, std in zip(self.data.mean, self.data.std, strict=True))
        if low < high and low < brightest and high > darkest:
            return []
        return [("filter.clamp", f"leaves one value: images lie in [{darkest:.3g}, {brightest:.3g}] there")]

    def filter_problems(self) -> Problems:
        """Whether both sides of the spectrum have a frequency, and the loss a frequency to count."""
        size, outer, counted = self.data.train_crop_size, self.filter.outer_radius, self.loss.outer_radius
        if self.filter.mask == "magnitude":
            if 0 < round(self.filter.share * size**2) < size**2:
                return []
            return [("filter.share", f"leaves an empty side of the {size**2} frequencies of a crop")]
        radius = self.filter.largest_radius
        # With an outer radius the high side is the ring between the two, which may hold no bin at all.
        if outer is not None and outer <= radius:
            return []  # said already
        if not has_bin_between(radius, math.inf if outer is None else outer, size):
            farthest = f"at {size} pixels the farthest bin is at {math.sqrt(2) * (size // 2):.2f}"
            return [("filter.radius", f"leaves no high frequency: {farthest}")]
        if self.loss.scope == "removed" and counted is not None and not has_bin_between(radius, counted, size):
            return [("loss.outer_radius", f"leaves no frequency from filter.radius = {radius} on to count")]
        return []


@dataclass(frozen=True)
class FinetuneConfig:
    """What `finetune.py` takes."""

    run: FinetuneRunOptions = FinetuneRunOptions()
    data: FinetuneDataOptions = FinetuneDataOptions()
    loss: ClassificationLossOptions = ClassificationLossOptions()
    model: FinetuneModelOptions = FinetuneModelOptions()
    optimizer: FinetuneOptimizerOptions = FinetuneOptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    logging: LoggingOptions = LoggingOptions()

    def problems(self) -> Problems:
        problems = section_problems(self)
        if self.run.eval_only and not self.run.weights:
            problems.append(("run.eval_only", "needs run.weights (--weights): the finetuned checkpoint to evaluate"))
        if self.model.freeze_trunk and self.optimizer.layer_decay is not None:
            problems.append(
                ("optimizer.layer_decay", "must be null with model.freeze_trunk: the head alone is trained")
            )
        if self.run.probe and not self.run.weights:
            problems.append(("run.probe", "needs run.weights (--weights): whose features to score"))
        if self.run.probe and self.run.eval_only:
            problems.append(("run.probe", "cannot go with run.eval_only; choose one of the two"))
        if self.run.select_val_resize_size and not (self.data.holdout_fraction or self.run.eval_only):
            problems.append(("run.select_val_resize_size", "needs data.holdout_fraction above 0: images to choose on"))
        if self.run.frequency_sweep and not self.run.eval_only:
            problems.append(("run.frequency_sweep", "needs run.eval_only (--eval-only)"))
        if self.run.frequency_sweep and self.run.select_val_resize_size:
            problems.append(("run.select_val_resize_size", "run.frequency_sweep takes one size; choose one of the two"))
        if self.data.classes == "present" and (self.run.select_val_resize_size or not self.run.eval_only):
            problems.append(("data.classes", "needs run.eval_only, without run.select_val_resize_size"))
        if self.data.class_names is not None and not self.run.eval_only:
            problems.append(("data.class_names", "needs run.eval_only; a training takes the folders' names"))
        if not (self.run.eval_only or self.run.probe):  # there the checkpoint has a say in the sizes first
            problems += self.size_problems()
        return problems

    def size_problems(self) -> Problems:
        """What is wrong with the sizes of an evaluation."""
        problems = []
        crop_size = self.data.val_crop_size
        if min(self.data.val_resize_size) < crop_size:
            problems.append(("data.val_resize_size", f"must be at least data.val_crop_size = {crop_size} pixels"))
        for name in ("frequency_sweep", "probe"):
            if getattr(self.run, name) and len(self.data.val_resize_size) > 1:
                problems.append(("data.val_resize_size", f"run.{name} takes one size; give one --val-resize-size"))
        if self.run.frequency_sweep and min(self.run.sweep_radii) ** 2 > 2 * (crop_size // 2) ** 2:
            problems.append(("run.sweep_radii", f"all lie beyond the last bin of {crop_size} pixels"))
        return problems


def section_problems(config: "PretrainConfig | FinetuneConfig") -> Problems:
    """The problems of every section that can have some, keys as `section.key`."""
    problems = []
    for section in fields(config):
        options = getattr(config, section.name)
        if hasattr(options, "problems"):
            problems += [(f"{section.name}.{key}", what) for key, what in options.problems()]
    return problems


def has_bin_between(radius: float, limit: float, size: int) -> bool:
    """Whether an image of `size` pixels a side has a frequency with radius ≤ √(u² + v²) < limit."""
    for u in range(size // 2 + 1):
        for v in range(u + 1):
            if radius**2 <= u * u + v * v < limit**2:
                return True
    return False


def ordered(options: object, key: str) -> Problems:
    low, high = getattr(options, key)
    return [] if low <= high else [(key, f"must have the smaller number first: [{high}, {low}]")]
