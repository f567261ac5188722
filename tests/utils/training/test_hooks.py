"""Every so many steps: when hooks are due, and what checkpoints must not hold."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import OptimizerOptions
from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import Checkpoints, read_checkpoint
from utils.run.job import Job
from utils.run.log import RunLog
from utils.training.hooks import Every, SaveCheckpoint, ShowReconstructions, StopOnBadNumbers, run_due
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step, warm_up_ddp_buckets

CPU = World(0, 1, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (50, [7]), (None, [7])]
)
def test_every_so_many_completed_steps_and_after_the_last(steps, expected):
    assert [step for step in range(8) if Every(steps, last=7).due(step)] == expected


def test_hooks_run_in_their_order_where_they_are_due():
    calls = []

    class Note:
        def __init__(self, name, steps):
            self.name, self.every = name, Every(steps, last=4)

        def due(self, step):
            return self.every.due(step)

        def run(self, step):
            calls.append((self.name, step))

    for step in range(5):
        run_due([Note("a", 2), Note("b", None), Note("c", 3)], step)
    assert calls == [("a", 2), ("c", 3), ("a", 4), ("b", 4), ("c", 4)]


class Run:
    """A run of 6 steps of a tiny model, with its log and checkpoints."""

    def __init__(self, folder, every_steps=None, keep=9, on_save_error="stop", before=()):
        model = nn.Linear(4, 3)
        self.state = TrainingState(model, make_optimizer(model, OptimizerOptions()), CPU, torch.float32)
        checkpoints = Checkpoints(folder / "checkpoints", keep, every_steps, 15, on_save_error)
        self.job = Job(
            world=CPU, dtype=torch.float32, output=folder, checkpoints=checkpoints, resume=None, workers=0, lock=None
        )
        self.log = RunLog(folder, CPU, every_steps=2, first_step=0, total_steps=6, steps_per_epoch=3, batch_size=8)
        self.save = SaveCheckpoint(self.log, self.state, self.job, {"classes": ["ant"]}, before)
        self.stop = StopOnBadNumbers(self.log, self.state, self.job, lambda step: np.arange(8) + 8 * step, before)

    def take(self, step, factor=1.0):
        """One step, counted from 0, and the hooks after it."""

        def loss_of(model, x):
            return (model(x) * factor).square().mean(), {}

        training_step(self.state, step, 0.01, [(torch.ones(2, 4),)], loss_of)
        run_due([self.stop, self.save], step + 1)

    def saved(self):
        return [int(path.stem.removeprefix("step_")) for path in self.job.checkpoints.all()]


def test_checkpoints_are_saved_when_due_before_an_evaluation_and_at_the_end(tmp_path):
    run = Run(tmp_path, every_steps=4, before=(Every(3, last=6),))
    for step in range(6):
        run.take(step)
    assert run.saved() == [3, 4, 6]
    assert read_checkpoint(run.job.checkpoints.newest())["classes"] == ["ant"]


def test_a_bad_step_is_never_saved_and_ends_the_run_at_the_next_line(tmp_path):
    run = Run(tmp_path, every_steps=1)
    run.take(0)
    run.take(1)
    run.take(2, factor=float("nan"))
    assert run.saved() == [1, 2]
    with pytest.raises(UserError, match=r"not finite in step 3 .*not_finite\.json.*step_00000002\.pt"):
        run.take(3)
    assert run.saved() == [1, 2]


def test_a_bad_step_between_two_log_lines_ends_the_run_before_an_evaluation(tmp_path):
    evaluation = Every(3, last=6)
    run = Run(tmp_path, before=(evaluation,))
    run.log.every = Every(50, last=6)
    run.take(0)
    run.take(1, factor=float("nan"))
    with pytest.raises(UserError, match="not finite in step 2 "):
        run.take(2)
    assert run.saved() == []


def test_the_checkpoint_of_a_stop_is_not_written_twice(tmp_path, monkeypatch):
    run = Run(tmp_path, every_steps=1)
    run.take(0)
    written = run.job.checkpoints.newest().stat().st_mtime_ns
    run.save.run(1, required=True)
    assert run.job.checkpoints.newest().stat().st_mtime_ns == written
    run.save.run(2, required=True)
    assert run.saved() == [1, 2]


def test_a_save_that_fails_ends_the_run_only_where_it_must(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path, every_steps=1, on_save_error="continue")

    def refuse(_step, _content):
        raise UserError("no room")

    monkeypatch.setattr(run.job.checkpoints, "save", refuse)
    run.take(0)
    assert "warning: no room" in capsys.readouterr().out
    with pytest.raises(UserError, match="no room"):
        run.save.run(1, required=True)  # on a stop: what is not saved now is lost
    with pytest.raises(UserError, match="no room"):
        run.save.run(6)  # the last step's is the result


class Watch(nn.Module):
    """Notes whether cuDNN would search for the fastest algorithm while this module computes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.searches = []

    def forward(self, images):
        self.searches.append(torch.backends.cudnn.benchmark)
        return images * self.weight


def test_shapes_that_are_met_once_are_not_searched_for(tmp_path, monkeypatch):
    """The black image of the buckets' warm-up, and the few images of the pictures."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    model = Watch()
    warm_up_ddp_buckets(model, 32)

    class ShowsNothing:
        def show(self, network, images):
            network(images)
            return {}

    log = RunLog(tmp_path, CPU, every_steps=2, first_step=0, total_steps=6, steps_per_epoch=3, batch_size=8)
    ShowReconstructions(Every(3, 6), ShowsNothing(), model, torch.ones(2, 3, 4, 4), (), log).run(3)
    log.close()
    assert model.searches == [False, False]
    assert torch.backends.cudnn.benchmark
