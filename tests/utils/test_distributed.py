"""How an entry point ends."""

import subprocess
import sys

import pytest

from tests.launch import ROOT

PROGRAM = """
import sys, torch
from data.samples import batch_loader
from utils.distributed import run_entry
from utils.errors import UserError

class Endless(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return torch.zeros(3)

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
