"""Ranks: which one this process is, on which device, and how the ranks of a job agree, wait and die."""

import errno
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from utils.errors import UserError
from utils.files import free_space
from utils.process import available_cores, die_with_parent, exit_at_once, keep_freed_memory

SECONDS_TO_NOTICE = 5  # that a job has failed; healthy ranks take one or two
SECONDS_TO_BE_ENDED = 2  # by torchrun, once another rank has failed

Result = TypeVar("Result")


@dataclass(frozen=True)
class RankStore:
    """What the ranks of a job tell each other outside the process group, which a failed rank takes down."""

    rank: int
    size: int
    store: dist.Store


rank_store: RankStore | None = None  # None: a job of one process


@dataclass(frozen=True)
class World:
    """This process's place in the job. A `World(0, 1, 1, device)` is a job of one process."""

    rank: int
    size: int
    local_size: int  # ranks on this machine
    device: torch.device

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def in_turn(self, task: Callable[[], Result]) -> Result:
        """`task()` on the first rank of each machine, then on the others, which find what it left on the disk."""
        if local_rank() == 0:
            result = task()
            self.wait_for_all()
        else:
            self.wait_for_all()
            result = task()
        return result

    def wait_for_all(self) -> None:
        self.sum(torch.zeros(1))

    def gather(self, value: Result) -> list[Result]:
        """Every rank's value (anything picklable), in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def copy_from_rank_0(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make these tensors equal rank 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def local_rank() -> int:
    """This process's number among the ranks of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def join(device: str, timeout_minutes: float) -> World:
    """Join the job that torchrun started, or be a job of one process, on this rank's own device.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_minutes: how long a rank waits for another before the job ends.
    Raises: UserError if a GPU is missing, there are fewer GPUs than ranks, or torch has no kernels for them.
    """
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, exit_at_once)  # until a training loop takes them over
    keep_freed_memory()
    chosen = choose_device(device, local_rank(), local_size)
    if chosen.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // local_size))
    else:
        torch.cuda.set_device(chosen)
    if size > 1:
        join_process_group(rank, size, chosen, timedelta(minutes=timeout_minutes))
    return World(rank, size, local_size, chosen)


def join_process_group(rank: int, size: int, device: torch.device, timeout: timedelta) -> None:
    global rank_store
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    # A restarted job finds the store of its earlier attempt. Without a prefix of its own it would read old addresses.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    store.set(f"host {rank}", socket.gethostname())
    rank_store = RankStore(rank, size, store)


def choose_device(device: str, local_rank: int, local_size: int) -> torch.device:
    """The device of a rank: a GPU of its own, or the CPU.

    Args:
        device: "auto" takes GPUs if there are any, "cpu" or "cuda".
        local_rank, local_size: this rank's number among the ranks of its machine, and how many there are.
    Raises: UserError if there are fewer GPUs than ranks, or torch has no kernels for them.
    """
    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    if local_size > count:
        raise UserError(
            f"run.device = {device}: {local_size} ranks on this machine, but {count} CUDA devices; "
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


def run_entry(main: Callable[[list[str]], int], argv: list[str]) -> None:
    """Run an entry point. An error that the user can fix is one line without traceback, and exit code 2.

    A failed rank exits at once, since a clean-up could wait for other ranks; its loader workers die with it. torchrun
    then ends the other ranks and names the first failure in its summary.
    """
    try:
        code = main(argv)
        if dist.is_initialized():
            dist.barrier()  # if a rank ended first, torchrun would end one that is still writing
            dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        explanation = explain(error)
        message = traceback.format_exc()
        if explanation:
            message = f"error: {explanation}"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            message = f"[rank {os.environ.get('RANK', 0)}] {message}"
        if isinstance(error, UserError) and local_rank() > 0:
            # Every rank has met this error, and the first rank of the machine prints it.
            time.sleep(SECONDS_TO_BE_ENDED)
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if explanation else 1)
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """What happened and what to do, if an error is no fault of the code; else None."""
    text = str(error).strip()
    if isinstance(error, UserError):
        # In an error of a loader worker the message comes after the worker's traceback.
        return text.rsplit(f"{UserError.__name__}: ", 1)[-1].strip()
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{text.splitlines()[0]} Lower train.images_per_device: the batch stays the same, made up of more "
            "micro-batches (BatchNorm sees one at a time). In an evaluation, lower data.val_batch_size."
        )
    if "DataLoader worker" in text or "DataLoader timed out" in text:
        return (
            f"a loader worker ended or hangs ({text.splitlines()[0]}). The kernel kills one if memory or shared memory "
            f"runs out (/dev/shm: {free_shared_memory()} MiB free): lower data.workers, or give a container more "
            "(--shm-size, --ipc=host); go on with --resume auto"
        )
    if isinstance(error, OSError) and error.filename:
        space = ""
        if error.errno == errno.ENOSPC:  # it may be inodes that are lacking
            space = f" ({free_space(os.path.dirname(os.path.abspath(str(error.filename))))})"
        return f"{error.filename}: {error.strerror}{space}; fix this and rerun with --resume auto"
    if rank_store and isinstance(error, RuntimeError):
        if re.search("gloo|nccl|timed out|connection", text, re.IGNORECASE):
            return f"{ranks_not_responding(rank_store)} ({text.splitlines()[0]}); go on with --resume auto"
    return None


def free_shared_memory() -> int:
    """MiB left in /dev/shm, through which loader workers hand over their batches."""
    if not os.path.isdir("/dev/shm"):
        return 0
    return shutil.disk_usage("/dev/shm").free // 2**20


def ranks_not_responding(job: RankStore) -> str:
    """Name the ranks that never report the failure of the job.

    Every healthy rank notices it within seconds, comes here too, and writes `failed RANK` to the store.
    """
    try:
        job.store.set(f"failed {job.rank}", "")
        time.sleep(SECONDS_TO_NOTICE)
        silent = []
        for rank in range(job.size):
            if not job.store.check([f"failed {rank}"]):
                silent.append(f"rank {rank} on {job.store.get(f'host {rank}').decode()}")
    except RuntimeError:
        return "lost the machine of rank 0, or the network to it"
    if not silent:
        return "the ranks lost each other"
    return f"{', '.join(silent)} did not answer"
