"""What a machine, a container or a batch system leaves this process: cores, open files, memory, and what it refuses."""

import contextlib
import errno
import os
import re
import resource
import shutil
import tempfile
import traceback
from pathlib import Path

from utils import restart
from utils.errors import UserError
from utils.files import free_space

SHARED_MEMORY = Path("/dev/shm")  # through which loader workers hand over their batches
MIB = 2**20
MOST_BATCHES_AHEAD = 4  # of a worker, so that a slow image or a busy disk does not hold up the step
BYTES_AHEAD = 2 * 2**30  # of a rank's workers together, pinned


def available_cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may use; batch systems and containers often allow fewer than there are.

    Args:
        root: of the file system, for tests.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    if quota is None:
        return cores
    return max(1, min(cores, int(quota)))


def cpu_quota(root: Path) -> float | None:
    """The CPU time that control groups leave this process, in cores: the smallest share on the way up; None: any."""
    quotas = []
    mounts = root / "sys/fs/cgroup"
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    for group in groups:  # number:controllers:path, and no controllers in version 2
        _, controllers, path = group.split(":", 2)
        for folder in folders_down(path):
            if not controllers:
                for mount in (mounts, mounts / "unified"):
                    quotas.append(quota_of(mount / folder / "cpu.max"))
            elif "cpu" in controllers.split(","):
                for mount in (mounts / controllers, mounts / "cpu"):
                    group_folder = mount / folder
                    quotas.append(quota_of(group_folder / "cpu.cfs_quota_us", group_folder / "cpu.cfs_period_us"))
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def folders_down(path: str) -> list[Path]:
    """From the top of a hierarchy to a group, which limits what is inside: /a/b -> ".", "a", "a/b".

    A container often sees its own group as the top, whatever the path says; then the lower folders are not there.
    """
    folders = [Path()]
    for name in path.split("/"):
        if name not in ("", ".."):
            folders.append(folders[-1] / name)
    return folders


def quota_of(*files: Path) -> float | None:
    """Quota / period from one file with both, or from one each; None: no limit, or no such group."""
    try:
        quota, period = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        if quota == "max" or int(quota) <= 0 or int(period) <= 0:
            return None
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this machine, or what control groups leave of it, has for more; a large number where nobody says."""
    amounts = [2**62]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        amounts.append(1024 * int(line.split()[1]))
    for name in ("memory.max", "memory.high"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
            group = root / "sys/fs/cgroup"
            limit = int((group / name).read_text(encoding="utf-8"))
            amounts.append(limit - used_memory(group))
    return max(0, min(amounts))


def used_memory(group: Path) -> int:
    """Bytes that a control group cannot give back; its cache of files it can."""
    used = int((group / "memory.current").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, amount = line.split()
            if name in ("inactive_file", "active_file"):
                used -= int(amount)
    return used


def allow_open_files() -> None:
    """Raise the limit on open files to the most that we may set; loader workers pass each batch as open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_shared_memory() -> int:
    """MiB left in /dev/shm."""
    if not SHARED_MEMORY.is_dir():
        return 0
    return shutil.disk_usage(SHARED_MEMORY).free // MIB


def check_loader_limits(workers: int, ranks: int, batch_bytes: int, shared_memory: Path = SHARED_MEMORY) -> None:
    """Look, before the first batch, whether loader workers can work here.

    Args:
        workers: loader processes of each rank.
        ranks: on this machine.
        batch_bytes: of what a worker hands over at once.
    Raises: UserError if they may not open enough files, or a batch of each does not fit into shared memory.
    """
    if workers == 0:
        return
    needed = 64 + 5 * workers + ranks  # a worker's pipes, which later workers inherit, and a socket for each rank
    if open_file_limit() < needed:
        raise UserError(
            f"data.workers = {workers}: needs about {needed} open files, and {open_file_limit()} are allowed; raise "
            "the limit (ulimit -Hn; docker: --ulimit nofile=65536), or lower data.workers"
        )
    remedy = "give a container more (docker: --shm-size=16g or --ipc=host), or use data.workers=0"
    try:
        with tempfile.TemporaryFile(dir=shared_memory):
            free = shutil.disk_usage(shared_memory).free
    except OSError as error:
        raise UserError(
            f"data.workers = {workers}: batches go through {shared_memory}, which cannot be written "
            f"({error.strerror}); {remedy}"
        ) from error
    needed = workers * ranks * batch_bytes
    if free < needed:
        raise UserError(
            f"data.workers = {workers}: a batch of each worker takes {needed / MIB:.0f} MiB of {shared_memory}, where "
            f"{free / MIB:.0f} are free; {remedy}"
        )


def batches_ahead(workers: int, ranks: int, batch_bytes: int, shared_memory: Path = SHARED_MEMORY) -> int:
    """Batches that each loader worker may make before one of them is used, from 1 to MOST_BATCHES_AHEAD.

    All of them lie in shared memory, half of which is left to others, or in pinned memory, where torch gives each a
    block of the next power of two: 38.5 MB of 256 images at 224 pixels take 67.

    Args:
        workers: loader processes of each rank.
        ranks: on this machine.
        batch_bytes: of what a worker hands over at once.
    """
    if workers == 0 or batch_bytes == 0:
        return MOST_BATCHES_AHEAD
    pinned_bytes = 2 ** (batch_bytes - 1).bit_length()
    most = min(MOST_BATCHES_AHEAD, BYTES_AHEAD // (workers * pinned_bytes))
    if shared_memory.is_dir():
        free = shutil.disk_usage(shared_memory).free
        most = min(most, free // 2 // (workers * ranks * batch_bytes))
    return max(1, most)


def refusal_of_system(error: BaseException) -> str | None:
    """What the system has refused, other than memory, and the remedy, if an error is of that kind; else None."""
    if re.search("can't start new thread", str(error)):
        return "no more threads are allowed; raise the limit (ulimit -u; docker: --pids-limit), or lower data.workers"
    if not isinstance(error, OSError) or not error.errno:
        return None
    remedy = f"fix this, then {restart.remedy()}"
    if not error.filename:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{error.strerror} (errno {error.errno}, in {os.path.basename(frame.filename)}: {frame.line}); {remedy}"
    space = ""
    if error.errno == errno.ENOSPC:  # it may be inodes that are lacking
        space = f" ({free_space(os.path.dirname(os.path.abspath(str(error.filename))))})"
    return f"{error.filename}: {error.strerror}{space}; {remedy}"
