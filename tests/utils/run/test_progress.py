"""What a training says at its start, and how its lines fit a console."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from configs.schema import FinetuneConfig, PretrainConfig
from data.sampling import BatchPlan
from utils.config import parse_command_line
from utils.distributed import World
from utils.run import progress
from utils.run.checkpoint import Checkpoints
from utils.run.job import Job
from utils.run.progress import one_line, start_paragraph, step_in_words, time_left

PLAN = BatchPlan.make(length=1000, batch_size=96, images_per_device=8, epochs=3, world_size=4)


def job_on(ranks: int, output: str = "runs/some") -> Job:
    checkpoints = Checkpoints(Path(output) / "checkpoints", 3, None, 15.0, "stop")
    world = World(0, ranks, ranks, torch.device("cpu"))
    return Job(world, torch.bfloat16, Path(output), checkpoints, resume=None, workers=2, lock=None)


def paragraph(config, plan=PLAN, first_step=0, classes=10, **images: int) -> list[str]:
    model = nn.Linear(999, 2, bias=False)
    text = start_paragraph(
        config, job_on(plan.world_size), plan, first_step, task="some training", model=model, classes=classes,
        images=images or {"train": plan.length}, source="mine/train",
    )  # fmt: skip
    return text.splitlines()


def test_a_pretraining_begins_with_its_facts():
    assert paragraph(PretrainConfig()) == [
        "some training",
        "  model      resnet50, 1,998 parameters",
        "  images     train 1,000 from mine/train; 10 classes",
        "  sizes      train crop 224 pixels",
        "  epochs     3 of 10 steps, 30 steps in all",
        "  batch      96 images = 4 ranks × 8 images_per_device × 3 accumulated",
        "  precision  bfloat16 on cpu",
        "  weights    from scratch",
        "  output     runs/some",
    ]


def test_a_resumed_finetuning_says_what_it_starts_from_and_where_it_goes_on():
    words = ["--weights", "runs/p/last.pt", "run.use_ema=true", "data.holdout_fraction=0.1"]
    config = parse_command_line(FinetuneConfig, [*words, "--val-resize-size", "235", "256"], "")
    plan = BatchPlan.make(length=1000, batch_size=100, images_per_device=None, epochs=3)
    lines = paragraph(config, plan, first_step=19, train=1000, val=1200)
    assert lines[2:] == [
        "  images     train 1,000 from mine/train, val 1,200, held out 0.1 of train; 10 classes",
        "  sizes      train crop 160; val resized to 235, 256, crop 224 pixels",
        "  epochs     3 of 10 steps, 30 steps in all",
        "  batch      100 images = 1 rank × 100 images_per_device × 1 accumulated",
        "  precision  bfloat16 on cpu",
        "  weights    average (ema) of runs/p/last.pt",
        "  output     runs/some",
        "  goes on    in epoch 2, after step 19",
    ]
    counted = {"train": 1000, "val": 1200, "held out": 110}
    images = "  images     train 1,000 from mine/train, val 1,200, held out 110; 10 classes"
    assert paragraph(config, plan, **counted)[2] == images
    assert paragraph(config, plan, first_step=20)[-1].endswith("in epoch 3, after step 20")
    assert paragraph(config, plan, first_step=30)[-1].endswith("in epoch 3, after step 30")  # evaluation is left


@pytest.mark.parametrize(
    ("length", "epochs"),
    [
        (94, "600 of 1 steps, 600 steps in all (schedule.steps)"),
        (9469, "5 (the last one in part) of 147 steps, 600 steps in all (schedule.steps)"),
    ],
)
def test_a_length_in_steps_is_told_with_its_epochs(length, epochs):
    plan = BatchPlan.make(length, 64, None, epochs=100, steps=600)
    lines = paragraph(FinetuneConfig(), plan, first_step=599)
    assert lines[4] == f"  epochs     {epochs}"
    assert lines[-1] == f"  goes on    in epoch {600 if length == 94 else 5}, after step 599"


def test_a_long_fact_goes_on_below_itself():
    words = ["--val-resize-size", *map(str, range(224, 274))]
    lines = paragraph(parse_command_line(FinetuneConfig, words, ""), classes=1)
    assert lines[2].endswith("; 1 class") and max(map(len, lines)) <= 100
    assert lines[4].startswith(" " * 13 + "2") and lines[5].startswith(" " * 13)


def test_numbers_stand_in_columns():
    fields = [step_in_words(step, total_steps=1000, steps_per_epoch=100) for step in (1, 100, 101, 1000)]
    assert fields == [
        ["epoch  1/10", "step    1/1000"],
        ["epoch  1/10", "step  100/1000"],
        ["epoch  2/10", "step  101/1000"],
        ["epoch 10/10", "step 1000/1000"],
    ]


def test_fields_come_closer_and_then_take_another_line(monkeypatch):
    fields = ["a" * 10, "b" * 10, "c" * 10]
    expected = {
        34: [fields[0] + "  " + fields[1] + "  " + fields[2]],
        33: [" ".join(fields)],
        31: [fields[0] + " " + fields[1], "  " + fields[2]],
    }
    for width, lines in expected.items():
        monkeypatch.setattr(progress, "line_width", lambda width=width: width)
        monkeypatch.setattr("utils.console.line_width", lambda width=width: width)
        assert one_line(fields).splitlines() == lines


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (125, "2m05s"), (725, "12m"), (3600, "1h00m"), (11_270, "3h07m"),
        (61_300, "17h"), (86_400, "1d00h"), (97_300, "1d03h"), (1_000_000, "11d"),
    ],
)  # fmt: skip
def test_time_left_in_two_units_at_most(seconds, words):
    assert time_left(seconds) == words
