"""What every rank takes for granted to be alike on all ranks, and is verified before the first step.

Unlike ranks often train to the end, and what they have trained is nothing that anybody asked for.
"""

import os
import socket
import zlib
from pathlib import Path
from typing import Any

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import to_dict
from utils.distributed import World
from utils.errors import UserError, listed, printable
from utils.run.checkpoint import newest_for_last
from utils.run.provenance import code_fingerprint, versions
from utils.run.reading import differing, flat

# Knobs that may differ from rank to rank. None of them affects weights or scores. Each is a place on the rank's own
# machine, or rank 0 alone acts on it, or it says how a rank works and not on what. Every other knob must be alike, also
# of those that affect nothing: `logging.every_steps` decides when the ranks exchange something.
MAY_DIFFER = frozenset((
    "run.output_dir", "run.resume",  # rank 0 alone writes, and says which checkpoint all ranks continue from
    "run.weights", "data.data_path",  # a machine may have its own copy; the copies' contents are compared
    "run.device",  # the device that came of it is compared
    "run.timeout_minutes", "data.workers", "data.val_batch_size",
    "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep", "checkpoint.on_save_error",  # rank 0's
    "logging.pictures_every_steps",  # rank 0's
))  # fmt: skip
Facts = dict[str, Any]  # name -> value


def facts_of_start(config: PretrainConfig | FinetuneConfig, device: str, precision: str) -> Facts:
    """Config, code, versions and device: what decides which exchanges the ranks make at all.

    Args:
        device: its type, "cpu" or "cuda".
        precision: the one that `train.precision` came to on this device.
    """
    facts: Facts = {}
    for key, value in flat(to_dict(config)).items():
        if key not in MAY_DIFFER:
            facts[key] = value
    facts["run.weights given"] = config.run.weights is not None
    facts["code (hash of its files)"] = code_fingerprint()
    facts |= versions()
    facts["device"] = device
    facts["precision"] = precision
    return facts


def facts_of_files(data: dict[str, dict], weights: str | None, resume: Path | None) -> Facts:
    """What the ranks read, each from its own machine or from a file system that they share.

    Args:
        data: {"train": data.identity.identity(folder), …}.
        weights: file of the initial weights.
        resume: the checkpoint to continue from.
    """
    facts = flat(data) | {"run.weights": file_fingerprint(weights), "checkpoint to resume": file_fingerprint(resume)}
    description = f"{weights}.json"  # of an export, see models/description.py
    if weights is not None and os.path.isfile(description):
        facts["JSON beside run.weights"] = file_fingerprint(description)
    return facts


def file_fingerprint(path: str | Path | None) -> str | None:
    """Size and checksum of a file's bytes; of what is no readable file (a name such as torchvision:…), the name."""
    if path is None:
        return None
    checksum = size = 0
    try:
        with open(newest_for_last(path), "rb") as file:
            while block := file.read(2**24):
                checksum = zlib.crc32(block, checksum)
                size += len(block)
    except OSError:
        return f"no file {path}"
    return f"{size} bytes, CRC {checksum:08x}"


def check_ranks_agree(world: World, facts: Facts) -> None:
    """Raises: UserError on all ranks, naming rank, host and what differs, unless these facts are alike everywhere."""
    if world.size == 1:
        return
    hosts_and_facts = world.gather((socket.gethostname(), facts))
    problem = disagreement(hosts_and_facts)
    if problem:
        raise UserError(problem)


def disagreement(hosts_and_facts: list[tuple[str, Facts]]) -> str | None:
    """What differs between rank 0 and the first rank that is unlike it; None if all are alike.

    Args:
        hosts_and_facts: of each rank, in the order of ranks.
    """
    first_host, expected = hosts_and_facts[0]
    unlike = [rank for rank, (_, facts) in enumerate(hosts_and_facts) if facts != expected]
    if not unlike:
        return None
    host, facts = hosts_and_facts[unlike[0]]
    lines = []
    for name, (value_here, value_of_rank_0) in differing(facts, expected).items():
        lines.append(difference_text(name, value_here, value_of_rank_0))
    others = f" (and {len(unlike) - 1} more ranks)" if len(unlike) > 1 else ""
    return (
        f"rank {unlike[0]} on host {host}{others} is not like rank 0 on host {first_host}: {listed(lines, most=120)}.\n"
        "Start all ranks with the same code, libraries and config, on the same data and checkpoint."
    )


def difference_text(name: str, value: Any, expected: Any) -> str:
    """One difference in words; of two lists, the first entries that differ."""
    if isinstance(value, list) and isinstance(expected, list):
        if len(value) != len(expected):
            return f"{name}: {len(value)} entries, rank 0 has {len(expected)}"
        for number, (one, other) in enumerate(zip(value, expected, strict=True)):
            if one != other:
                return f"{name}: number {number} is {shown(one)}, rank 0 has {shown(other)}"
    return f"{name}: {shown(value)}, rank 0 has {shown(expected)}"


def shown(value: Any) -> str:
    return printable(str(value), most=40)
