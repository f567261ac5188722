"""The knobs: complete, consistent with their own limits, and refused in combinations that make no sense."""

import dataclasses
import math
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import from_dict, keys_affecting, parse_command_line, to_dict
from utils.errors import UserError

BOTH = pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def fields_of(config_class):
    """Every (section's name, field, type hint)."""
    for section in dataclasses.fields(config_class):
        hints = typing.get_type_hints(type(section.default))
        for field in dataclasses.fields(section.default):
            yield section.name, field, hints[field.name]


def complaints(config_class, *words):
    """What is wrong with these overrides, line by line; [] if nothing is."""
    try:
        parse_command_line(config_class, list(words), "a test")
    except UserError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid(path):
    config_class = FinetuneConfig if "finetune" in path.name else PretrainConfig
    assert isinstance(parse_command_line(config_class, ["--config", str(path)], "a test"), config_class)


@BOTH
def test_every_knob_says_what_it_means_and_has_a_valid_default(config_class):
    flags = []
    for section, field, _ in fields_of(config_class):
        meaning, unit, flag = (field.metadata[key] for key in ("meaning", "unit", "flag"))
        assert meaning.strip() == meaning and len(meaning) > 8, f"{section}.{field.name}"
        assert isinstance(unit, str)
        assert flag in (None, "--" + field.name.replace("_", "-")), f"{section}.{field.name}"
        flags += [flag] if flag else []
    assert len(set(flags)) == len(flags) > 5
    assert from_dict(config_class, to_dict(config_class()), "defaults") == config_class()


PLACES_AND_INTERVALS = {
    "run.output_dir", "run.weights", "run.resume", "run.allow_config_change", "run.device", "run.timeout_minutes",
    "data.data_path", "data.workers", "data.on_bad_image", "data.max_bad_images_share",
    "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep", "checkpoint.on_save_error",
    "logging.every_steps", "logging.pictures_every_steps",
}  # fmt: skip
EVALUATION = {
    "run.eval_only", "run.probe", "run.frequency_sweep", "run.sweep_radii", "run.evaluate_every_epochs",
    "data.val_batch_size",
}  # fmt: skip
BOTH_SCORES = {"run.use_ema", "run.probe_storage"}
SCORES = {
    "run.select_val_resize_size", "data.val_resize_size", "data.val_crop_size", "data.classes", "data.class_names",
}  # fmt: skip
RECIPE = {
    "run.seed", "run.deterministic", "data.train_crop_size", "data.crop_ratio", "data.mean", "data.holdout_fraction",
    "loss.eps", "loss.label_smoothing", "loss.multi_label", "filter.radius", "filter.order", "data.mixup_alpha",
    "model.name", "model.freeze_trunk", "optimizer.layer_decay",
    "model.channels_last", "optimizer.name", "optimizer.learning_rate", "optimizer.momentum", "schedule.epochs",
    "train.batch_size", "train.images_per_device", "train.precision", "train.tf32", "train.compile",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config_class", "nothing", "score"),
    [
        (PretrainConfig, PLACES_AND_INTERVALS | {"run.probe_every_epochs"}, BOTH_SCORES),
        (FinetuneConfig, PLACES_AND_INTERVALS | EVALUATION, BOTH_SCORES | SCORES),
    ],
)
def test_places_and_intervals_affect_nothing_sizes_of_evaluation_a_score_and_all_else_the_weights(
    config_class, nothing, score
):
    keys = {f"{section}.{field.name}" for section, field, _ in fields_of(config_class)}
    assert keys_affecting(config_class, "nothing") == nothing
    assert keys_affecting(config_class, "score") == score
    assert keys_affecting(config_class, "nothing", "score") == nothing | score
    weights = keys_affecting(config_class, "weights")
    assert weights == keys - nothing - score  # so every knob affects one of the three
    assert weights >= RECIPE & keys and len(RECIPE & keys) > 15


@BOTH
def test_a_config_cannot_be_changed(config_class):
    config = config_class()
    for section in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, section.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            getattr(config, section.name).anything = 1
    hash(config)  # no list or dict in it either


