"""What a machine gives a training: versions, driver, kernels, memory, cores."""

import re
import time
from pathlib import Path

import torch

from scripts.machine.rows import Row, judged
from scripts.machine.workload import RECIPE_PIXELS, Workload
from utils.devices import missing_kernels
from utils.errors import UserError
from utils.limits import available_cores, check_loader_limits, free_memory, free_shared_memory
from utils.run.provenance import versions

MACHINE = "machine"
RECIPE_IMAGES = 256  # of a micro-batch of the recipes
GB = 1e9  # bytes
# A rank that loads ImageNet and holds a few batches of each of its workers; torch with CUDA alone takes 2 to 3 GB.
LEAST_FREE_GB_A_RANK = 4
LEAST_FREE_SHARE = 0.9  # of a GPU's memory, before this program's own


def environment_rows(work: Workload) -> list[Row]:
    rows = [Row(MACHINE, "versions", ", ".join(f"{name} {value}" for name, value in versions().items()))]
    if work.device.type == "cuda":
        rows += gpu_rows(work.device)
    ranks, cores = work.world.local_size, available_cores()
    rows.append(memory_row("the machine", free_memory() / GB, LEAST_FREE_GB_A_RANK * ranks))
    rows.append(shared_memory_row(max(1, cores // ranks), ranks))
    rows.append(Row(MACHINE, "cores a rank", f"{cores / ranks:.1f} of {cores}", values={"cores": cores}))
    return rows


def gpu_rows(device: torch.device) -> list[Row]:
    """The card, its driver, whether torch has kernels for it, and how much of its memory others have."""
    capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    card = f"{torch.cuda.get_device_name(device)}, compute capability {capability[0]}.{capability[1]}"
    rows = [
        Row(MACHINE, "card", card),
        Row(MACHINE, "driver, CUDA and cuDNN of torch", f"{driver_version()}, {torch.version.cuda}, {cudnn_version()}"),
        kernel_row(capability, architectures),
    ]
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    rows.append(memory_row("the GPU", (free + own) / GB, LEAST_FREE_SHARE * total / GB))
    return rows


def kernel_row(capability: tuple[int, int], architectures: list[str]) -> Row:
    problem = missing_kernels(capability, architectures)
    return judged(
        MACHINE, "torch's kernels for this card", problem is None, " ".join(architectures),
        f"sm_{capability[0]}x", problem or "",
    )  # fmt: skip


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Of NVIDIA's driver; "unknown" where the system does not say."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"Kernel Module\D* (\d[\d.]+)", text)
    return match[1] if match else "unknown"


def cudnn_version() -> str:
    return str(torch.backends.cudnn.version() or "none")


def memory_row(whose: str, free_gb: float, needed_gb: float) -> Row:
    remedy = "end the other programs (nvidia-smi or top names them), or take another machine"
    return judged(
        MACHINE, f"free memory of {whose}", free_gb >= needed_gb, f"{free_gb:.1f} GB", f"at least {needed_gb:.1f} GB",
        remedy, {"free_gb": free_gb, "needed_gb": needed_gb},
    )  # fmt: skip


def shared_memory_row(workers: int, ranks: int, batch_bytes: int = 3 * RECIPE_IMAGES * RECIPE_PIXELS**2) -> Row:
    """Whether a batch of each loader worker fits into /dev/shm, and they may open enough files.

    Args:
        workers: loader processes of each rank.
        ranks: on this machine.
    """
    problem = ""
    try:
        check_loader_limits(workers, ranks, batch_bytes)
    except UserError as error:
        problem = str(error)
    needed = workers * ranks * batch_bytes / 2**20
    return judged(
        MACHINE, "/dev/shm, and open files", not problem, f"{free_shared_memory()} MiB free",
        f"at least {needed:.0f} MiB: {workers} workers a rank, {RECIPE_IMAGES} images each", problem,
    )  # fmt: skip


def today() -> str:
    return time.strftime("%Y-%m-%d")
