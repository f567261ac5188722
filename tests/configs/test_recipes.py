"""Recipes: their values are those of the papers and public codes, typed in here by hand, and each takes a step."""

from __future__ import annotations

import operator
import signal
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from configs.schema import FinetuneConfig, PretrainConfig
from scripts.config_diff import config_diff, main
from tests.support.helpers import image_folder
from tests.support.launch import ROOT, finetune, in_one_line, pretrain
from tests.support.weights import Counts, counts
from utils.config import parse_command_line, to_dict, to_yaml
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.run.reading import differing, flat, resolved_config
from utils.training.schedule import LearningRate

COINCHEUNG_PRETRAINING = {
    "data.train_crop_size": 224,
    "data.crop_ratio": (0.2, 1.0),
    "data.aspect_ratio": (0.8, 1.25),
    "data.interpolation": "bilinear",
    "data.flip_probability": 0.5,
    "data.mean": (0.4, 0.4, 0.4),
    "data.std": (0.2, 0.2, 0.2),
    "filter.radius": 16,
    "filter.outer_radius": None,
    "filter.low_pass_probability": 0.5,
    "filter.output": "abs",
    "filter.clamp": None,
    "filter.order": "normalize_first",
    "loss.gamma": 1,
    "loss.eps": 1e-7,
    "loss.reduction": "image",
    "loss.scope": "removed",
    "loss.target": "gray",
    "model.name": "resnet50",
    "model.zero_init_last_batch_norm": False,
    "model.sync_batch_norm": False,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1.2e-3,
    "optimizer.betas": (0.9, 0.95),
    "optimizer.weight_decay": 0.05,
    "optimizer.weight_decay_on": "all",
    "optimizer.clip_grad_norm": 3.0,
    "optimizer.ema_decay": None,
    "schedule.epochs": 300,
    "schedule.warmup_epochs": 20,
    "schedule.warmup_learning_rate": 1.2e-5,  # 1 %
    "schedule.final_learning_rate": 0,
    "schedule.interval": "epoch",
    "schedule.cosine_from": "warmup",
    "schedule.shape": "cosine",
    "schedule.delay_steps": 0,
    "train.batch_size": 2048,
    "train.images_per_device": 256,
    "run.weights": None,
}
AUTHORS_PRETRAINING = {
    **COINCHEUNG_PRETRAINING,
    "data.aspect_ratio": (3 / 4, 4 / 3),
    "data.interpolation": "bicubic",
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "filter.low_pass_probability": 0.3,
    "filter.output": "real",
    "filter.clamp": (0.0, 1.0),
    "filter.order": "filter_first",
    "loss.eps": 1e-12,
    "loss.reduction": "batch",
    "loss.target": "rgb",
    "model.zero_init_last_batch_norm": True,
    "optimizer.learning_rate": 3e-4 * 2048 / 512,
    "optimizer.weight_decay_on": "matrices",
    "schedule.warmup_learning_rate": 2.5e-7 * 2048 / 512,
    "schedule.final_learning_rate": 2.5e-6 * 2048 / 512,
    "schedule.interval": "step",
    "schedule.cosine_from": "start",
    "schedule.delay_steps": 1,
    "train.images_per_device": 128,
}
RIVAL = {**AUTHORS_PRETRAINING, "loss.scope": "all"}
COINCHEUNG_FINETUNING = {
    "data.train_crop_size": 160,
    "data.crop_ratio": (0.08, 1.0),
    "data.flip_probability": 0.5,
    "data.interpolation": "bicubic",
    "data.mean": (0.4, 0.4, 0.4),
    "data.std": (0.2, 0.2, 0.2),
    "data.rand_augment_ops": 2,
    "data.rand_augment_magnitude": 6,
    "data.rand_augment_bins": 10,
    "data.mixup_alpha": 0.1,
    "data.cutmix_alpha": 1.0,
    "data.val_resize_size": (235,),
    "data.val_crop_size": 224,
    "loss.name": "bce",
    "loss.label_smoothing": 0.1,
    "model.name": "resnet50",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 0.012,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.02,
    "optimizer.weight_decay_on": "all",
    "optimizer.clip_grad_norm": None,
    "optimizer.ema_decay": None,
    "schedule.epochs": 100,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_learning_rate": 1.2e-4,
    "schedule.final_learning_rate": 0,
    "schedule.interval": "epoch",
    "schedule.cosine_from": "warmup",
    "train.batch_size": 2048,
    "run.weights": None,
}
LONGER = {"schedule.epochs": 300, "data.train_crop_size": 224, "data.rand_augment_magnitude": 7}
RSB_A3 = {
    **COINCHEUNG_FINETUNING,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "data.rand_augment_style": "timm",
    "data.rand_augment_noise": 0.5,
    "data.rand_augment_probability": 0.5,
    "data.augmentation_repeats": 1,
    "data.val_resize_size": (236,),
    "loss.label_smoothing": 0,
    "loss.multi_label": True,
    "model.zero_init_last_batch_norm": True,
    "model.drop_path": 0,
    "optimizer.name": "lamb",
    "optimizer.learning_rate": 8e-3,
    "optimizer.weight_decay_on": "matrices",
    "schedule.warmup_learning_rate": 8e-7,
    "schedule.final_learning_rate": 1e-6,
    "schedule.cosine_from": "start",
}
RSB_A2 = {
    **RSB_A3,
    **LONGER,
    "data.augmentation_repeats": 3,
    "model.drop_path": 0.05,
    "optimizer.learning_rate": 5e-3,
    "schedule.warmup_learning_rate": 5e-7,
}
LINEAR_PROBE = {  # main_lincls.py of MoCo, with the normalisation of the base's pretraining
    **COINCHEUNG_FINETUNING,
    "data.train_crop_size": 224,
    "data.interpolation": "bilinear",
    "data.rand_augment_ops": 0,
    "data.auto_augment": None,
    "data.random_erasing": 0,
    "data.mixup_alpha": 0,
    "data.cutmix_alpha": 0,
    "data.val_resize_size": (256,),
    "loss.name": "ce",
    "loss.label_smoothing": 0,
    "model.freeze_trunk": True,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 30,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 0,
    "optimizer.layer_decay": None,
    "schedule.shape": "multistep",
    "schedule.milestones": (60, 80),
    "schedule.decay_rate": 0.1,
    "schedule.warmup_epochs": 0,
    "train.batch_size": 256,
}
# Small batches of one's own images: the rates of 2048 images, by the linear rule.
OWN = {
    "data.data_path": "mine", "schedule.interval": "step", "train.batch_size": 128, "train.images_per_device": None,
}  # fmt: skip
OWN_RECIPES = {
    "own_pretrain": {
        **COINCHEUNG_PRETRAINING, **OWN, "optimizer.learning_rate": 1.2e-3 * 128 / 2048,
        "schedule.warmup_learning_rate": 1.2e-5 * 128 / 2048, "schedule.steps": 20000,
    },
    "own_finetune": {
        **COINCHEUNG_FINETUNING, **OWN, "optimizer.learning_rate": 0.012 * 128 / 2048,
        "schedule.warmup_learning_rate": 1.2e-4 * 128 / 2048, "schedule.steps": 4000,
    },
}  # fmt: skip
RECIPES = {
    "pretrain_resnet50": COINCHEUNG_PRETRAINING,
    "pretrain_resnet50_paper": AUTHORS_PRETRAINING,
    "pretrain_resnet50_sr": {**RIVAL, "corruption.name": "super_resolution", "corruption.downscale": 8},
    "pretrain_resnet50_deblur": {
        **RIVAL,
        "corruption.name": "blur",
        "corruption.blur_sizes": (7, 21),
        "corruption.blur_sigma": 5.0,
    },
    "pretrain_resnet50_denoise": {**RIVAL, "corruption.name": "noise", "corruption.noise_std": 75.0},
    "pretrain_resnet50_crop0.1": {**COINCHEUNG_PRETRAINING, "data.crop_ratio": (0.1, 1.0)},
    "pretrain_resnet50_crop0.67": {**COINCHEUNG_PRETRAINING, "data.crop_ratio": (0.67, 1.0)},
    "finetune_resnet50_bce": COINCHEUNG_FINETUNING,
    "finetune_resnet50_ce": {**COINCHEUNG_FINETUNING, "loss.name": "ce"},
    "finetune_resnet50_scratch": COINCHEUNG_FINETUNING,
    "finetune_resnet50_supervised": {**COINCHEUNG_FINETUNING, "run.weights": "torchvision:IMAGENET1K_V1"},
    "finetune_resnet50_bce_300ep": {**COINCHEUNG_FINETUNING, **LONGER},
    "finetune_resnet50_rsb_a3": RSB_A3,
    "finetune_resnet50_rsb_a2": RSB_A2,
    "finetune_resnet50_linear_probe": LINEAR_PROBE,
}
ALL = RECIPES | OWN_RECIPES


