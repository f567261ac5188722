"""Finetuning of the head alone, and with layer-wise learning rates: what moves, and that resuming is exact."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.schema import FinetuneConfig, FinetuneOptimizerOptions
from models.trunk import Trunk, freeze, make_trunk
from tests.support.comparing import assert_same_state, mathematics
from tests.support.helpers import data_set
from tests.support.launch import FINETUNE, finetune, in_one_line, overriding, torchrun
from utils.config import parse_command_line
from utils.distributed import World
from utils.errors import UserError
from utils.run.checkpoint import read_checkpoint
from utils.training.average import AverageRule
from utils.training.evaluation import in_evaluation
from utils.training.micro_batch import check_micro_batch
from utils.training.optimizer import OPTIMIZERS, make_optimizer
from utils.training.step import TrainingState, training_step

CLASSES = 5


def settled_trunk(frozen: bool = True) -> Trunk:
    """A ResNet-18 whose BatchNorm statistics are those of some images."""
    torch.manual_seed(0)
    trunk = make_trunk("resnet18", CLASSES)
    for _ in range(5):
        trunk.classifier(torch.randn(8, 3, 32, 32))
    if frozen:
        freeze(trunk)
    return trunk


def state_of(trunk: Trunk, **options) -> TrainingState:
    model = trunk.classifier
    optimizer = make_optimizer(model, FinetuneOptimizerOptions(**options))
    cpu = World(0, 1, 1, torch.device("cpu"))
    return TrainingState(model, optimizer, cpu, torch.float32, average_rule=AverageRule(0.5))


def images_of(step: int) -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(step))


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def cross_entropy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor):
    return F.cross_entropy(network(images), labels), {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_head_moves_and_neither_weights_nor_statistics_of_the_trunk_do(name):
    """Also not after an evaluation, which puts a model back into training; nor in the average."""
    trunk = settled_trunk()
    before = {key: tensor.clone() for key, tensor in trunk.classifier.state_dict().items()}
    state = state_of(trunk, name=name, learning_rate=0.1)
    for step in range(2):
        training_step(state, step, 0.1, [(images_of(step), LABELS)], cross_entropy)
        with in_evaluation(state.model), torch.no_grad():
            state.model(images_of(step))
    for averaged in (False, True):
        module = state.average.module if averaged else state.model
        after = module.state_dict()
        moved = {key for key, tensor in before.items() if not torch.equal(after[key], tensor)}
        assert moved == {"fc.weight", "fc.bias"}
    assert len(state.optimizer.state_dict()["state"]) == 2
    assert all(parameter.grad is None for parameter in trunk.module.parameters())


def test_a_trunk_that_is_not_frozen_does_move():
    trunk = settled_trunk(frozen=False)
    before = {key: tensor.clone() for key, tensor in trunk.classifier.state_dict().items()}
    state = state_of(trunk, learning_rate=0.1)
    training_step(state, 0, 0.1, [(images_of(0), LABELS)], cross_entropy)
    assert [key for key, tensor in before.items() if torch.equal(state.model.state_dict()[key], tensor)] == []


def test_the_head_is_a_linear_classifier_of_features_in_evaluation():
    """MoCo's probe written out: features once, then softmax regression by SGD with momentum, in float64."""
    trunk = settled_trunk()
    trunk.classifier.double()
    in_evaluation_mode = copy.deepcopy(trunk.module).eval()
    with torch.no_grad():
        features = [in_evaluation_mode(images_of(step).double()).mean((2, 3)) for step in range(5)]
    weight, bias = (parameter.detach().clone() for parameter in trunk.classifier.fc.parameters())
    velocities = [torch.zeros_like(weight), torch.zeros_like(bias)]
    one_hot = F.one_hot(LABELS, CLASSES).double()
    for step in range(5):
        error = ((features[step] @ weight.T + bias).softmax(1) - one_hot) / len(LABELS)
        for velocity, gradient in zip(velocities, (error.T @ features[step], error.sum(0)), strict=True):
            velocity.mul_(0.9).add_(gradient)
        weight -= 30 * velocities[0]
        bias -= 30 * velocities[1]
    state = state_of(trunk, name="sgd", learning_rate=30.0, momentum=0.9, nesterov=False, weight_decay=0.0)
    for step in range(5):
        training_step(state, step, 30.0, [(images_of(step).double(), LABELS)], cross_entropy)
    torch.testing.assert_close(trunk.classifier.fc.weight.detach(), weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trunk.classifier.fc.bias.detach(), bias, rtol=1e-9, atol=1e-9)


