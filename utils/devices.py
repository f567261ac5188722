"""Which device a rank takes, and why a GPU of this machine cannot be used."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.errors import UserError, first_line


@dataclass(frozen=True)
class GpuFacts:
    """What is known of a machine's GPUs before one is used."""

    in_machine: int  # device files of NVIDIA's driver
    usable: int  # torch.cuda.device_count()
    cuda_of_torch: str | None  # as "12.8"; None: built without
    complaint: str  # what torch says when it starts CUDA; "": nothing


def gpu_facts() -> GpuFacts:
    in_machine = len(list(Path("/dev").glob("nvidia[0-9]*")))
    usable = torch.cuda.device_count()
    complaint = ""
    if in_machine or usable:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            complaint = first_line(error)
    return GpuFacts(in_machine, usable, torch.version.cuda or torch.version.hip, complaint)


def gpu_problem(facts: GpuFacts, visible_devices: str | None) -> str | None:
    """Why the GPUs of a machine cannot be used, and the remedy; None: they can, there are none, or they are hidden.

    Args:
        visible_devices: CUDA_VISIBLE_DEVICES; None: not set.
    """
    if visible_devices in ("", "-1") or not (facts.in_machine or facts.usable):
        return None
    if facts.cuda_of_torch is None:
        return (
            f"this machine has {facts.in_machine} NVIDIA GPUs, but torch {torch.__version__} is built without CUDA; "
            "pip install -r requirements.txt in a new environment"
        )
    too_old = re.search(r"driver on your system is too old \(found version (\d+)(\d\d)\d\)", facts.complaint)
    if too_old:
        return (
            f"the NVIDIA driver, for CUDA {too_old[1]}.{int(too_old[2])}, is too old for torch {torch.__version__} "
            f"(CUDA {facts.cuda_of_torch}); update the driver, or install a torch that is built for it"
        )
    if facts.complaint:
        return f"torch cannot use the GPUs ({facts.complaint}); nvidia-smi shows whether the driver works"
    return None


def unused_gpus(usable: int, device: str, launched: bool, command: list[str]) -> str | None:
    """A warning that a job of one process leaves GPUs unused; None: it does not.

    Args:
        device: the knob run.device.
        launched: whether torchrun started this process; then someone chose the number of ranks.
        command: the program and its words.
    """
    if usable < 2 or device == "cpu" or launched:
        return None
    return (
        f"warning: one process uses 1 of {usable} GPUs; for all of them: "
        f"torchrun --standalone --nproc_per_node={usable} {os.path.basename(command[0])} {' '.join(command[1:3])} …"
    )


def choose_device(device: str, local_rank: int, local_size: int) -> torch.device:
    """The device of a rank: a GPU of its own, or the CPU.

    Args:
        device: "auto" takes GPUs if there are any, "cpu" or "cuda".
        local_rank, local_size: this rank's number among the ranks of its machine, and how many there are.
    Raises: UserError if there are fewer GPUs than ranks, or torch cannot use them.
    """
    if device == "cpu":
        return torch.device("cpu")
    facts = gpu_facts()
    problem = gpu_problem(facts, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if problem:
        raise UserError(f"run.device = {device}: {problem}; or use run.device=cpu")
    if device == "auto" and not facts.usable:
        return torch.device("cpu")
    if not facts.usable:
        raise UserError("run.device = cuda: this machine has no GPU that torch sees; use run.device=cpu")
    if local_size > facts.usable:
        raise UserError(
            f"run.device = {device}: {local_size} ranks on this machine, but {facts.usable} CUDA devices; "
            "start torchrun with --nproc_per_node of at most that many, or use run.device=cpu"
        )
    problem = missing_kernels(torch.cuda.get_device_capability(local_rank), torch.cuda.get_arch_list())
    if problem:
        raise UserError(f"{torch.cuda.get_device_name(local_rank)}: {problem}")
    return torch.device("cuda", local_rank)


def missing_kernels(capability: tuple[int, int], wheel_architectures: list[str]) -> str | None:
    """What to install if a torch wheel has no kernels for a device, else None.

    Args:
        capability: the device's, as (major, minor). It runs kernels of the same major and no higher minor number.
        wheel_architectures: `torch.cuda.get_arch_list()`, as in ["sm_70", "sm_90a"].
    """
    for architecture in wheel_architectures:
        match = re.match(r"sm_(\d+)(\d)", architecture)
        if match and int(match[1]) == capability[0] and int(match[2]) <= capability[1]:
            return None
    pin = "torch==2.10.0 torchvision==0.25.0"
    if capability < (7, 0):
        pin = "torch==2.7.1 torchvision==0.22.1"
    return (
        f"torch {torch.__version__} has kernels for {' '.join(wheel_architectures)} only, "
        f"not for compute capability {capability[0]}.{capability[1]}; pip install {pin}"
    )
