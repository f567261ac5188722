"""Two runs side by side: what must agree to the last bit, and what is a time and may differ."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from utils.run.checkpoint import read_checkpoint

# Of a line in log.jsonl or of result.json: what depends on the clock, or on how often the run was interrupted.
TIMES = frozenset(
    ("time", "images_per_second", "data_wait_share", "workers_needed", "peak_memory_gb", "seconds", "resumed")
) | {"checkpoint", "provenance"}
STATE = ("model", "optimizer", "scaler", "ema", "health", "step")  # of a checkpoint: what training goes on from


def unequal(one, other, place: str = "") -> list[str]:
    """The places at which nested containers differ, be it by a bit; times are left out."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        differing = []
        for key in (one.keys() | other.keys()) - TIMES:
            differing += unequal(one.get(key), other.get(key), f"{place}.{key}")
        return differing
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = torch.equal(one, other)
    else:
        same = type(one) is type(other) and one == other
    if same:
        return []
    return [place]


def log_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def mathematics(output: Path) -> list[dict]:
    """The lines of a run's log without their times."""
    lines = log_lines(output)
    for line in lines:
        for key in line.keys() & set(TIMES):
            del line[key]
    return lines


def state_of(checkpoint: Path) -> dict:
    saved = read_checkpoint(checkpoint)
    return {key: saved[key] for key in STATE}


def assert_same_state(expected: Path, actual: Path) -> None:
    """Weights, moments, averages and step of two checkpoints agree bit for bit."""
    assert unequal(state_of(expected), state_of(actual)) == []


def everything(output: Path) -> dict:
    """What a finished run leaves that must not depend on how often it was killed."""
    result = json.loads((output / "result.json").read_text())
    return state_of(output / "checkpoints/last.pt") | {"log": log_lines(output), "result": result}
