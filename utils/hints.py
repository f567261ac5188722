"""What a word that names no knob may have meant."""

import difflib
from collections.abc import Iterable

# Names that other projects give to our knobs.
ALIASES = {
    "lr": "optimizer.learning_rate", "base_lr": "optimizer.learning_rate", "blr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay", "opt": "optimizer.name", "optim": "optimizer.name", "optimizer": "optimizer.name",
    "clip_grad": "optimizer.clip_grad_norm", "max_grad_norm": "optimizer.clip_grad_norm", "ema": "optimizer.ema_decay",
    "bs": "train.batch_size", "b": "train.batch_size", "batch": "train.batch_size",
    "amp": "train.precision", "fp16": "train.precision", "bf16": "train.precision", "dtype": "train.precision",
    "accum_iter": "train.images_per_device", "grad_accum": "train.images_per_device",
    "warmup": "schedule.warmup_epochs", "min_lr": "schedule.final_learning_rate",
    "warmup_lr": "schedule.warmup_learning_rate", "num_epochs": "schedule.epochs", "max_epochs": "schedule.epochs",
    "output": "run.output_dir", "out": "run.output_dir",
    "out_dir": "run.output_dir", "save_dir": "run.output_dir", "log_dir": "run.output_dir",
    "ckpt": "run.weights", "checkpoint": "run.weights", "pretrained": "run.weights", "init": "run.weights",
    "eval": "run.eval_only", "evaluate": "run.eval_only", "test": "run.eval_only", "gpu": "run.device",
    "arch": "model.name", "a": "model.name", "model": "model.name", "backbone": "model.name",
    "model_name": "model.name",
    "data": "data.data_path", "data_dir": "data.data_path", "dataset": "data.data_path", "root": "data.data_path",
    "num_workers": "data.workers", "j": "data.workers", "img_size": "data.train_crop_size",
    "image_size": "data.train_crop_size", "input_size": "data.train_crop_size", "crop_size": "data.train_crop_size",
    "smoothing": "loss.label_smoothing", "mixup": "data.mixup_alpha", "cutmix": "data.cutmix_alpha",
}  # fmt: skip


def nearest_choice(word: object, choices: Iterable[str]) -> str:
    return difflib.get_close_matches(str(word), choices, n=1, cutoff=0.0)[0]


def nearest_key(word: str, keys: Iterable[str]) -> str | None:
    """The knob, as `section.key`, that a word most likely means: by its last part first, then by another name of it.

    Args:
        word: a key as `optimizr.lr`, or a flag as `--batch-siz`.
    """
    word = word.lstrip("-").replace("-", "_").lower()
    last_part = word.rsplit(".", 1)[-1]
    keys_of_part: dict[str, list[str]] = {}
    for key in keys:
        keys_of_part.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    alias = ALIASES.get(last_part)
    if last_part not in keys_of_part and alias in keys:
        return alias
    parts = difflib.get_close_matches(last_part, keys_of_part, n=1, cutoff=0.6)
    if parts:
        return nearest_choice(word, keys_of_part[parts[0]])  # several sections may have one of this name
    close = difflib.get_close_matches(word, keys, n=1, cutoff=0.6)
    return close[0] if close else None
