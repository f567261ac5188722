"""A loader worker that hangs, as one does on a network disk that has gone."""

from __future__ import annotations

import re
import sys

from tests.support.killing import wait_until_nothing_is_left
from tests.support.launch import endings, start

PROGRAM = """
import sys, time, torch
from torch.utils.data import Dataset
from data.loader import batch_loader
from utils.distributed import run_entry

class HangsAtImage3(Dataset):
    def __getitem__(self, index):
        if index == 3:
            time.sleep(3600)
        return torch.zeros(3, 8, 8, dtype=torch.uint8), index, ""

def main(argv):
    batches = [[0, 1], [2, 3]]
    for number, _ in enumerate(batch_loader(HangsAtImage3(), batches, 1, torch.device("cpu"), timeout_minutes=0.1)):
        print("batch", number, flush=True)
    return 0

run_entry(main, sys.argv[1:])
"""


def test_a_worker_that_hangs_is_named_within_the_timeout_and_does_not_stay_behind(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = start([sys.executable, str(program)], PYTHONPATH=".")
    try:
        [(code, printed)] = endings([process])
    finally:
        process.kill()
    assert code == 2, printed
    assert "batch 0" in printed and "batch 1" not in printed
    assert re.search(r"error: a loader worker .*hangs \(DataLoader timed out after 6(\.0)? seconds\)", printed), printed
    assert "data.workers" in printed and "start it again" in printed
    wait_until_nothing_is_left(tmp_path)
