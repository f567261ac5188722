"""What must not depend on the number of ranks: gradients, evaluation counts, and the refusal of a step."""

from __future__ import annotations

import multiprocessing
import os
import socket

import pytest
import torch

from configs.schema import OptimizerOptions
from data.folder import ImageFolder
from data.loader import batch_loader
from data.samples import EvaluationSamples
from data.sampling import BatchPlan
from losses.frequency import MaskedFrequencyLoss
from models.classifier import ResizedViews
from models.frequency_filter import FrequencyFilter
from models.mfm import masked_frequency_network
from models.normalize import Normalizer
from models.trunk import make_trunk
from tests.support.helpers import image_folder
from utils.distributed import World, join
from utils.training.evaluation import evaluate, share_of_rank
from utils.training.optimizer import make_optimizer
from utils.training.step import TrainingState, training_step

pytestmark = pytest.mark.process
BATCH, PER_DEVICE = 8, 2


def on_ranks(ranks: int, task, *arguments):
    """`task(world, *arguments)` on every rank of a gloo job of real processes; rank 0's result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank_main, args=(r, ranks, port, queue, task, arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    result = queue.get(timeout=120)
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return result


def rank_main(rank, ranks, port, queue, task, arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = task(join("cpu", 1), *arguments)
    if rank == 0:
        queue.put(result)
    torch.distributed.destroy_process_group()


def one_step(world: World, poisoned: int | None, optimizer: str = "adamw", drop_path: float = 0.0) -> dict[str, list]:
    """Gradients and new weights of a float64 step over all micro-batches, one of them with a NaN."""
    torch.manual_seed(0)
    model = masked_frequency_network(make_trunk("resnet18", drop_path=drop_path), 1).double()
    images = torch.randn(BATCH, 3, 32, 32, dtype=torch.float64)
    keep_low = torch.arange(BATCH) % 3 == 0
    frequency_filter, frequency_loss = FrequencyFilter(3), MaskedFrequencyLoss(reduction="batch")
    plan = BatchPlan.make(
        length=BATCH, batch_size=BATCH, images_per_device=PER_DEVICE, epochs=1, rank=world.rank, world_size=world.size
    )
    options = OptimizerOptions(name=optimizer, weight_decay_on="matrices")
    state = TrainingState(model, make_optimizer(model, options), world, torch.float32)
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def loss_of(replica, images, keep_low, number):
        removed = frequency_filter.removed(keep_low, 32, 32)
        loss = frequency_loss(replica(images), images.mean(1, keepdim=True), removed)
        return loss * (float("nan") if number == poisoned else 1), {}

    micro_batches = []
    for number in range(world.rank, BATCH // PER_DEVICE, world.size):
        part = slice(number * PER_DEVICE, (number + 1) * PER_DEVICE)
        micro_batches.append((images[part], keep_low[part], number))
    assert len(micro_batches) == plan.accumulation
    metrics = training_step(state, 0, 1e-3, micro_batches, loss_of)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    total, count = (world.sum(value.double()) for value in metrics["loss"])
    return {
        "gradients": [parameter.grad.numpy() for parameter in model.parameters()],
        "weights": [parameter.detach().numpy() for parameter in model.parameters()],
        "loss": float(total / count), "unchanged": unchanged, "healthy": state.first_bad_step() is None,
    }  # fmt: skip


def unlike_gradients(world: World) -> int:
    """Of how many parameters two passes over the same images give unlike gradients, nothing having changed between."""
    torch.manual_seed(0)
    model = masked_frequency_network(make_trunk("resnet18"), 1)
    state = TrainingState(model, make_optimizer(model, OptimizerOptions()), world, torch.float32)
    torch.manual_seed(world.rank)
    images, passes = torch.randn(2, 3, 32, 32), []
    for _ in range(2):
        state.optimizer.zero_grad(set_to_none=True)
        state.replica(images).square().mean().backward()
        passes.append([parameter.grad.clone() for parameter in model.parameters()])
    return sum(not torch.equal(*pair) for pair in zip(*passes, strict=True))


def test_the_first_step_after_a_start_sums_gradients_in_the_order_of_all_later_ones():
    """Three ranks, since a + b has no order: DDP regroups after its first pass, which a resumed run would take anew."""
    assert on_ranks(3, unlike_gradients) == 0


def evaluation_rows(world: World, root: str) -> list[dict]:
    torch.manual_seed(0)
    model = make_trunk("resnet18", 3).classifier
    torch.manual_seed(world.rank)  # running statistics that differ from rank to rank: rank 0's must win
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer) * 0.1)
    folder = ImageFolder(root)
    batches = batch_loader(
        EvaluationSamples(folder, (32, 40), 32, "bicubic"), share_of_rank(len(folder), world, 7), 0, world.device
    )
    views = ResizedViews(Normalizer((0.4,) * 3, (0.2,) * 3), (32, 40))
    return evaluate(model, batches, views, len(folder), world)


ONE = World(0, 1, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def alone():
    return one_step(ONE, None)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_times_accumulation_give_one_gradient(alone, ranks):
    together = on_ranks(ranks, one_step, None)
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    for expected, got in zip(alone["gradients"], together["gradients"], strict=True):
        assert abs(expected).max() > 0
        assert abs(got - expected).max() <= 1e-10 * abs(expected).max()


def test_two_ranks_take_the_lamb_step_of_one_and_drop_the_same_paths(alone):
    """The paths of a micro-batch are keyed by its number in the step, whichever rank has it."""
    one, two = one_step(ONE, None, "lamb", 0.5), on_ranks(2, one_step, None, "lamb", 0.5)
    for key in ("gradients", "weights"):
        for expected, got in zip(one[key], two[key], strict=True):
            assert abs(got - expected).max() <= 1e-9 * abs(expected).max()
    assert one["loss"] != pytest.approx(alone["loss"], rel=1e-3)  # paths were dropped


@pytest.mark.parametrize("ranks, poisoned", [(1, 2), (2, 1), (2, 2)])
def test_a_nan_in_one_micro_batch_of_one_rank_changes_no_weight_on_rank_0(ranks, poisoned):
    result = one_step(ONE, poisoned) if ranks == 1 else on_ranks(ranks, one_step, poisoned)
    assert result["unchanged"] and not result["healthy"]


def test_evaluation_counts_each_of_103_images_once_on_1_2_and_3_ranks(tmp_path):
    image_folder(tmp_path, classes=("a", "b"), per_class=34)
    image_folder(tmp_path, classes=("c",), per_class=35, seed=1)
    alone = evaluation_rows(ONE, str(tmp_path))
    assert [row["images"] for row in alone] == [103, 103]
    for ranks in (2, 3):
        for expected, got in zip(alone, on_ranks(ranks, evaluation_rows, str(tmp_path)), strict=True):
            assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)
            assert got | {"loss": 0} == expected | {"loss": 0}
