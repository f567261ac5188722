"""The knobs: complete, consistent with their own limits, and refused in combinations that make no sense."""

import dataclasses
import math
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import FREE_TO_CHANGE, FinetuneConfig, PretrainConfig
from utils.config import from_dict, knobs, parse_command_line, to_dict
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


def test_what_a_resumed_run_may_change_are_knobs_that_exist():
    assert FREE_TO_CHANGE <= knobs(PretrainConfig).keys() | knobs(FinetuneConfig).keys()


@BOTH
def test_a_config_cannot_be_changed(config_class):
    config = config_class()
    for section in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, section.name, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            getattr(config, section.name).anything = 1
    hash(config)  # no list or dict in it either


@BOTH
def test_every_limit_of_every_knob_is_enforced_and_told(config_class):
    refused = 0
    for section, field, hint in fields_of(config_class):
        low, high, above, choices = (field.metadata[key] for key in ("low", "high", "above", "choices"))
        options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        assert choices is None or options[0] is str
        step = 1 if options[0] is int or typing.get_args(options[0])[:1] == (int,) else 1e-9
        outside = [(low, -step, "≥"), (high, step, "≤"), (above, 0.0, ">")]
        cases = [(limit + move, f"{sign} {limit:g}") for limit, move, sign in outside if limit is not None]
        cases += [(choice + "x", f"one of {', '.join(choices)}; nearest: {choice}") for choice in choices or ()]
        for value, told in cases:
            members = [member for member in typing.get_args(options[0]) if member is not Ellipsis] or [None]
            text = str([value] * len(members)) if len(members) > 1 else str(value)
            [line] = complaints(config_class, f"{section}.{field.name}={text}")
            assert line.startswith(f"command line: {section}.{field.name} = ") and told in line
            refused += 1
        for choice in choices or ():
            assert complaints(config_class, f"{section}.{field.name}={choice}") == []
    assert refused > 40


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
    ("config_class", "words", "told"),
    [
        (FinetuneConfig, ["--crop-ratio", "1", "0.08"], "data.crop_ratio = [1.0, 0.08]: must have .* [0.08, 1.0]"),
        (PretrainConfig, ["data.aspect_ratio=[2, 1]"], "data.aspect_ratio = [2.0, 1.0]: must have .* [1.0, 2.0]"),
        (PretrainConfig, ["filter.clamp=[1, -1]"], "filter.clamp = [1.0, -1.0]: must have .* [-1.0, 1.0]"),
        (PretrainConfig, ["data.train_crop_size=208"], "data.train_crop_size = 208: must be a multiple .* 192 or 224"),
        (PretrainConfig, ["data.train_crop_size=225"], "data.train_crop_size = 225: must be a multiple .* 224 or 256"),
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
        (FinetuneConfig, ["--eval-only"], "run.eval_only = true: needs run.weights"),
        (FinetuneConfig, ["--epochs", "20"], "schedule.warmup_epochs = 20.0: must be below schedule.epochs = 20"),
        (PretrainConfig, ["schedule.warmup_epochs=300"], "schedule.warmup_epochs = 300.0: must be below .* 300"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(config_class, words, told):
    line = complaints(config_class, *words)[0]
    position = 0
    for part in told.split(" .* "):
        position = line.index(part, position)


@pytest.mark.parametrize(
    ("config_class", "words"),
    [
        (FinetuneConfig, ["--crop-ratio", "1", "1"]),
        (FinetuneConfig, ["data.train_crop_size=200"]),
        (FinetuneConfig, ["data.val_resize_size=224"]),
        (FinetuneConfig, ["data.rand_augment_magnitude=10", "data.rand_augment_ops=0"]),
        (FinetuneConfig, ["data.rand_augment_magnitude=9"]),
        (FinetuneConfig, ["--eval-only", "--weights", "x.pt"]),
        (FinetuneConfig, ["--epochs", "21"]),
        (PretrainConfig, ["data.train_crop_size=32", "filter.clamp=[0, 0]"]),
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
    line = np.fft.fftfreq(size, 1 / size)
    squared = line[:, None] ** 2 + line[None] ** 2
    outer = None if width is None else radius + width
    high = (squared >= radius**2) & (squared < (math.inf if outer is None else outer**2))
    outer_word = f"filter.outer_radius={'null' if outer is None else repr(outer)}"
    words = [f"data.train_crop_size={size}", f"filter.radius={radius!r}", outer_word]
    found = complaints(PretrainConfig, *words)
    assert bool(found) != bool(high.any()) and all("filter.radius" in told for told in found)


@pytest.mark.parametrize("key", ["radius", "outer_radius"])
def test_an_enormous_radius_is_refused_and_not_computed_with(key):
    assert "≤ 4096" in complaints(PretrainConfig, f"filter.{key}=1e200")[0]