def test_a_frozen_trunk_takes_one_image_at_a_time():
    """Its BatchNorms need no second value a channel."""
    words = ["model.name=resnet18", "data.train_crop_size=32", "train.images_per_device=1", "data.cutmix_alpha=0"]
    config = parse_command_line(FinetuneConfig, [*words, "data.mixup_alpha=0"], "a test")
    with pytest.raises(UserError, match="BatchNorm needs two values"):
        check_micro_batch(config, settled_trunk(frozen=False).classifier, world_size=1)
    check_micro_batch(config, settled_trunk().classifier, world_size=1)


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """27 training images in 3 classes: an epoch is 3 steps of 8."""
    return data_set(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(settled_trunk().classifier.state_dict(), path)
    return path


def words_of(noise: Path, *more: str) -> list[str]:
    words = ["--epochs", "2", "--batch-size", "8", "train.images_per_device=4", "data.mixup_alpha=0.1"]
    words += ["data.cutmix_alpha=1", "--val-resize-size", "32", "--data-path", str(noise)]
    return overriding([*FINETUNE, *words, "checkpoint.every_steps=1", "checkpoint.keep=9"], *more)


def run(ranks: int, words: list[str], output: Path) -> None:
    if ranks == 1:
        assert finetune([*words, "--output-dir", str(output)]) == 0
        return
    code, printed = torchrun(ranks, "finetune.py", *words, "--output-dir", str(output))
    assert code == 0, printed


FROZEN = ["model.freeze_trunk=true", "optimizer.name=sgd", "optimizer.learning_rate=30", "optimizer.ema_decay=0.9"]
DECAYED = ["optimizer.layer_decay=0.7", "optimizer.weight_decay_on=matrices", "optimizer.ema_decay=0.9"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("knobs", "ranks"),
    [(FROZEN, 1), (FROZEN, 2), (DECAYED, 1), ([*DECAYED, "optimizer.name=lamb", "model.drop_path=0.4"], 2)],
    ids=["frozen", "frozen on 2 ranks", "layer decay", "layer decay of LAMB on 2 ranks"],
)
def test_resuming_in_the_middle_of_an_epoch_is_exact(knobs, ranks, noise, weights, tmp_path):
    words = words_of(noise, *knobs, "--weights", str(weights))
    whole, part = tmp_path / "whole", tmp_path / "part"
    run(ranks, words, whole)
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints/step_00000004.pt", part / "checkpoints")  # one step into the second epoch
    shutil.copy(whole / "log.jsonl", part)
    run(ranks, [*words, "--resume", "auto"], part)
    assert_same_state(whole / "checkpoints/last.pt", part / "checkpoints/last.pt")
    assert mathematics(part) == mathematics(whole)

    saved, start = read_checkpoint(whole / "checkpoints/last.pt"), torch.load(weights, weights_only=True)
    kept = {key for key, tensor in start.items() if torch.equal(saved["model"][key], tensor)}
    if knobs is FROZEN:
        assert kept == start.keys() - {"fc.weight", "fc.bias"}
        assert len(saved["optimizer"]["state"]) == 2
    else:
        assert not kept


@pytest.mark.process
def test_the_logged_learning_rate_is_that_of_the_head(noise, weights, tmp_path):
    run(1, words_of(noise, "--weights", str(weights)), tmp_path / "plain")
    run(1, words_of(noise, "--weights", str(weights), "optimizer.layer_decay=0.5"), tmp_path / "decay")
    rates = [
        [line["learning_rate"] for line in mathematics(tmp_path / name) if "learning_rate" in line]
        for name in ("plain", "decay")
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 6


@pytest.mark.process
def test_a_frozen_trunk_needs_weights_unless_a_checkpoint_has_them(noise, weights, tmp_path, capsys):
    words = words_of(noise, *FROZEN)
    with pytest.raises(UserError, match=r"model\.freeze_trunk = true: needs run\.weights"):
        run(1, words, tmp_path)
    run(1, [*words, "--weights", str(weights)], tmp_path)
    assert "1,539 of them trained" in in_one_line(capsys.readouterr().out)
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints/step_00000006.pt").unlink()
    run(1, [*words, "--resume", "auto"], tmp_path)
    assert finetune([*words_of(noise), "--eval-only", "--weights", str(tmp_path / "checkpoints/last.pt")]) == 0
