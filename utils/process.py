"""What a process owes the system around it: signals, its parent, freed memory."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

from utils.console import say_from_signal_handler

EXIT_REQUEUE = 75  # stopped on request and everything saved: start again with --resume auto (EX_TEMPFAIL)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
SECONDS_OF_ONE_KEYPRESS = 1.0  # in which launchers may pass on the same Ctrl-C more than once


def is_ignored(number: int) -> bool:
    """Whether we were started not to mind the end of the terminal, as by nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


class StopRequest:
    """Inside `with`, SIGTERM, SIGUSR1, SIGHUP and Ctrl-C only set `requested`.

    A second Ctrl-C ends the process at once, but not inside `must_finish`, as while a checkpoint is saved.
    """

    requested_anywhere = False  # of this process: whoever started it knows why it ends
    finishing = False

    def __enter__(self) -> "StopRequest":
        self.requested = False
        self.take_over()
        return self

    def note(self, number: int, _frame: types.FrameType | None) -> None:
        if not self.requested:
            self.requested = StopRequest.requested_anywhere = True
            self.requested_at = time.monotonic()
            outlive_parent()  # torchrun ends at a second Ctrl-C, and would take us along in the middle of a save
        elif number == signal.SIGINT and not StopRequest.finishing:
            if time.monotonic() - self.requested_at > SECONDS_OF_ONE_KEYPRESS:
                say_from_signal_handler("ended at once, by a second Ctrl-C")
                os._exit(1)

    def __exit__(self, *_error: object) -> None:
        self.give_back()

    def take_over(self) -> None:
        self.handlers_before = {}
        for number in STOP_SIGNALS:
            if not is_ignored(number):
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


@contextlib.contextmanager
def must_finish() -> Iterator[None]:
    """Inside, a second Ctrl-C waits."""
    before = StopRequest.finishing
    StopRequest.finishing = True
    try:
        yield
    finally:
        StopRequest.finishing = before


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for reuse, in the loader's workers too.

    By default it returns each block to the kernel, which clears its pages before it gives them out again. On a CPU
    that is most of the time that a large tensor takes.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # names in malloc.h
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**30)
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**30)


def die_with_parent(death_signal: int) -> None:
    """Have the kernel send us this signal when our parent ends, however it ends: no orphan may go on writing."""
    parent = os.getppid()
    pr_set_pdeathsig = 1  # name in prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, death_signal)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), death_signal)


def outlive_parent() -> None:
    """Take `die_with_parent` back: what we were asked to save comes first."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, 0)


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
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=exit_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()
    die_with_parent(signal.SIGKILL)
