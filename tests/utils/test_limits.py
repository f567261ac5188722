"""Cores, open files and shared memory: what a container leaves, read from made-up trees."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest

from data.decode import decode_image
from utils import limits
from utils.distributed import explain
from utils.errors import UserError
from utils.limits import available_cores, batches_ahead, check_loader_limits, cpu_quota, refusal_of_system

V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:{path}\n3:cpuset:/\n1:name=systemd:/\n"


def tree(root: Path, groups: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup; `/` in a name is written `__`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu_max": "rubbish\n"}, None),
        ("0::/\n", {"cpu_max": "100000 0\n"}, None),
        ("0::/\n", {"unified__cpu_max": "300000 100000\n"}, 3),
        # The smallest of all groups on the way, and none beside it.
        ("0::/a/b\n", {"cpu_max": "max 1000", "a__cpu_max": "4000 1000", "a__b__cpu_max": "max 1000"}, 4),
        ("0::/a/b\n", {"a__cpu_max": "4000 1000", "a__b__cpu_max": "2500 1000", "a__c__cpu_max": "1000 1000"}, 2.5),
        ("0::/a/b\n", {"a__cpu_max": "500 1000", "a__b__cpu_max": "2500 1000"}, 0.5),
        # A container that sees its own group as the top.
        ("0::/kubepods/pod1/c\n", {"cpu_max": "200000 100000"}, 2),
        ("0::/../../other\n", {"cpu_max": "200000 100000"}, 2),
        (V1.format(path="/"), {"cpu,cpuacct__cfs_quota_us": "250000", "cpu,cpuacct__cfs_period_us": "100000"}, 2.5),
        (V1.format(path="/"), {"cpu,cpuacct__cfs_quota_us": "-1", "cpu,cpuacct__cfs_period_us": "100000"}, None),
        (V1.format(path="/"), {"cpu__cfs_quota_us": "100000", "cpu__cfs_period_us": "50000"}, 2),
        (V1.format(path="/d/x"), {"cpu__cfs_quota_us": "100000", "cpu__cfs_period_us": "50000"}, 2),
        (V1.format(path="/d/x"), {"cpu__d__x__cfs_quota_us": "700000", "cpu__d__x__cfs_period_us": "100000"}, 7),
        (V1.format(path="/d/x"), {"cpu__d__cfs_quota_us": "700000", "cpu__d__cfs_period_us": "100000"}, 7),
        ("5:cpuset:/\n", {"cpuset__cfs_quota_us": "100000", "cpuset__cfs_period_us": "100000"}, None),
        ("0::/x:y\n", {"x:y__cpu_max": "100000 100000"}, 1),  # a colon in a name
    ],
)
def test_the_quota_of_control_groups(groups, files, expected, tmp_path):
    assert cpu_quota(tree(tmp_path, groups, **files)) == expected


@pytest.mark.parametrize(
    ("quota", "cores"), [("max", 4), ("1000000", 4), ("400000", 4), ("399000", 3), ("250000", 2), ("50000", 1)]
)
def test_cores_are_the_affinity_mask_or_a_lower_quota_in_whole_cores(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 3, 8, 9})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert available_cores(tree(tmp_path, "0::/\n", cpu_max=f"{quota} 100000")) == cores


def test_without_control_groups_the_mask_counts(tmp_path):
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_open_files_are_raised_to_what_is_allowed():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        limits.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_image_is_not_to_blame_for_too_many_open_files(tmp_path):
    """on_bad_image=skip must not train on other images for want of open files."""
    path = tmp_path / "image.png"
    path.write_bytes(b"no image")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(OSError, match="Too many open files") as caught:
            decode_image(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "--ulimit nofile=65536" in explain(caught.value)


def refusal(shared_memory: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        check_loader_limits(**{"workers": 4, "ranks": 2, "batch_bytes": 1000} | options, shared_memory=shared_memory)
    assert len(str(caught.value)) < 280
    return str(caught.value)


def test_too_few_open_files_for_the_workers_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "open_file_limit", lambda: 85)
    assert "workers = 4: needs about 86 open files, and 85 are allowed" in refusal(tmp_path)
    check_loader_limits(3, 2, 1000, tmp_path)
    check_loader_limits(0, 2, 1000, tmp_path)


def test_shared_memory_that_cannot_be_written_or_is_too_small_is_told(tmp_path):
    assert "cannot be written (No such file or directory); give a container more" in refusal(tmp_path / "absent")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert "--shm-size" in refusal(tmp_path, batch_bytes=2 * free)
    check_loader_limits(0, 2, 2 * free, tmp_path)
    check_loader_limits(1, 1, free // 2, tmp_path)
    assert [*tmp_path.iterdir()] == []


BATCH = 3 * 256 * 224**2  # 38.5 MB, pinned 67


@pytest.mark.parametrize(
    ("workers", "batch_bytes", "expected"),
    [
        (0, BATCH, 4),
        (4, BATCH, 4),  # 1.1 GB pinned
        (8, BATCH, 4),  # 2.1 GB: just so
        (9, BATCH, 3),
        (16, BATCH, 2),
        (32, BATCH, 1),
        (200, BATCH, 1),  # fewer than one a worker would be none
        (8, 2**26 + 1, 2),  # a byte more takes the next power of two
        (16, 0, 4),  # not known
        (16, 3 * 64**2, 4),
    ],
)
def test_workers_work_ahead_as_far_as_memory_allows(workers, batch_bytes, expected, tmp_path):
    assert batches_ahead(workers, 1, batch_bytes, tmp_path / "no shared memory") == expected


@pytest.mark.parametrize(("free_batches", "expected"), [(200, 4), (64, 4), (63, 3), (32, 2), (16, 1), (3, 1)])
def test_workers_leave_half_of_the_shared_memory(free_batches, expected, tmp_path, monkeypatch):
    """4 workers of each of 2 ranks."""
    usage = shutil.disk_usage(tmp_path)._replace(free=free_batches * BATCH)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert batches_ahead(4, 2, BATCH, tmp_path) == expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.EIO, "Input/output error"),
            "Input/output error (errno 5, in test_limits.py: raise error); fix this",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device (errno 28, in test_limits.py"),
        (OSError(errno.EROFS, "Read-only file system", "run/x"), "run/x: Read-only file system; fix this, then"),
        (RuntimeError("can't start new thread"), "no more threads are allowed; raise the limit"),
        (OSError("image file is truncated"), None),
        (KeyError("model"), None),
    ],
)
def test_what_the_system_refuses_is_told_with_a_remedy(error, words):
    try:
        raise error
    except Exception as raised:
        refusal = refusal_of_system(raised)
    if words is None:
        assert refusal is None
    else:
        assert refusal.startswith(words)


def test_free_memory_is_the_least_that_the_machine_or_its_control_group_leaves(tmp_path):
    assert limits.free_memory(tmp_path) == 2**62  # nobody says
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert limits.free_memory(tmp_path) == 5000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert limits.free_memory(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 900000\nactive_file 600000\n")
    assert limits.free_memory(tmp_path) == 2_000_000  # a cache of files can be given back
