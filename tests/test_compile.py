"""train.compile in whole runs: names, resuming, ranks, evaluation, and what a machine without a compiler says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import OptimizerOptions
from tests.support.comparing import assert_same_state, mathematics, state_of
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, PRETRAIN, finetune, in_one_line, pretrain, small_run, start, torchrun
from utils.distributed import World
from utils.errors import UserError
from utils.training.compiling import check_compile
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

pytestmark = pytest.mark.process
COMPILED = "train.compile=eager"
CHECKPOINT = "checkpoints/last.pt"


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 training images, 3 steps of 8, and 6 validation images."""
    return data_set(tmp_path_factory.mktemp("images"), train=8, val=2)


@pytest.mark.parametrize(("main", "entry"), [(pretrain, PRETRAIN), (finetune, FINETUNE)])
def test_a_compiled_run_has_the_checkpoint_log_and_scores_of_a_plain_one(main, entry, images, tmp_path):
    """With accumulation, the average, drop path; its evaluations run the bare model."""
    more = ("optimizer.ema_decay=0.9", "model.drop_path=0.3", "schedule.epochs=2")
    for name, words in (("plain", ()), ("compiled", (COMPILED,))):
        main(small_run(entry, images, tmp_path / name, *more, *words))
    assert_same_state(tmp_path / "plain" / CHECKPOINT, tmp_path / "compiled" / CHECKPOINT)
    assert mathematics(tmp_path / "plain") == mathematics(tmp_path / "compiled")


def test_a_compiled_run_resumes_exactly_and_keeps_being_compiled(images, tmp_path):
    words = (COMPILED, "checkpoint.every_steps=1", "checkpoint.keep=9", "model.drop_path=0.3")
    pretrain(small_run(PRETRAIN, images, tmp_path / "whole", *words))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", symlinks=True)
    leave_steps(tmp_path / "resumed", until=2)
    shutil.copytree(tmp_path / "resumed", tmp_path / "changed", symlinks=True)
    pretrain([*small_run(PRETRAIN, images, tmp_path / "resumed", *words), "--resume", "auto"])
    assert_same_state(tmp_path / "whole" / CHECKPOINT, tmp_path / "resumed" / CHECKPOINT)
    with pytest.raises(UserError, match=r"train\.compile"):
        pretrain([*small_run(PRETRAIN, images, tmp_path / "changed", *words[1:]), "--resume", "auto"])


def leave_steps(output: Path, until: int) -> None:
    """The run as if it had ended after so many steps."""
    (output / "result.json").unlink()
    for path in (output / "checkpoints").glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > until:
            path.unlink()
    last = output / CHECKPOINT
    last.unlink()
    last.symlink_to(f"step_{until:08d}.pt")


def test_two_compiled_ranks_have_the_weights_of_two_plain_ones(images, tmp_path):
    """Behind DistributedDataParallel, with gradients that are not exchanged in the first of two micro-batches."""
    for name, words in (("plain", ()), ("compiled", (COMPILED,))):
        output = tmp_path / name
        code, printed = torchrun(
            2, "pretrain.py", *small_run(PRETRAIN, images, output, "train.images_per_device=2", *words)
        )
        assert code == 0, printed
    assert_same_state(tmp_path / "plain" / CHECKPOINT, tmp_path / "compiled" / CHECKPOINT)
    assert not any("_orig_mod" in name for name in state_of(tmp_path / "compiled" / CHECKPOINT)["model"])


# Inductor, which needs a compiler.


def test_without_a_compiler_a_run_ends_before_its_first_step(images, tmp_path):
    words = small_run(PRETRAIN, images, tmp_path / "run", "train.compile=inductor", "run.device=cpu")
    process = start([sys.executable, "pretrain.py", *words], CXX="no_such_compiler")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "train.compile = inductor: cannot compile on this machine" in in_one_line(printed)
    assert "leave train.compile out" in in_one_line(printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "run/log.jsonl").exists()


def small_state(compile_with: str | None) -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    optimizer = make_optimizer(model, OptimizerOptions())
    world = World(0, 1, 1, torch.device("cpu"))
    return TrainingState(model, optimizer, world, torch.float32, compile_with=compile_with)


def losses_of(state: TrainingState, rate: float) -> list[float]:
    """Of four steps on the same images."""

    def squared_error(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
        return F.mse_loss(model(x), y), {}

    draw = torch.Generator().manual_seed(0)
    batch = (torch.randn(8, 3, 6, 6, generator=draw), torch.randn(8, 4, generator=draw))
    losses = []
    for step in range(4):
        losses.append(training_step(state, step, rate, [batch], squared_error)["loss"][0].item())
    return losses


def test_inductor_trains_and_its_random_numbers_are_those_of_the_step(tmp_path, monkeypatch):
    """Its dropout draws other numbers than torch's own, but the same in a repeated step, and others in the next one."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run can leave half a file in the usual one
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        with pytest.raises(UserError, match="cannot compile on this machine"):
            check_compile("inductor", torch.device("cpu"))
        return
    check_compile("inductor", torch.device("cpu"))
    at_rest = losses_of(small_state("inductor"), rate=0.0)
    assert len(set(at_rest)) == 4
    assert losses_of(small_state("inductor"), rate=0.0) == at_rest
    plain, compiled = small_state(None), small_state("inductor")
    for state in (plain, compiled):
        state.model[3].p = 0.0
    expected = losses_of(plain, rate=0.1)
    assert losses_of(compiled, rate=0.1) == pytest.approx(expected, rel=1e-4)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