def read(name):
    words = ["--config", str(ROOT / f"configs/{name}.yaml")]
    return parse_command_line(FinetuneConfig if "finetune" in name else PretrainConfig, words, "a test")


def test_every_recipe_of_a_resnet50_is_in_the_table():
    assert {path.stem for path in (ROOT / "configs").glob("*_resnet50*.yaml")} == RECIPES.keys()
    assert {path.stem for path in (ROOT / "configs").glob("own_*.yaml")} == OWN_RECIPES.keys()


@pytest.mark.parametrize("name", ALL)
def test_recipe_has_the_published_values(name):
    config = read(name)
    got = {key: operator.attrgetter(key)(config) for key in ALL[name]}
    assert got == {key: pytest.approx(value) if isinstance(value, float) else value for key, value in ALL[name].items()}
    assert config.run.output_dir == f"runs/{name}"
    assert config.train.batch_size % (8 * (config.train.images_per_device or 1)) == 0


@pytest.mark.parametrize("name", ALL)
def test_recipe_says_only_what_differs_from_its_base(name):
    content = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    base = content.pop("base", None)
    if base is None:
        return
    changed = differing(resolved_config(str(ROOT / "configs" / base)), resolved_config(f"{ROOT}/configs/{name}.yaml"))
    if name == "finetune_resnet50_scratch":
        changed["run.weights"] = (None, None)  # said aloud, though the base has none either
    assert flat(content).keys() == changed.keys()


