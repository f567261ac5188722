"""How much memory a piece of code takes, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT

# getrusage's ru_maxrss would not do: a new process inherits it from the one that started it.
PROGRAM = """
import sys

def peak_kilobytes():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])

{prepare}
before = peak_kilobytes()
{measured}
print(peak_kilobytes() - before)
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells peak memory")


def peak_megabytes(prepare: str, measured: str, *arguments: str) -> float:
    """What the code `measured` adds to the peak memory after `prepare`; both see the arguments as sys.argv[1:]."""
    program = PROGRAM.format(prepare=prepare, measured=measured)
    command = [sys.executable, "-c", program, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout) / 1024
