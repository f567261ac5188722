"""check_machine sees a NaN that leaks, a scale that stays, steps that do not repeat, counts that differ."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from models.mfm import MaskedFrequencyModelling
from scripts.machine import guards, scoring
from scripts.machine.rows import FAIL, PASS
from scripts.machine.workload import Workload
from utils.distributed import World
from utils.training import step


@pytest.fixture
def work(tmp_path) -> Workload:
    return Workload(World(0, 1, 1, torch.device("cpu")), "resnet18", pixels=32, images=2, folder=tmp_path)


@pytest.mark.process
def test_bad_steps_change_nothing(work):
    nan, overflow = guards.bad_step_rows(work)
    assert nan.result == overflow.result == PASS
    assert overflow.values["scale_after"] == overflow.values["scale_before"] / 2


def test_a_nan_that_leaks_fails(work, monkeypatch):
    monkeypatch.setattr(step, "guarded_update", lambda state, bad: state.optimizer.step())
    row = guards.nan_row(work)
    assert row.result == FAIL and "NaN would enter the weights" in row.remedy and "ema.module." in row.remedy


@pytest.mark.process
def test_a_scale_that_stays_fails(work, monkeypatch):
    update = torch.amp.GradScaler.update

    def without_effect(self: torch.amp.GradScaler) -> None:
        scale = self.get_scale()
        update(self)
        self._scale.fill_(scale)

    monkeypatch.setattr(torch.amp.GradScaler, "update", without_effect)
    assert guards.overflow_row(work).result == FAIL


@pytest.mark.process
def test_steps_repeat_and_the_switches_are_put_back(work):
    assert [row.result for row in guards.repeat_rows(work)] == [PASS, PASS]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not list(work.folder.rglob("*.pt"))


@pytest.mark.process
def test_steps_that_do_not_repeat_fail(work, monkeypatch):
    calls = itertools.count()
    loss = MaskedFrequencyModelling.loss

    def drifting(self: MaskedFrequencyModelling, *arguments: object) -> tuple:
        value, metrics = loss(self, *arguments)
        return value * (1 + 1e-5 * next(calls)), metrics

    monkeypatch.setattr(MaskedFrequencyModelling, "loss", drifting)
    assert [row.result for row in guards.repeat_rows(work)] == [FAIL, FAIL]


def test_equal_evaluations_pass(work):
    [row] = scoring.evaluation_rows(work)
    assert row.result == PASS and row.values["first"][0] == 7 and row.values["loss_difference"] == 0


class Changing(nn.Module):
    """Other logits at each call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.randn(len(images), 10, generator=torch.Generator().manual_seed(self.calls))


def test_unequal_counts_fail(work):
    row = scoring.counts_row(work, Changing())
    assert row.result == FAIL and row.values["first"] != row.values["second"]
