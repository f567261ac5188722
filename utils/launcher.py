"""What torchrun tells a rank, and what a rank tells torchrun."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
# Variables of launchers that start several copies of a program without giving them ranks.
COPIES = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun"}


@dataclass(frozen=True)
class Place:
    """A process's place in a job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of its machine
    local_size: int = 1


def read_place(environment: Mapping[str, str]) -> Place:
    """The place that a launcher's variables give; a job of one process without any.

    Raises: UserError if they are incomplete or contradict each other.
    """
    if not any(name in environment for name in NUMBERS):
        for name, launcher in COPIES.items():
            if environment.get(name, "1") != "1":
                problem = f"{name} = {environment[name]}: {launcher} started copies that know nothing of each other"
                raise UserError(f"{problem}; have it start torchrun once a machine, as scripts/slurm.sbatch does")
        return Place()
    need = NUMBERS[:2] if environment.get("WORLD_SIZE") == "1" else NUMBERS + MEETING_POINT
    missing = [name for name in need if name not in environment]
    if missing:
        given = [name for name in NUMBERS if name in environment]
        raise UserError(f"{', '.join(given)} set, but not {', '.join(missing)}; {remedy()}")
    place = Place(
        rank=number(environment, "RANK"), size=number(environment, "WORLD_SIZE"),
        local_rank=number(environment, "LOCAL_RANK"), local_size=number(environment, "LOCAL_WORLD_SIZE"),
    )  # fmt: skip
    number(environment, "MASTER_PORT")
    if not place.rank < place.size or not place.local_rank < place.local_size <= place.size:
        given = [f"{name} = {environment[name]}" for name in NUMBERS if name in environment]
        raise UserError(f"{', '.join(given)}: a rank must be below the number of ranks; {remedy()}")
    return place


def number(environment: Mapping[str, str], name: str) -> int:
    """A launcher's variable; where it may be missing, as in a job of one process."""
    text = environment.get(name, "1" if "SIZE" in name else "0")
    if not text.isdecimal():
        raise UserError(f"{name} = {text}: must be a whole number; {remedy()}")
    return int(text)


def remedy() -> str:
    program = os.path.basename(sys.argv[0]) or "pretrain.py"
    return f"start ranks by torchrun --nproc_per_node=N {program} …, or unset them for one process"


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def another_rank_failed() -> bool:
    """Whether another rank of this machine has reported an error to torchrun: then ours is a consequence."""
    if not os.environ.get("TORCHELASTIC_ERROR_FILE"):
        return False
    own = Path(os.environ["TORCHELASTIC_ERROR_FILE"])  # attempt_0/LOCAL_RANK/error.json
    return any(path != own for path in own.parents[1].glob("*/error.json"))


def another_rank_is_gone() -> bool:
    """Whether torchrun has fewer ranks than it started: then it ends the others, as if they were asked to stop."""
    parent = os.getppid()
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return is_launched() and len(children) < number(os.environ, "LOCAL_WORLD_SIZE")


def tell_torchrun(message: str) -> bool:
    """Leave the message for the end of torchrun's summary. Returns: whether torchrun is going to show it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    restarts_left = number(os.environ, "TORCHELASTIC_MAX_RESTARTS") - number(os.environ, "TORCHELASTIC_RESTART_COUNT")
    if not path or restarts_left > 0:
        return False
    details = {"py_callstack": f"\n{message}", "timestamp": str(int(time.time()))}  # torchrun shows the call stack
    try:
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": details}}), encoding="utf-8")
    except OSError:
        return False
    return True
