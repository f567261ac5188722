"""Ranks: who am I, which device, and how the ranks of a job agree, wait and die."""

import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError
from utils.process import available_cores, die_with_parent, keep_freed_memory, leave_at_once

JOB: dict = {}  # this process's rank, the number of ranks and their store, for an error that ends the job
SECONDS_TO_NOTICE = 5


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

    def in_turn(self, task):
        """`task()`, the first rank of each machine before its others, which find what that one has left on the disk."""
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        found = task() if first else None
        self.sum(torch.zeros(1))
        return found if first else task()

    def gather(self, value) -> list:
        """Every rank's value (anything picklable), in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def copy_from_rank_0(self, tensors) -> None:
        """Make these tensors equal rank 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def join(device: str, timeout_minutes: float) -> World:
    """Join the job torchrun started (or be one of one process) on this rank's own device.

    Raises: UserError if a GPU is missing, there are fewer GPUs than ranks, or torch has no kernels for them.
    """
    rank, size, local_rank, local_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave_at_once)  # until a training takes them over
    keep_freed_memory()
    chosen = choose_device(device, local_rank, local_size)
    if chosen.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // local_size))
    else:
        torch.cuda.set_device(chosen)
    if size > 1:
        timeout = timedelta(minutes=timeout_minutes)
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
        # A restarted job meets the store of its earlier attempt: without a name of its own it would read old addresses.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        store.set(f"host {rank}", socket.gethostname())
        JOB.update(store=store, rank=rank, size=size)
    return World(rank, size, local_size, chosen)


def choose_device(device: str, local_rank: int, local_size: int) -> torch.device:
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
        capability: the device's, as (major, minor); it runs kernels of the same major and no higher minor number.
        wheel_architectures: `torch.cuda.get_arch_list()`, as in ["sm_70", "sm_90"].
    """
    built = [divmod(int("".join(filter(str.isdigit, a))), 10) for a in wheel_architectures if a.startswith("sm_")]
    if any(major == capability[0] and minor <= capability[1] for major, minor in built):
        return None
    pin = "torch==2.7.1 torchvision==0.22.1" if capability < (7, 0) else "torch==2.10.0 torchvision==0.25.0"
    return (
        f"torch {torch.__version__} has kernels for {' '.join(wheel_architectures)} only, "
        f"not for compute capability {capability[0]}.{capability[1]}; pip install {pin}"
    )


def run_entry(main, argv: list[str]) -> None:
    """Run an entry point. An error that the user can mend is one line without traceback and exit code 2.

    A failed rank leaves at once, since a clean-up could wait for other ranks; its loader workers die with it. torchrun
    then ends the other ranks and names the first failure in its summary.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        code = main(argv)
        if dist.is_initialized():
            dist.barrier()  # a rank that ended first would have torchrun stop one still writing
            dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        told = explain(error)
        text = f"error: {told}" if told else traceback.format_exc()
        if isinstance(error, UserError) and int(os.environ.get("LOCAL_RANK", 0)) > 0:
            time.sleep(2)  # what every rank met the machine's first one shows, and torchrun ends us meanwhile
        print(f"[rank {rank}] {text}" if size > 1 else text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2 if told else 1)
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """What happened and what to do, of an error that is no fault of the code; else None."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return text.rsplit(f"{UserError.__name__}: ", 1)[-1].strip()  # a loader worker's comes after its traceback
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{text.splitlines()[0]} Lower train.images_per_device: the batch stays the same, made up of more "
            "micro-batches (BatchNorm sees one at a time); or data.val_batch_size, if it was an evaluation"
        )
    if "DataLoader worker" in text or "DataLoader timed out" in text:
        free = shutil.disk_usage("/dev/shm").free // 2**20 if os.path.isdir("/dev/shm") else 0
        return (
            f"a loader worker ended or hangs ({text.splitlines()[0]}); the kernel kills one for want of memory or of "
            f"shared memory (/dev/shm: {free} MiB free): lower data.workers, or give a container more (--shm-size, "
            "--ipc=host); go on with --resume auto"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; mend that, and go on with --resume auto"
    if isinstance(error, RuntimeError) and JOB and re.search("gloo|nccl|timed out|connection", text, re.IGNORECASE):
        return f"{who_is_silent()} ({text.splitlines()[0]}); go on with --resume auto"
    return None


def who_is_silent() -> str:
    """The ranks that do not notice, as the others do within seconds of each other, that the job has failed."""
    try:
        JOB["store"].set(f"failed {JOB['rank']}", "")
        time.sleep(SECONDS_TO_NOTICE)
        silent = [rank for rank in range(JOB["size"]) if not JOB["store"].check([f"failed {rank}"])]
        hosts = [JOB["store"].get(f"host {rank}").decode() for rank in silent]
    except RuntimeError:
        return "lost the machine of rank 0, or the network to it"
    named = ", ".join(f"rank {rank} on {host}" for rank, host in zip(silent, hosts, strict=True))
    return f"{named} did not answer" if named else "the ranks lost each other"