def type_of(hint):
    """The type of a knob's value when it is not null."""
    if type(None) in typing.get_args(hint):
        return typing.get_args(hint)[0]
    return hint


def values_outside(field, value_type) -> list[tuple[object, str]]:
    """The nearest values that each limit of a knob forbids, and what the error must say of it."""
    low, high, above, choices = (field.metadata[key] for key in ("low", "high", "above", "choices"))
    step = 1 if value_type is int or typing.get_args(value_type)[:1] == (int,) else 1e-9
    outside = []
    if low is not None:
        outside.append((low - step, f"≥ {low:g}"))
    if high is not None:
        outside.append((high + step, f"≤ {high:g}"))
    if above is not None:
        outside.append((above, f"> {above:g}"))
    for choice in choices or ():
        outside.append((choice + "x", f"one of {', '.join(choices)}; nearest: {choice}"))
    return outside


@BOTH
def test_every_limit_of_every_knob_is_enforced_and_named(config_class):
    refused = 0
    for section, field, hint in fields_of(config_class):
        value_type = type_of(hint)
        members = [member for member in typing.get_args(value_type) if member is not Ellipsis]
        for value, limit in values_outside(field, value_type):
            text = str([value] * len(members)) if len(members) > 1 else str(value)
            [line] = complaints(config_class, f"{section}.{field.name}={text}")
            assert line.startswith(f"command line: {section}.{field.name} = ") and limit in line
            refused += 1
    assert refused > 40


# What a choice asks for beside itself: the paper's rivals work on pixels, and leave something of every frequency; an
# automatic augmentation takes the place of RandAugment; a part of the classes can be scored, but not trained on.
COMPANIONS = {
    "corruption.name": ["filter.order=filter_first", "loss.scope=all"],
    "data.auto_augment": ["data.rand_augment_ops=0"],
    "data.classes": ["run.eval_only=true", "run.weights=x.pt"],
}


@BOTH
def test_every_choice_is_allowed(config_class):
    for section, field, hint in fields_of(config_class):
        key = f"{section}.{field.name}"
        for choice in field.metadata["choices"] or ():
            assert type_of(hint) is str
            assert complaints(config_class, f"{key}={choice}", *COMPANIONS.get(key, [])) == []


@pytest.mark.parametrize(
    ("config_class", "word"),
    [
        (FinetuneConfig, "data.flip_probability=1.01"),
        (FinetuneConfig, "data.crop_ratio=[0, 1]"),
        (FinetuneConfig, "data.crop_ratio=[0.5, 1.01]"),
        (FinetuneConfig, "data.std=[1, 1, 0]"),
        (FinetuneConfig, "data.val_resize_size=[235, 7]"),
        (FinetuneConfig, "data.workers=-1"),
        (FinetuneConfig, "loss.label_smoothing=1"),
        (FinetuneConfig, "optimizer.betas=[0.9, 1]"),
        (FinetuneConfig, "optimizer.clip_grad_norm=0"),
        (FinetuneConfig, "run.evaluate_every_epochs=0"),
        (FinetuneConfig, "train.batch_size=0"),
        (PretrainConfig, "filter.radius=0"),
        (PretrainConfig, "filter.low_pass_probability=-0.1"),
        (PretrainConfig, "filter.output=complex"),
        (PretrainConfig, "loss.gamma=0"),
        (PretrainConfig, "optimizer.weight_decay=-1e-9"),
        (PretrainConfig, "run.seed=-1"),
        (PretrainConfig, "schedule.epochs=0"),
        (PretrainConfig, "train.precision=int8"),
        (PretrainConfig, "optimizer.learning_rate=.inf"),
        (PretrainConfig, "run.timeout_minutes=.inf"),
    ],
)
def test_values_that_make_no_sense_are_out_of_range(config_class, word):
    [line] = complaints(config_class, word)
    assert line.startswith(f"command line: {word.partition('=')[0]} = ") and "must be" in line


