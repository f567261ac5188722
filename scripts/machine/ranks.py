"""What the ranks of a job do together: the exchange of gradients, and a step."""

import torch
import torch.distributed as dist

from scripts.machine.rows import INFORMATION, Row, judged, not_run
from scripts.machine.speed import WholeStep, default_mode, seconds_of
from scripts.machine.workload import Training, Workload, config_of
from utils.distributed import World

RANKS = "ranks"
EXCHANGED_BYTES = {"cuda": 102_000_000, "cpu": 16_000_000}  # a ResNet-50's gradients; less, where it takes long
GOOD_SHARE = 0.8  # of the images/s of the ranks alone


def rank_rows(work: Workload, alone_rate: float) -> tuple[list[Row], float]:
    """The rows, and the images/s of all ranks together.

    Args:
        alone_rate: images/s of a step of this rank without the others.
    """
    if work.world.size == 1:
        remedy = "torchrun --standalone --nproc_per_node=N scripts/check_machine.py measures N GPUs"
        return [not_run(RANKS, "all_reduce, and the step of all ranks", remedy)], alone_rate
    bandwidth = all_reduce_gb_per_second(work.world)
    training = Training.start(work, config_of(work, default_mode(work.device).settings), work.world)
    seconds = max(work.world.gather(seconds_of(WholeStep(training), work.device, turns=5)))
    together = sum(work.world.gather(work.images)) / seconds
    sums = work.world.gather(checksum(training))
    best = sum(work.world.gather(alone_rate))
    rows = [
        Row(RANKS, "all_reduce, bus bandwidth", f"{bandwidth:.2f} GB/s", values={"gb_per_second": bandwidth}),
        step_row(together, best, work.world.size),
        judged(
            RANKS, "weights of all ranks after the steps", len(set(sums)) == 1, f"{len(set(sums))} kinds", "one",
            "the exchange gives the ranks unlike gradients: look at NCCL's version and the links between the GPUs",
        ),
    ]  # fmt: skip
    return rows, together


def step_row(together: float, best: float, ranks: int) -> Row:
    share = together / best
    remedy = ""
    if share < GOOD_SHARE:
        remedy = "look at the links (nvidia-smi topo -m), the network and the cores a rank"
    return Row(
        RANKS, f"step of {ranks} ranks; share of what they do alone", f"{together:.0f} images/s; {share:.2f}", "",
        INFORMATION, remedy, {"images_per_second": together, "share": share},
    )  # fmt: skip


def all_reduce_gb_per_second(world: World) -> float:
    """Bus bandwidth as NCCL's tests count it: 2 (N − 1) / N times the bytes, over the time."""
    size = EXCHANGED_BYTES[world.device.type]
    tensor = torch.zeros(size // 4, device=world.device)
    seconds = max(world.gather(seconds_of(lambda: dist.all_reduce(tensor), world.device, turns=10)))
    return 2 * (world.size - 1) / world.size * size / seconds / 1e9


def checksum(training: Training) -> float:
    """Of the weights, without BatchNorm's statistics, which are each rank's own."""
    total = 0.0
    for number, parameter in enumerate(training.state.model.parameters(), start=1):
        total += number * parameter.double().sum().item()
    return total