@pytest.mark.parametrize("name", OWN_RECIPES)
def test_rates_of_own_images_are_those_of_the_base_by_the_linear_rule(name):
    """At every share of the schedule, for any number of images; the base changes its rate each epoch, so at these."""
    own, base = read(name), read({"own_pretrain": "pretrain_resnet50", "own_finetune": "finetune_resnet50_bce"}[name])
    ours = LearningRate(own.schedule, own.optimizer.learning_rate, steps_per_epoch=39)
    theirs = LearningRate(base.schedule, base.optimizer.learning_rate, steps_per_epoch=625)
    for tenth in range(10):
        rate = theirs.at(625 * base.schedule.epochs * tenth // 10)
        assert ours.at(own.schedule.steps * tenth // 10) == pytest.approx(rate * 128 / 2048, rel=1e-6)


def learning_rates(name: str) -> list[float]:
    """At every half epoch of 300, of 100 steps each."""
    config = read(name)
    rate = LearningRate(config.schedule, config.optimizer.learning_rate, steps_per_epoch=100)
    return [rate.at(step) for step in range(0, 30000, 50)]


def test_learning_rate_of_coincheung_rises_to_its_peak_and_falls_to_0_by_a_cosine_from_there():
    rates = learning_rates("pretrain_resnet50")
    assert rates[0] == rates[1] == pytest.approx(1.2e-5)  # it changes each epoch
    assert rates[2 * 20] == pytest.approx(1.2e-3) == max(rates)
    assert rates[2 * 160] == pytest.approx(6e-4)


def test_learning_rate_of_the_authors_rises_each_step_to_where_the_cosine_already_is():
    rates = learning_rates("pretrain_resnet50_paper")
    assert rates[0] == pytest.approx(1e-6) and rates[1] > rates[0]
    assert rates[2 * 20] == pytest.approx(1.2e-3, rel=1e-3)  # of the step before: the last one of the warm-up
    assert rates[2 * 20 + 1] == pytest.approx(0.989 * 1.2e-3, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-2)


def test_learning_rate_of_the_linear_probe_falls_twice():
    rates = learning_rates("finetune_resnet50_linear_probe")[: 2 * 100]  # it has 100 epochs
    assert rates == pytest.approx([30.0] * 120 + [3.0] * 40 + [0.3] * 40)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    image_folder(root / "train", per_class=4)
    image_folder(root / "val", per_class=1)
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A TORCH_HOME that holds torchvision's resnet18, and that network's first tensor."""
    home = tmp_path_factory.mktemp("home")
    (home / "hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    start = torchvision.models.resnet18().state_dict()
    torch.save(start, home / "hub/checkpoints/resnet18-f37072fd.pth")
    return home, start["conv1.weight"]


TINY = [
    "model.name=resnet18", "data.train_crop_size=32", "data.workers=0", "train.precision=float32", "run.device=cpu",
    "train.images_per_device=8", "--batch-size", "8", "--epochs", "1", "schedule.steps=null",
    "schedule.warmup_epochs=0", "logging.every_steps=1",
]  # fmt: skip


def run(name, images, output, *more):
    """The recipe's entry point in this process, tiny."""
    main, size = pretrain, ["filter.radius=3"]
    if "finetune" in name:
        main, size = finetune, ["data.val_crop_size=32", "--val-resize-size", "32", "optimizer.learning_rate=1e-6"]
    words = ["--config", str(ROOT / f"configs/{name}.yaml"), *TINY, *size, *more]
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        assert main([*words, "--data-path", str(images), "--output-dir", str(output)]) == 0
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    return read_checkpoint(output / "checkpoints/last.pt")


@pytest.mark.process
@pytest.mark.parametrize("name", ALL)
def test_recipe_takes_a_step(name, images, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(hub[0]))
    more = []
    if name == "finetune_resnet50_linear_probe":  # a frozen trunk needs weights, and its schedule more epochs
        more = ["--weights", "torchvision:IMAGENET1K_V1", "schedule.shape=cosine"]
    saved = run(name, images, tmp_path, *more)
    assert saved["step"] == 1 and all(tensor.isfinite().all() for tensor in saved["model"].values())
    moved = (saved["model"]["conv1.weight"] - hub[1]).abs().max()
    assert (moved < 1e-4) == (name in ("finetune_resnet50_supervised", "finetune_resnet50_linear_probe"))
    if "pretrain" in name:
        channels = {"gray": 1, "rgb": 3}[ALL[name]["loss.target"]]
        assert len(saved["model"]["decoder.0.bias"]) == 1024 * channels


@pytest.mark.process
def test_pretraining_may_start_from_weights_too(images, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(hub[0]))
    more = ["--weights", "torchvision:IMAGENET1K_V1", "optimizer.learning_rate=1e-6"]
    saved = run("pretrain_resnet50_paper", images, tmp_path, *more)
    assert (saved["model"]["conv1.weight"] - hub[1]).abs().max() < 1e-4 and saved["step"] == 1
    assert counts(in_one_line(capsys.readouterr().out)) == Counts(
        matched=120, left_over=2, new=2
    )  # the head for the decoder


def test_config_diff_tells_keys_of_recipes_runs_and_checkpoints(tmp_path, capsys):
    one, other = (str(ROOT / f"configs/{name}.yaml") for name in ("pretrain_resnet50", "pretrain_resnet50_crop0.1"))
    expected = [
        "run.output_dir: runs/pretrain_resnet50 -> runs/pretrain_resnet50_crop0.1",
        "data.crop_ratio: [0.2, 1.0] -> [0.1, 1.0]",
    ]
    assert config_diff(one, other) == expected
    config = to_dict(read("pretrain_resnet50_crop0.1"))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    torch.save({"config": config}, tmp_path / "last.pt")
    for place in (tmp_path, tmp_path / "config.yaml", tmp_path / "last.pt"):
        assert config_diff(one, str(place)) == expected
    assert main([other, str(tmp_path)]) == 0 and capsys.readouterr().out == "no key differs\n"
    lines = config_diff(one, str(ROOT / "configs/finetune_resnet50_ce.yaml"))
    assert "filter.radius: 16.0 -> -" in lines and "loss.name: - -> ce" in lines
    with pytest.raises(UserError, match="nowhere: cannot read this config"):
        config_diff(one, str(tmp_path / "nowhere"))
    Path(tmp_path / "bad.yaml").write_text("run: {sed: 1}")
    with pytest.raises(UserError, match="bad.yaml: run.sed = 1: unknown key"):
        config_diff(one, str(tmp_path / "bad.yaml"))
    torch.save({"model": {}}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="none.pt: holds no config"):
        config_diff(one, str(tmp_path / "none.pt"))


def test_reading_a_recipe_downloads_nothing(monkeypatch):
    def no_network(*arguments, **more):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    assert read("finetune_resnet50_supervised").run.weights == "torchvision:IMAGENET1K_V1"
