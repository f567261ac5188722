"""Ranks: which one this process is, on which device, and how the ranks of a job agree, wait and die."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from utils import launcher, restart
from utils.console import LossyStream, fitted, remove_bars, say, say_from_signal_handler, secure_console
from utils.devices import choose_device, unused_gpus
from utils.errors import UserError, first_line
from utils.limits import allow_open_files, available_cores, free_shared_memory, open_file_limit, refusal_of_system
from utils.memory import explain_out_of_memory
from utils.process import EXIT_REQUEUE, STOP_SIGNALS, StopRequest, die_with_parent, is_ignored, keep_freed_memory

SECONDS_TO_NOTICE = 5  # that a job has failed; healthy ranks take one or two
SECONDS_TO_BE_ENDED = 2  # by torchrun, once another rank has failed
EXIT_KEYBOARD = 128 + signal.SIGINT  # 130, as of a program that Ctrl-C has ended
# NCCL's watchdog ends a process and does not say which rank hangs. Gloo, which every step uses too, is to come first.
NCCL_WAITS_LONGER = timedelta(minutes=2)

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

    def tensors_on_rank_0(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, on the CPU and of one shape and type, in the order of ranks; [] on other ranks."""
        if self.size == 1:
            return [tensor]
        received = None
        if self.rank == 0:
            received = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.gather(tensor, received, dst=0)
        return received or []

    def on_rank_0(self, task: Callable[[Callable[[], None]], Result]) -> Result:
        """What `task(still_working)` returns on rank 0, on all ranks.

        The others wait, and no timeout ends that as long as the task calls `still_working()` now and then.
        """
        if self.rank == 0:
            result = task(lambda: self.gather((False, None)))
            return self.gather((True, result))[0][1]
        while True:
            is_done, result = self.gather((False, None))[0]
            if is_done:
                return result

    def copy_from_rank_0(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make these tensors equal rank 0's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def local_rank() -> int:
    """This process's number among the ranks of its machine."""
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if text.isdecimal() else 0  # `read_place` says so


def join(device: str, timeout_minutes: float) -> World:
    """Join the job that torchrun started, or be a job of one process, on this rank's own device.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_minutes: how long a rank waits for another before the job ends.
    Raises: UserError if the launcher's variables make no sense, the ranks cannot meet, a GPU is missing or cannot be
        used, or there are fewer GPUs than ranks.
    """
    place = launcher.read_place(os.environ)
    if launcher.is_launched():
        die_with_parent(signal.SIGKILL)
    for number in STOP_SIGNALS:
        if number != signal.SIGINT and not is_ignored(number):  # Ctrl-C comes to `run_entry` as an exception
            signal.signal(number, exit_at_once)  # until a training loop takes them over
    keep_freed_memory()
    allow_open_files()
    chosen = choose_device(device, place.local_rank, place.local_size)
    if chosen.type == "cpu":
        torch.set_num_threads(max(1, available_cores() // place.local_size))
    else:
        torch.cuda.set_device(chosen)
        warning = unused_gpus(torch.cuda.device_count(), device, launcher.is_launched() or place.size > 1, sys.argv)
        if warning:
            say(warning)
    if place.size > 1:
        try:
            join_process_group(place.rank, place.size, chosen, timedelta(minutes=timeout_minutes))
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(why_not_joined(error)) from error
    return World(place.rank, place.size, place.local_size, chosen)


def join_process_group(rank: int, size: int, device: torch.device, timeout: timedelta) -> None:
    global rank_store
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    # A restarted job finds the store of its earlier attempt. Without a prefix of its own it would read old addresses.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    if device.type == "cuda":
        set_timeout_on(device, timeout + NCCL_WAITS_LONGER)
    store.set(f"host {rank}", socket.gethostname())
    rank_store = RankStore(rank, size, store)


def set_timeout_on(device: torch.device, timeout: timedelta) -> None:
    """Of the exchanges between devices of this type."""
    # dist.init_process_group has one timeout for all backends.
    backend = dist.distributed_c10d._get_default_group()._get_backend(device)
    backend._set_default_timeout(timeout)


def why_not_joined(error: Exception) -> str:
    """What to do if the ranks cannot meet."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if re.search("EADDRINUSE|address already in use", str(error), re.IGNORECASE):
        return f"MASTER_PORT = {port}: taken on this machine; end the job that has it, or give another MASTER_PORT"
    return (
        f"MASTER_ADDR = {address}, MASTER_PORT = {port}: no meeting with the other ranks there "
        f"({first_line(error)[:100]}); start all {os.environ['WORLD_SIZE']}, and let them reach that port"
    )


def exit_at_once(_number: int, _frame: types.FrameType | None) -> None:
    """Signal handler outside the training loop (start-up, evaluation): nothing has to be saved, so exit at once."""
    ended_by_torchrun = launcher.another_rank_failed() or launcher.another_rank_is_gone()
    if not ended_by_torchrun:
        message = "stopped on request"
        if restart.is_training:
            message += ", outside of training steps; continue with --resume auto"
        say_from_signal_handler(message)
    os._exit(EXIT_REQUEUE)


def run_entry(main: Callable[[list[str]], int], argv: list[str], output_is_result: bool = False) -> None:
    """Run an entry point. An error that the user can fix is a few lines without traceback, and exit code 2.

    A failed rank exits at once, since a clean-up could wait for other ranks; its loader workers die with it. torchrun
    then ends the other ranks and shows the first failure in its summary.

    Args:
        output_is_result: whether the program has failed if it could not print, as one that makes a table for `> FILE`.
    """
    secure_console()
    try:
        code = main(argv)
        if code == EXIT_REQUEUE:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is saved
        if dist.is_initialized():
            dist.barrier()  # if a rank ended first, torchrun would end one that is still writing
            dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            end_by_keyboard()
        end_with(error)
    if output_is_result and LossyStream.failure:
        say(f"error: not everything could be printed ({LossyStream.failure})", to_stderr=True)
        code = code or 2
    sys.exit(code)


def end_by_keyboard() -> None:
    """End this process after a Ctrl-C: a rank as after other requests to stop, any other program as shells expect."""
    if signal.getsignal(signal.SIGTERM) == exit_at_once:
        exit_at_once(signal.SIGINT, None)
    remove_bars()
    say("stopped by Ctrl-C", to_stderr=True)
    os._exit(EXIT_KEYBOARD)


def end_with(error: BaseException) -> None:
    """End this process. The rank that failed first says why, once: at the end of torchrun's summary, or on stderr."""
    trace = traceback.format_exc()
    remove_bars()
    # Every rank meets a user's error, and the first rank of the machine reports it.
    is_for_another_to_say = isinstance(error, UserError) and local_rank() > 0
    if is_for_another_to_say or launcher.another_rank_failed():
        time.sleep(SECONDS_TO_BE_ENDED)  # a rank that ends by itself can stand in torchrun's summary as the first
    if launcher.another_rank_failed():
        os._exit(2)
    explanation = explain(error)
    rank = ""
    if "RANK" in os.environ:
        rank = f"[rank {os.environ['RANK']} on {socket.gethostname()}] "
    if explanation:
        message = fitted(explanation, label=f"{rank}error: ")
    else:
        message = rank + trace.rstrip()
    tell_other_machines(explanation or f"{type(error).__name__}: {first_line(error)}")
    # Where a stop was requested torchrun ends with the signal and shows no summary.
    if StopRequest.requested_anywhere or not launcher.tell_torchrun(message):
        say(message, to_stderr=True)
    os._exit(2 if explanation else 1)


def tell_other_machines(reason: str) -> None:
    if rank_store is None:
        return
    reason = f"rank {rank_store.rank} on {socket.gethostname()} failed: {reason}"
    with contextlib.suppress(RuntimeError):  # the store is gone
        if not rank_store.store.check(["failure"]):
            rank_store.store.set("failure", reason.encode(errors="backslashreplace"))


def explain(error: BaseException) -> str | None:
    """What happened and what to do, if an error is no fault of the code; else None."""
    text = str(error).strip()
    if isinstance(error, UserError):
        # In an error of a loader worker the message comes after the worker's traceback.
        return text.rsplit(f"{UserError.__name__}: ", 1)[-1].strip()
    if out_of_memory := explain_out_of_memory(error):
        return out_of_memory
    if re.search("Too many open files|ancdata", text):
        return (
            f"too many open files (at most {open_file_limit()} here); raise the limit (ulimit -Hn; docker: --ulimit "
            f"nofile=65536), or lower data.workers; {restart.remedy()}"
        )
    if re.search(r"/dev/shm|</torch_|shared memory\(shm\)|out of shared memory", text):
        return (
            f"/dev/shm, through which loader workers hand over their batches, has {free_shared_memory()} MiB free and "
            "cannot take one; give a container more (docker: --shm-size=16g or --ipc=host), or lower data.workers; "
            f"{restart.remedy()}"
        )
    if re.search(r"DataLoader worker \(pid|DataLoader timed out", text):
        return (
            f"a loader worker ended or hangs ({first_line(error)[:80]}). The kernel kills one if memory runs out: "
            f"lower data.workers; {restart.remedy()}"
        )
    if half_written := re.search(r"(/\S+\.so): file too short", text):
        return (
            f"{half_written[1]}: a half-written library in torch.compile's cache, as of a compilation that was killed; "
            f"remove it, and {restart.remedy()}"
        )
    refusal = refusal_of_system(error)
    if refusal:
        return refusal
    if rank_store and isinstance(error, RuntimeError):
        if re.search("gloo|nccl|timed out|connection", text, re.IGNORECASE):
            return why_ranks_do_not_answer(rank_store, first_line(error)[:100])
    return None


def why_ranks_do_not_answer(job: RankStore, symptom: str) -> str:
    """The failure that a rank has reported; else the names of the ranks that do not notice that the job has failed.

    Every healthy rank notices it within seconds, comes here too, and writes `failed RANK` to the store.
    """
    try:
        if job.store.check(["failure"]):
            return job.store.get("failure").decode()
        job.store.set(f"failed {job.rank}", "")
        time.sleep(SECONDS_TO_NOTICE)
        silent = []
        for rank in range(job.size):
            if not job.store.check([f"failed {rank}"]):
                silent.append(f"rank {rank} on {job.store.get(f'host {rank}').decode()}")
    except RuntimeError:
        reason = "lost the machine of rank 0, or the network to it"
    else:
        reason = "the ranks lost each other"
        if silent:
            reason = f"{', '.join(silent)} did not answer"
    return f"{reason} ({symptom}); {restart.remedy()}"
