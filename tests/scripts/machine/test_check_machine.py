"""check_machine as a whole: rows of made numbers, exit code, JSON; the whole script, alone and on ranks."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import samples
from data.decode import decode_image
from data.sampling import epoch_order
from scripts.machine import environment, loading, ranks, recipes, speed
from scripts.machine.rows import FAIL, INFORMATION, PASS, Row, agreed, as_json, judged, rows_or_failure
from scripts.machine.workload import Workload
from tests.support.helpers import image_folder
from tests.support.launch import ROOT, endings, start, torchrun
from utils.distributed import World
from utils.errors import UserError
from utils.limits import available_cores
from utils.precision import set_tf32

SMALLEST = ["--device", "cpu", "--model", "resnet18", "--pixels", "32", "--images", "2"]
CPU = World(0, 1, 1, torch.device("cpu"))
SMALL = Workload(CPU, "resnet18", pixels=32, images=2, folder=Path("unused"))
SECONDS_AN_IMAGE = 0.05  # of a decoder that is too slow


@pytest.fixture
def script() -> dict:
    return runpy.run_path(str(ROOT / "scripts/check_machine.py"))


def test_a_loader_that_is_too_slow_fails_and_says_how_many_workers_would_do():
    row = loading.loader_row(loader_rate=700, step_rate=2000, workers=4)
    assert row.result == FAIL and "data.workers=12" in row.remedy  # 4 · 2000 / 700 = 11.4
    assert loading.loader_row(2000, 2000, 4).result == PASS
    assert loading.loader_row(0, 2000, 4).result == FAIL


def test_a_slow_decoder_fails_and_the_same_loader_without_it_does_not(tmp_path, monkeypatch):
    """Measured with real loader processes."""

    def slow(path: str) -> torch.Tensor:
        time.sleep(SECONDS_AN_IMAGE)
        return decode_image(path)

    folder = loading.open_images(SMALL, str(image_folder(tmp_path / "images")))
    monkeypatch.setattr(loading, "LEAST_SECONDS", 0.2)
    step_rate = 2 * available_cores() / SECONDS_AN_IMAGE  # twice what so slow a decoder can give
    row = loading.loader_rows(SMALL, folder, "images", step_rate)[0]
    assert row.result == PASS and row.values["loader_images_per_second"] > step_rate
    monkeypatch.setattr(samples, "decode_image", slow)
    row = loading.loader_rows(SMALL, folder, "images", step_rate)[0]
    assert row.result == FAIL and row.values["loader_images_per_second"] < step_rate / 2
    assert "data.workers=" in row.remedy


def test_photographs_are_taken_as_pretraining_takes_them(tmp_path):
    """Without class folders, in train/ or anywhere below."""
    image_folder(tmp_path / "photos/train", classes=["."])
    assert len(loading.open_images(SMALL, str(tmp_path / "photos"))) == 4
    image_folder(tmp_path / "sorted")
    folder = loading.open_images(SMALL, str(tmp_path / "sorted"))
    assert len(folder) == 8
    assert loading.loader_rows(SMALL, folder, "sorted", 1.0)[1].measured.startswith(f"{tmp_path}/sorted, crops")


@pytest.mark.parametrize(("name", "problem"), [("nowhere", "no such image folder"), ("empty", "neither it nor a fold")])
def test_a_folder_that_cannot_be_loaded_is_told_before_anything_is_measured(
    name, problem, tmp_path, script, monkeypatch
):
    (tmp_path / "empty").mkdir()
    measured = []
    measured_rows = script["measured_rows"]
    monkeypatch.setitem(measured_rows.__globals__, "BY_EACH_RANK", {"machine": measured.append})
    with pytest.raises(UserError, match=problem):
        measured_rows(SMALL, str(tmp_path / name))
    assert measured == []


def test_ranks_load_other_images_in_a_trainings_order():
    first, second = (
        itertools.islice(loading.endless_batches(10, 4, World(rank, 2, 2, CPU.device)), 8) for rank in (0, 1)
    )
    first, second = list(first), list(second)
    order = []
    for epoch in (0, 1):
        order += [(epoch, image) for image in epoch_order(10, 0, epoch)]
    assert list(itertools.chain(*first))[:20] == order
    assert list(itertools.chain(*second))[:15] == order[5:]
    assert not set(first[0]) & set(second[0])


def test_without_a_measured_speed_there_are_no_hours():
    row = Row("speed", "the whole section", "an error", result=FAIL)
    rate = speed.default_rate([row], CPU.device)
    [hours] = recipes.recipe_rows(recipes.Measured("resnet50", 224, rate, loader_rate=1000))
    assert hours.result == "not run"
    assert loading.loader_row(700, rate, workers=4).result == FAIL
    measured = speed.mode_row(speed.default_mode(CPU.device), network_alone=9, whole_step=7)
    assert speed.default_rate([row, measured], CPU.device) == 7


def test_float32_is_timed_without_tf32_as_it_trains():
    before = torch.backends.cudnn.allow_tf32
    with speed.numerics_of(speed.Mode("float32", True), CPU.device):
        assert not torch.backends.cudnn.allow_tf32
    with speed.numerics_of(speed.Mode("bfloat16", True), CPU.device):
        assert torch.backends.cudnn.allow_tf32
    set_tf32(before)


@pytest.mark.parametrize(
    ("gb", "images", "result", "advice"),
    [(80, 512, PASS, ""), (24, 128, PASS, "train.images_per_device=128"), (4, 16, FAIL, "smaller model or crop")],
)
def test_images_that_fit(gb, images, result, advice):
    row = speed.fitting_row(bytes_an_image=100e6, fixed_bytes=2e9, available_bytes=gb * 1e9, pixels=224)
    assert (row.values["images_per_device"], row.result) == (images, result) and advice in row.remedy


def test_too_little_memory_and_missing_kernels_fail():
    assert environment.memory_row("the GPU", free_gb=60, needed_gb=72).result == FAIL
    assert environment.memory_row("the GPU", free_gb=78, needed_gb=72).result == PASS
    assert environment.shared_memory_row(workers=2, ranks=1, batch_bytes=2**50).result == FAIL
    assert environment.shared_memory_row(workers=1, ranks=1, batch_bytes=1).result == PASS
    row = environment.kernel_row((6, 1), ["sm_70", "sm_80"])
    assert row.result == FAIL and "torch==2.7.1" in row.remedy
    assert environment.kernel_row((8, 6), ["sm_70", "sm_80"]).result == PASS


@pytest.mark.parametrize(("free_gb", "result"), [(1, FAIL), (100, PASS)])
def test_a_machine_whose_memory_others_have_fails(free_gb, result, monkeypatch):
    monkeypatch.setattr(environment, "free_memory", lambda: free_gb * 10**9)
    rows = {row.what: row for row in environment.environment_rows(SMALL)}
    assert rows["free memory of the machine"].result == result
    assert rows["free memory of the machine"].values == {"free_gb": free_gb, "needed_gb": 4}


def test_driver_version_is_read_from_the_system(tmp_path):
    file = tmp_path / "version"
    assert environment.driver_version(file) == "unknown"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    assert environment.driver_version(file) == "535.183.01"


def test_hours_by_hand():
    measured = recipes.Measured("resnet50", pixels=224, step_rate=2470, loader_rate=1e9)
    rows = {row.what: row for row in recipes.recipe_rows(measured)}
    pretraining, finetuning = rows["pretrain_resnet50"], rows["finetune_resnet50_bce"]
    assert pretraining.values["hours"] == pytest.approx(300 * 625 * 2048 / 2470 / 3600)  # floor(1281167 / 2048) = 625
    assert pretraining.values["scaled"] == []
    assert finetuning.values["images_per_second"] == pytest.approx(2470 * 1.96)  # (224 / 160)²
    assert finetuning.values["scaled"][1:] == ["by a pretraining step", "loader measured without RandAugment"]
    assert "loader measured without RandAugment" not in rows["finetune_resnet50_linear_probe"].measured
    slow = {row.what: row for row in recipes.recipe_rows(replace(measured, loader_rate=1000))}["pretrain_resnet50"]
    assert slow.values["hours"] == pytest.approx(2.47 * pretraining.values["hours"])
    assert "the loader decides" in slow.remedy
    [other] = recipes.recipe_rows(replace(measured, model="resnet18"))
    assert other.result == "not run"


def test_a_faster_mode_and_slow_links_get_advice():
    default, other = speed.Mode("float32", True), speed.Mode("float32", False)
    row = speed.fastest_row({default: 100, other: 130}, default)
    assert row.remedy == "train.precision=float32 model.channels_last=false would be faster"
    assert speed.fastest_row({default: 100, other: 105}, default).remedy == ""
    assert ranks.step_row(together=700, best=1000, ranks=2).remedy and not ranks.step_row(900, 1000, 2).remedy


def test_an_error_in_a_section_is_a_row(tmp_path):
    def broken(_work: Workload) -> list[Row]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    [row] = rows_or_failure("s", Workload(CPU, "resnet18", 32, 2, tmp_path), broken)
    assert row.result == FAIL and "illegal memory access" in row.remedy


class TwoRanks:
    """Stands for a World whose second rank has other rows."""

    def __init__(self, others: list[Row]):
        self.others = others

    def gather(self, rows: list[Row]) -> list[list[Row]]:
        return [rows, self.others]


def test_a_failure_of_any_rank_is_in_the_table():
    good, bad = judged("s", "w", True, "0", "", ""), judged("s", "w", False, "1", "", "mend it")
    crash = Row("s", "the whole section", "an error", result=FAIL)
    assert agreed([good], TwoRanks([good])) == [good]
    assert agreed([good], TwoRanks([bad, crash])) == [
        replace(bad, what="w (rank 1)"), replace(crash, what="the whole section (rank 1)"),
    ]  # fmt: skip
    assert agreed([bad], TwoRanks([good])) == [bad]


@pytest.mark.parametrize(("holds", "code"), [(True, 0), (False, 1)])
def test_exit_code_and_json(holds, code, tmp_path, script, monkeypatch, capsys):
    row = judged("s", "a | b", holds, "nan", "a number", "mend it", {"value": float("nan")})
    main = script["main"]
    monkeypatch.setitem(main.__globals__, "measured_rows", lambda work, data_path: [row])
    monkeypatch.setitem(main.__globals__, "join", lambda device, timeout_minutes: CPU)
    file = tmp_path / "machine.json"
    assert main([*SMALLEST, "--json", str(file)]) == code
    content = json.loads(file.read_text())
    assert content["passed"] == holds and content["rows"] == [as_json(row)]
    assert content["rows"][0]["values"] == {"value": "nan"} and content["provenance"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "| s | a \\| b | nan |" in printed and ("mend it" in printed) != holds


def test_a_wrong_size_is_told(tmp_path, script):
    options = script["parse"]([*SMALLEST, "--images", "1"])
    with pytest.raises(UserError, match="--images = 1"):
        script["workload_of"](options, CPU, tmp_path)


@pytest.mark.process
def test_whole_script_on_a_cpu(tmp_path):
    file = tmp_path / "machine.json"
    job = start([sys.executable, "scripts/check_machine.py", *SMALLEST, "--json", str(file)])
    [(code, printed)] = endings([job], seconds=600)
    content = json.loads(file.read_text())
    failures = [row for row in content["rows"] if row["result"] == FAIL]
    assert code == (1 if failures else 0) and "| section | what |" in printed
    sections = {row["section"] for row in content["rows"]}
    assert {"machine", "filter and loss", "training steps", "bad steps", "deterministic", "evaluation"} <= sections
    assert {"memory", "speed", "loader", "ranks", "hours of a recipe"} <= sections
    # Free memory and the loader's speed are the machine's own.
    assert [row for row in failures if row["section"] not in ("machine", "loader")] == []


@pytest.mark.process
def test_two_ranks(tmp_path):
    file = tmp_path / "machine.json"
    code, printed = torchrun(2, "scripts/check_machine.py", *SMALLEST, "--json", str(file))
    assert file.is_file(), printed
    content = json.loads(file.read_text())
    rows = {row["what"]: row for row in content["rows"] if row["section"] == "ranks"}
    assert code == (0 if content["passed"] else 1) and content["ranks"] == 2
    assert rows["weights of all ranks after the steps"]["result"] == PASS
    assert rows["all_reduce, bus bandwidth"]["result"] == INFORMATION