@pytest.mark.parametrize(
    ("config_class", "words", "message"),
    [
        (FinetuneConfig, ["--crop-ratio", "1", "0.08"], "data.crop_ratio = [1.0, 0.08]: must have .* [0.08, 1.0]"),
        (PretrainConfig, ["data.aspect_ratio=[2, 1]"], "data.aspect_ratio = [2.0, 1.0]: must have .* [1.0, 2.0]"),
        (PretrainConfig, ["filter.clamp=[1, -1]"], "filter.clamp = [1.0, -1.0]: must have .* [-1.0, 1.0]"),
        (PretrainConfig, ["model.freeze_trunk=true"], "command line: model.freeze_trunk = true: unknown key"),
        (PretrainConfig, ["optimizer.layer_decay=0.7"], "command line: optimizer.layer_decay = 0.7: unknown key"),
        (PretrainConfig, ["filter.clamp=[0, 0]"], "filter.clamp = [0.0, 0.0]: leaves one value"),
        (PretrainConfig, ["filter.clamp=[-3, -2.2]"], "filter.clamp = [-3.0, -2.2]: leaves one value: images lie in"),
        (
            PretrainConfig,
            ["filter.clamp=[1, 255]", "filter.order=filter_first"],
            "filter.clamp = [1.0, 255.0]: leaves one value: images lie in [0, 1] there",
        ),
        (FinetuneConfig, ["data.std=[0.2, 0.2, 0.0039]"], "data.std = [0.2, 0.2, 0.0039]: must be at least 0.02"),
        (PretrainConfig, ["data.mean=[123.7, 116.3, 103.5]"], "data.mean = [123.7, .* in [0, 1], .* divide .* by 255"),
        (PretrainConfig, ["data.mean=[0.5, -0.1, 0.5]"], "data.mean = [0.5, -0.1, 0.5]: must lie in [0, 1]"),
        (FinetuneConfig, ["data.std=[58.4, 57.1, 57.4]"], "data.std = [58.4, .* at most 1, .* divide .* by 255"),
        (PretrainConfig, ["filter.radius=158.4"], "filter.radius = 158.4: leaves no high .* 224 pixels .* 158.39"),
        (
            PretrainConfig,
            ["filter.radius=2", "filter.outer_radius=2"],
            "filter.outer_radius = 2.0: must be above .* 2.0",
        ),
        (PretrainConfig, ["filter.radius=1.5", "filter.outer_radius=2"], "filter.radius = 1.5: leaves no high"),
        (
            FinetuneConfig,
            ["data.val_resize_size=[235, 223]"],
            "data.val_resize_size .* at least data.val_crop_size = 224",
        ),
        (FinetuneConfig, ["data.val_crop_size=236"], "data.val_resize_size = [235]: must be at least .* 236"),
        (
            FinetuneConfig,
            ["data.val_resize_size=[235, 235]"],
            "data.val_resize_size = [235, 235]: must not name a size",
        ),
        (FinetuneConfig, ["data.rand_augment_magnitude=10"], "data.rand_augment_magnitude = 10: must be below .* 10"),
        (
            FinetuneConfig,
            ["data.rand_augment_style=timm", "data.rand_augment_magnitude=11"],
            "data.rand_augment_magnitude = 11: must be at most 10 with data.rand_augment_style = timm",
        ),
        (
            FinetuneConfig,
            ["data.auto_augment=augmix"],
            "data.auto_augment = augmix: not with data.rand_augment_ops = 2; set one to 0 or null",
        ),
        (FinetuneConfig, ["--eval-only"], "run.eval_only = true: needs run.weights"),
        (FinetuneConfig, ["model.freeze_trunk=true", "model.drop_path=0.1"], "model.drop_path = 0.1: must be 0 with"),
        (
            FinetuneConfig,
            ["model.freeze_trunk=true", "model.sync_batch_norm=true"],
            "model.sync_batch_norm = true: must be false with model.freeze_trunk",
        ),
        (
            FinetuneConfig,
            ["model.freeze_trunk=true", "optimizer.layer_decay=0.7"],
            "optimizer.layer_decay = 0.7: must be null with model.freeze_trunk",
        ),
        (FinetuneConfig, ["--probe"], "run.probe = true: needs run.weights"),
        (FinetuneConfig, ["--probe", "--eval-only", "--weights", "x.pt"], "run.probe = true: cannot go with"),
        (FinetuneConfig, ["data.classes=present"], "data.classes = present: needs run.eval_only"),
        (FinetuneConfig, ["data.class_names=x.txt"], "data.class_names = x.txt: needs run.eval_only"),
        (FinetuneConfig, ["loss.multi_label=true", "loss.name=ce"], "loss.multi_label = true: needs .* bce"),
        (FinetuneConfig, ["loss.multi_label=true", "loss.label_smoothing=0.21"], "loss.multi_label .* at most 0.2"),
        (FinetuneConfig, ["--epochs", "20"], "schedule.warmup_epochs = 20.0: must be below schedule.epochs = 20"),
        (PretrainConfig, ["schedule.warmup_epochs=300"], "schedule.warmup_epochs = 300.0: must be below .* 300"),
        (
            PretrainConfig,
            ["schedule.shape=step", "schedule.decay_epochs=300"],
            "schedule.decay_epochs = 300: must be below .* 300",
        ),
        (
            FinetuneConfig,
            ["schedule.shape=multistep", "--epochs", "80"],
            "schedule.milestones = [60, 80]: must be below .* 80",
        ),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(config_class, words, message):
    line = complaints(config_class, *words)[0]
    position = 0
    for part in message.split(" .* "):
        position = line.index(part, position)


@pytest.mark.parametrize(
    ("config_class", "words"),
    [
        (FinetuneConfig, ["--crop-ratio", "1", "1"]),
        (FinetuneConfig, ["data.train_crop_size=200"]),
        (FinetuneConfig, ["loss.multi_label=true", "loss.label_smoothing=0.2"]),
        (PretrainConfig, ["data.mean=[0, 1, 0.5]", "data.std=[1, 1, 0.02]"]),
        (FinetuneConfig, ["data.val_resize_size=224"]),
        (FinetuneConfig, ["data.rand_augment_magnitude=10", "data.rand_augment_ops=0"]),
        (FinetuneConfig, ["data.rand_augment_magnitude=9"]),
        (FinetuneConfig, ["data.rand_augment_magnitude=10", "data.rand_augment_style=timm"]),
        (FinetuneConfig, ["--eval-only", "--weights", "x.pt"]),
        (FinetuneConfig, ["model.drop_path=0.1", "model.sync_batch_norm=true", "optimizer.layer_decay=1"]),
        (FinetuneConfig, ["--epochs", "21"]),  # the milestones count for shape=multistep only
        (FinetuneConfig, ["schedule.shape=multistep", "--epochs", "81"]),
        (PretrainConfig, ["data.train_crop_size=32", "filter.clamp=[-3, -2]"]),
        (PretrainConfig, ["filter.radius=158.39"]),
    ],
)
def test_the_last_value_inside_each_bound_is_allowed(config_class, words):
    assert complaints(config_class, *words) == []


@settings(deadline=None)
@given(
    st.sampled_from([32, 64, 96]),
    st.floats(0.01, 80) | st.integers(1, 60).map(float) | st.integers(1, 4000).map(math.sqrt),
    st.none() | st.floats(0.01, 3),
)
def test_filter_is_refused_exactly_when_no_bin_is_high(size, radius, width):
    frequencies = np.fft.fftfreq(size, 1 / size)
    squared = frequencies[:, None] ** 2 + frequencies[None] ** 2
    outer = None if width is None else radius + width
    high = (squared >= radius**2) & (squared < (math.inf if outer is None else outer**2))
    outer_word = f"filter.outer_radius={'null' if outer is None else repr(outer)}"
    words = [f"data.train_crop_size={size}", f"filter.radius={radius!r}", outer_word]
    lines = complaints(PretrainConfig, *words)
    assert bool(lines) != bool(high.any()) and all("filter.radius" in line for line in lines)


@pytest.mark.parametrize("key", ["radius", "outer_radius"])
def test_an_enormous_radius_is_refused_and_not_computed_with(key):
    assert "≤ 4096" in complaints(PretrainConfig, f"filter.{key}=1e200")[0]
