"""How an entry point ends."""

import subprocess
import sys

import pytest
import torch

from tests.support.launch import ROOT
from utils import distributed

PROGRAM = """
import sys, torch
from data.samples import batch_loader
from utils.distributed import run_entry
from utils.errors import UserError

class Endless(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return torch.zeros(3, 8, 8), 0

def main(argv):
    batches = iter(batch_loader(Endless(), [[key] for key in range(1000)], 1, torch.device("cpu")))
    next(batches)
    main.batches = batches  # alive until the interpreter ends
    raise {"interrupt": KeyboardInterrupt, "exit": SystemExit, "user": UserError, "other": ValueError}[argv[0]]("why")

run_entry(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    "how, code, told",
    [
        ("interrupt", 1, "KeyboardInterrupt"),
        ("exit", 1, "why"),
        ("user", 2, "error: why"),
        ("other", 1, "ValueError: why"),
    ],
)
def test_an_entry_point_ends_whatever_happens_while_loader_workers_live(how, code, told):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code and told in ended.stderr
    assert ("Traceback" in ended.stderr) == (how in ("interrupt", "other"))


class Store:
    """A job's store in which some ranks have told of their failure, or which is gone."""

    def __init__(self, failed, gone=False):
        self.kept, self.gone = {f"failed {rank}": b"" for rank in failed}, gone
        self.kept |= {f"host {rank}": f"machine-{rank}".encode() for rank in range(3)}

    def set(self, key, value):
        if self.gone:
            raise torch.distributed.DistNetworkError("failed to recv, got 0 bytes")
        self.kept[key] = value

    def get(self, key):
        return self.kept[key]

    def check(self, keys):
        return all(key in self.kept for key in keys)


@pytest.mark.parametrize(
    ("failed", "gone", "told"),
    [
        ([], False, "rank 1 on machine-1, rank 2 on machine-2 did not answer (Timed out waiting 6000ms"),
        ([2], False, "rank 1 on machine-1 did not answer (Timed out"),
        ([1, 2], False, "the ranks lost each other (Timed out"),
        ([], True, "lost the machine of rank 0, or the network to it (Timed out"),
    ],
)
def test_ranks_that_do_not_notice_the_failure_are_named(failed, gone, told, monkeypatch):
    monkeypatch.setattr(distributed, "SECONDS_TO_NOTICE", 0)
    monkeypatch.setattr(distributed, "JOB", {"rank": 0, "size": 3, "store": Store(failed, gone)})
    error = RuntimeError("Timed out waiting 6000ms for recv operation to complete\nat gloo/transport.cc")
    assert distributed.explain(error).startswith(told) and distributed.explain(error).endswith("--resume auto")
    assert distributed.explain(RuntimeError("shapes differ")) is None


def test_without_other_ranks_a_runtime_error_is_a_fault_of_the_code():
    assert distributed.explain(RuntimeError("Timed out waiting for gloo")) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "Lower train.images_per_device"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \n"), "lower data.workers"),
        (RuntimeError("DataLoader timed out after 60 seconds"), "a loader worker ended or hangs"),
        (PermissionError(13, "Permission denied", "/runs/x"), "/runs/x: Permission denied; mend that"),
    ],
)
def test_failures_that_are_no_fault_of_the_code_say_what_to_do(error, told):
    text = distributed.explain(error)
    assert told in text and "\n" not in text


def test_a_killed_loader_worker_is_told_of():
    """For real: the worker kills itself as the kernel would."""
    program = PROGRAM.replace("return torch.zeros(3, 8, 8), 0", "import os; os.kill(os.getpid(), 9)")
    ended = subprocess.run(
        [sys.executable, "-c", program, "user"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: a loader worker ended" in ended.stderr and "lower data.workers" in ended.stderr
