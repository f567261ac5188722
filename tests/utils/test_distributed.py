"""How an entry point ends, and what it says about failures that are no fault of the code."""

import ctypes
import errno
import json
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from tests.support.launch import ROOT, endings, start_ranks
from utils import distributed, restart

PROGRAM = """
import sys, torch
from data.loader import batch_loader
from utils.distributed import join, run_entry
from utils.errors import UserError

class Endless(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return torch.zeros(3, 8, 8), 0

def main(argv):
    batches = iter(batch_loader(Endless(), [[key] for key in range(1000)], 1, torch.device("cpu")))
    next(batches)
    main.batches = batches  # alive until the interpreter ends
    if argv[0] == "rank":  # as in predict.py, which is no training
        join("cpu", 1)
        raise KeyboardInterrupt
    raise {"interrupt": KeyboardInterrupt, "exit": SystemExit, "user": UserError, "other": ValueError}[argv[0]]("why")

run_entry(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("interrupt", 130, "stopped by Ctrl-C"),
        ("rank", 75, "stopped on request\n"),
        ("exit", 1, "why"),
        ("user", 2, "error: why"),
        ("other", 1, "ValueError: why"),
    ],
)
@pytest.mark.process
def test_an_entry_point_ends_whatever_happens_while_loader_workers_live(how, code, message):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code and message in ended.stderr
    assert ("Traceback" in ended.stderr) == (how == "other")


class Store:
    """A job's store. Some ranks have reported their failure in it, or the machine that holds it is gone."""

    def __init__(self, failed, gone=False):
        self.gone = gone
        self.content = {}
        for rank in failed:
            self.content[f"failed {rank}"] = b""
        for rank in range(3):
            self.content[f"host {rank}"] = f"machine-{rank}".encode()

    def set(self, key, value):
        if self.gone:
            raise torch.distributed.DistNetworkError("failed to recv, got 0 bytes")
        self.content[key] = value

    def get(self, key):
        return self.content[key]

    def check(self, keys):
        return all(key in self.content for key in keys)


@pytest.mark.parametrize(
    ("failed", "gone", "message"),
    [
        ([], False, "rank 1 on machine-1, rank 2 on machine-2 did not answer (Timed out waiting 6000ms"),
        ([2], False, "rank 1 on machine-1 did not answer (Timed out"),
        ([1, 2], False, "the ranks lost each other (Timed out"),
        ([], True, "lost the machine of rank 0, or the network to it (Timed out"),
    ],
)
def test_ranks_that_never_report_the_failure_are_named(failed, gone, message, monkeypatch):
    monkeypatch.setattr(distributed, "SECONDS_TO_NOTICE", 0)
    job = distributed.RankStore(rank=0, size=3, store=Store(failed, gone))
    monkeypatch.setattr(distributed, "rank_store", job)
    monkeypatch.setattr(restart, "is_training", True)
    error = RuntimeError("Timed out waiting 6000ms for recv operation to complete\nat gloo/transport.cc")
    explanation = distributed.explain(error)
    assert explanation.startswith(message) and explanation.endswith("--resume auto")
    assert distributed.explain(RuntimeError("shapes differ")) is None


def test_without_other_ranks_a_runtime_error_is_a_fault_of_the_code():
    assert distributed.explain(RuntimeError("Timed out waiting for gloo")) is None


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \n"), "lower data.workers"),
        (RuntimeError("DataLoader timed out after 60 seconds"), "a loader worker ended or hangs"),
        (PermissionError(13, "Permission denied", "/runs/x"), "/runs/x: Permission denied; fix this"),
    ],
)
def test_failures_that_are_no_fault_of_the_code_say_what_to_do(error, remedy):
    text = distributed.explain(error)
    assert remedy in text and "\n" not in text


ADVISED = {  # errors whose advice depends on the program
    "a full disk": OSError(errno.ENOSPC, "No space left on device", "/runs/x"),
    "an error of a disk": OSError(errno.EIO, "Input/output error"),
    "open files": OSError(errno.EMFILE, "Too many open files"),
    "memory": MemoryError("cannot allocate memory"),
    "a killed worker": RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    "shared memory": RuntimeError("unable to write to file </torch_1>"),
    "a library": RuntimeError("OSError: /cache/kernel.so: file too short"),
}


@pytest.mark.parametrize("error", ADVISED.values(), ids=ADVISED)
def test_only_a_training_is_advised_to_resume(error, monkeypatch):
    for is_training in (True, False):
        monkeypatch.setattr(restart, "is_training", is_training)
        try:
            raise error
        except Exception as raised:
            explanation = distributed.explain(raised)
        assert ("--resume auto" in explanation) == is_training
        assert explanation.endswith("start it again") == (not is_training)


def test_a_half_written_library_of_a_compilation_is_named(tmp_path):
    library = tmp_path / "kernel.so"
    library.write_bytes(b"")
    with pytest.raises(OSError, match="file too short") as caught:
        ctypes.CDLL(str(library))
    explanation = distributed.explain(RuntimeError(f"backend='inductor' raised:\nOSError: {caught.value}"))
    assert explanation.startswith(f"{library}: a half-written library") and "remove it" in explanation


@pytest.mark.process
def test_a_killed_loader_worker_is_explained():
    """For real: the worker kills itself as the kernel would."""
    program = PROGRAM.replace("return torch.zeros(3, 8, 8), 0", "import os; os.kill(os.getpid(), 9)")
    ended = subprocess.run(
        [sys.executable, "-c", program, "user"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: a loader worker ended" in ended.stderr and "lower data.workers" in ended.stderr


AT_JOINING = """
import json, os, sys
import torch
import torch.distributed as dist
from configs.schema import PretrainConfig
from utils.config import parse_command_line
from utils.run.job import open_job

def noting(*arguments, **options):
    print("AT JOINING", json.dumps({
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "nccl": os.environ.get("NCCL_ALGO"),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "search": torch.backends.cudnn.benchmark,
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
    }), flush=True)
    return original(*arguments, **options)

original, dist.init_process_group = dist.init_process_group, noting
open_job(parse_command_line(PretrainConfig, sys.argv[1:], ""))
dist.destroy_process_group()
"""


@pytest.mark.process
@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_set_when_the_ranks_join(deterministic, tmp_path, monkeypatch):
    """Observed in real ranks: NCCL and torch's process group look at it at that moment."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "open_job.py"
    program.write_text(AT_JOINING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [f"run.deterministic={str(deterministic).lower()}", "run.device=cpu", "--output-dir", str(tmp_path / "run")]
    for code, printed in endings(start_ranks(2, str(program), *words)):
        assert code == 0, printed
        (line,) = [line for line in printed.splitlines() if line.startswith("AT JOINING")]
        at_joining = json.loads(line.removeprefix("AT JOINING"))
        expected = {"cublas": None, "nccl": None, "deterministic": False, "search": True, "fills": True}
        if deterministic:
            expected = {
                "cublas": ":4096:8", "nccl": "^NVLS", "deterministic": True, "search": False, "fills": False,
            }  # fmt: skip
        assert at_joining == expected


@pytest.fixture
def group_of_one(tmp_path):
    dist = torch.distributed
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(minutes=7))
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_timeout_of_one_backend_can_be_longer(group_of_one):
    """On a GPU it is NCCL's; here gloo's, which is set in the same way."""
    cpu = torch.device("cpu")
    backend = group_of_one._get_backend(cpu)
    assert backend.options._timeout == timedelta(minutes=7)
    distributed.set_timeout_on(cpu, timedelta(minutes=7) + distributed.NCCL_WAITS_LONGER)
    assert backend.options._timeout == timedelta(minutes=9)
