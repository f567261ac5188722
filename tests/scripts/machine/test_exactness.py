"""check_machine sees wrong numbers: of the filter, the loss, the steps."""

from __future__ import annotations

import pytest
import torch

from configs.schema import FilterOptions
from models import corruption
from models.frequency_filter import FrequencyFilter
from scripts.machine import exactness
from scripts.machine.rows import FAIL, PASS
from scripts.machine.workload import Workload
from utils.distributed import World
from utils.training import step


@pytest.fixture
def work(tmp_path) -> Workload:
    return Workload(World(0, 1, 1, torch.device("cpu")), "resnet18", pixels=32, images=4, folder=tmp_path)


def failed(rows: list) -> list[str]:
    assert {row.result for row in rows} <= {PASS, FAIL}
    return [row.what for row in rows if row.result == FAIL]


def test_filter_and_loss_are_the_formulas(work):
    assert failed(exactness.filter_and_loss_rows(work)) == []


def test_a_radius_that_is_off_by_one_fails(work, monkeypatch):
    def wrong_filter(options: FilterOptions, size: int, device: torch.device) -> FrequencyFilter:
        return FrequencyFilter(options.radius + 1, output=options.output, clamp=options.clamp)

    monkeypatch.setattr(corruption, "make_filter", wrong_filter)
    assert len(failed(exactness.filter_and_loss_rows(work))) == 6


def test_a_filter_in_tf32_fails(work, monkeypatch):
    def rounded(self: FrequencyFilter, images: torch.Tensor, keep_low: torch.Tensor) -> torch.Tensor:
        rounded_images = (images.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits of 23
        return exact(self, rounded_images, keep_low)

    exact = FrequencyFilter.__call__
    monkeypatch.setattr(FrequencyFilter, "__call__", rounded)
    what = failed(exactness.filter_and_loss_rows(work))
    assert [name.startswith("filtered images") for name in what] == [True, True]


def test_a_number_that_is_none_fails():
    assert exactness.at_most("s", "w", float("nan"), 1.0, "").result == FAIL


@pytest.mark.process
def test_steps_are_those_of_another_memory_layout(work):
    assert failed(exactness.training_step_rows(work)) == []


@pytest.mark.process
def test_steps_without_their_clip_or_average_fail(work, monkeypatch):
    right = exactness.steps_taken

    def without_clip(work: Workload, settings: dict, world: World) -> dict:
        if "model.channels_last" in settings:
            return right(work, settings, world)
        return right(work, settings | {"optimizer.clip_grad_norm": None}, world)

    monkeypatch.setattr(exactness, "WAY_LIMITS", {"sgd": exactness.WAY_LIMITS["sgd"]})
    monkeypatch.setattr(exactness, "steps_taken", without_clip)
    assert [name.rpartition("of ")[2] for name in failed(exactness.training_step_rows(work))][1:] != []
    monkeypatch.setattr(exactness, "steps_taken", right)
    update, updates = step.update_average, []

    def late(*arguments: object) -> None:
        updates.append(1)
        if len(updates) > 3:  # those of the device come after the three of the CPU
            return
        update(*arguments)

    monkeypatch.setattr(step, "update_average", late)
    [what] = failed(exactness.training_step_rows(work))
    assert "error of ema" in what
