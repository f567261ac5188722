"""What a process owes the system around it: signals, its parent, memory and cores."""

import ctypes
import os
import signal
import sys
import threading

EXIT_REQUEUE = 75  # after a stop on request: all is saved, continue with --resume auto (EX_TEMPFAIL)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Inside `with`, SIGTERM, SIGUSR1 and Ctrl-C are noted instead of ending at once; a second Ctrl-C does end."""

    def __enter__(self):
        self.requested = False
        self.before = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        return self

    def note(self, _number, _frame) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks for reuse, in the loader's workers too.

    By default it returns each to the kernel, which clears the pages anew: of a large tensor's time on a CPU, most.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**30)
        ctypes.CDLL(None).mallopt(m_trim_threshold, 2**30)


def leave_at_once(_number, _frame) -> None:
    """Outside of training steps, which save first, nothing is lost by a stop: not by one while evaluating, say."""
    os.write(2, b"stopped on request, outside of training steps; continue with --resume auto\n")
    os._exit(EXIT_REQUEUE)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent(death_signal: int) -> None:
    """Have the kernel send us this signal when our parent ends, however it ends: no orphan may go on writing."""
    parent = os.getppid()
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, death_signal)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), death_signal)


def end_on_word_of(parent: int) -> None:
    """Take SIGTERM from the rank alone, whose DataLoader ends workers by it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def shield_worker(worker: int) -> None:
    """For loader workers: a stop signal to all of the job is the rank's to answer, and a dead rank needs no loader."""
    os.setpgrp()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_on_word_of, args=(os.getppid(),), daemon=True).start()
    die_with_parent(signal.SIGKILL)
