"""What a process owes the system around it: signals, its parent, memory and cores."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator

EXIT_REQUEUE = 75  # stopped on request and everything saved: start again with --resume auto (EX_TEMPFAIL)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Inside `with`, SIGTERM, SIGUSR1 and Ctrl-C only set `requested`; Ctrl-C after another signal ends the process."""

    def __enter__(self) -> "StopRequest":
        self.requested = False
        self.take_over()
        return self

    def note(self, _number: int, _frame: types.FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_error: object) -> None:
        self.give_back()

    def take_over(self) -> None:
        self.handlers_before = {}
        for number in STOP_SIGNALS:
            self.handlers_before[number] = signal.signal(number, self.note)

    def give_back(self) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, a signal ends the process at once, as it does where nothing has to be saved first."""
        self.give_back()
        if self.requested:  # after the ranks last asked each other
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            yield
        finally:
            self.take_over()


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for reuse, in the loader's workers too.

    By default it returns each block to the kernel, which clears its pages before it gives them out again. On a CPU
    that is most of the time that a large tensor takes.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # names in malloc.h
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**30)
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**30)


def exit_at_once(_number: int, _frame: types.FrameType | None) -> None:
    """Signal handler outside the training loop (start-up, evaluation): nothing has to be saved, so exit at once."""
    os.write(2, b"stopped on request, outside of training steps; continue with --resume auto\n")
    os._exit(EXIT_REQUEUE)


def available_cores() -> int:
    """The CPU cores that this process may use; batch systems and containers often allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(death_signal: int) -> None:
    """Have the kernel send us this signal when our parent ends, however it ends: no orphan may go on writing."""
    parent = os.getppid()
    pr_set_pdeathsig = 1  # name in prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, death_signal)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), death_signal)


def exit_on_parents_sigterm(parent: int) -> None:
    """Exit on SIGTERM, but only if our parent, the rank, sent it.

    DataLoader uses SIGTERM to stop its workers. Batch systems send it to every process of a job: then the rank
    finishes its step, for which it still needs us.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def shield_worker(_worker: int) -> None:
    """Make a loader worker ignore stop signals, which its rank answers, and die with its rank."""
    os.setpgrp()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=exit_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()
    die_with_parent(signal.SIGKILL)
