"""What launchers tell a process, complete or not, and what a rank leaves for torchrun's summary."""

from __future__ import annotations

import json

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from utils import launcher
from utils.errors import UserError
from utils.launcher import Place, read_place

WHOLE = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0, 1)),
        (WHOLE, Place(3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place(0, 1, 0, 1)),  # a cluster's job of one process
        ({"MASTER_ADDR": "somewhere"}, Place(0, 1, 0, 1)),
        ({"SLURM_STEP_NUM_TASKS": "1"}, Place(0, 1, 0, 1)),
        ({"SLURM_NTASKS": "8"}, Place(0, 1, 0, 1)),  # of a batch script that starts one process
        (WHOLE | {"SLURM_STEP_NUM_TASKS": "2"}, Place(3, 4, 1, 2)),  # torchrun under srun
    ],
)
def test_a_place_is_read_from_a_launchers_variables(environment, place):
    assert read_place(environment) == place


@pytest.mark.parametrize("missing", WHOLE)
def test_a_job_of_several_needs_every_variable(missing):
    environment = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(UserError, match=f"set, but not {missing}; start ranks by torchrun .*, or unset"):
        read_place(environment)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"RANK": "0"}, "RANK set, but not WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set, but not RANK"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK set, but not RANK"),
        ({"WORLD_SIZE": "1"}, "WORLD_SIZE set, but not RANK"),
        (WHOLE | {"RANK": "4"}, "RANK = 4, .* a rank must be below the number of ranks"),
        (WHOLE | {"RANK": "-1"}, "RANK = -1: must be a whole number"),
        (WHOLE | {"RANK": ""}, "RANK = : must be a whole number"),
        (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE = two: must be a whole number"),
        (WHOLE | {"LOCAL_RANK": "2"}, "LOCAL_RANK = 2"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE = 8"),
        (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT = http: must be a whole number"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started copies that know nothing of each other; have it start torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started copies"),
    ],
)
def test_variables_that_make_no_job_are_told_with_the_remedy(environment, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        read_place(environment)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 280


@pytest.fixture
def error_file(monkeypatch, tmp_path):
    path = tmp_path / "attempt_0/1/error.json"
    for rank in ("0", "1"):
        (tmp_path / "attempt_0" / rank).mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    for name, value in {"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    return path


def test_torchruns_own_summary_ends_with_what_a_rank_tells(error_file):
    message = "[rank 1 on machine] error: \udcfc.yaml is gone;\n  write it anew"
    assert launcher.tell_torchrun(message)
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(error_file))
    killed = ProcessFailure(local_rank=0, pid=6, exitcode=-15, error_file="absent")
    *_, first, second, border = str(ChildFailedError("pretrain.py", {1: failure, 0: killed})).splitlines()
    assert [first[2:], second[2:]] == message.splitlines() and set(border) == {"="}


def test_without_torchrun_or_before_its_restart_a_rank_must_speak_for_itself(error_file, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert not launcher.tell_torchrun("why") and not error_file.exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert launcher.tell_torchrun("why") and json.loads(error_file.read_text())["message"]["message"] == "why"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file.parent))  # as on a full disk
    assert not launcher.tell_torchrun("why")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert not launcher.tell_torchrun("why") and not launcher.another_rank_failed()


def test_a_rank_knows_of_another_ranks_error_and_not_of_its_own(error_file):
    assert not launcher.another_rank_failed()
    error_file.write_text("{}")
    assert not launcher.another_rank_failed()
    (error_file.parents[1] / "0/error.json").write_text("{}")
    assert launcher.another_rank_failed()
