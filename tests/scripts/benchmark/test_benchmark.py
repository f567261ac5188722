"""The benchmark compares like with like, and tells what it ran. How fast it is, no test says."""

import json
import math

import pytest
import torch

from losses.frequency import MaskedFrequencyLoss
from models.frequency_filter import FrequencyFilter
from scripts.benchmark import benchmark, contestants
from scripts.benchmark.photographs import make_photographs
from scripts.benchmark.side_by_side import Contestant, against
from tests.support.launch import ROOT

SETTINGS = {"device": "cpu", "threads": 1, "size": 48, "batch": 4, "pairs": 4, "images": 6, "model": "resnet18"}
SETTINGS |= {"interpolation": "bicubic", "precision": "float32"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return str(make_photographs(tmp_path_factory.mktemp("photographs"), 16, classes=2))


def run(tmp_path, *words) -> dict:
    benchmark.main([*words, "--threads", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"cpu", "cores", "date", "torch", "commit"} <= found["machine"].keys()
    return found


def assert_compared(figures: dict, pairs: int):
    ratio, ours, theirs = figures["theirs_over_ours"], figures["ours_ms"], figures["theirs_ms"]
    assert figures["pairs"] == pairs
    for spread in (ratio, ours, theirs):
        assert 0 < spread["least"] <= spread["median"] <= spread["most"] < math.inf
    assert theirs["least"] / ours["most"] * 0.99 <= ratio["median"] <= theirs["most"] / ours["least"] * 1.01


@pytest.mark.parametrize("recipe", ["code_a", "paper"])
def test_whole_spectra_say_the_same_as_ours(recipe):
    s = SETTINGS | {"recipe": recipe}
    images, keep_low = contestants.half_batch(s)
    clean = images.double() / 255
    paper = recipe == "paper"
    ours = FrequencyFilter(16, None, "real", (0, 1)) if paper else FrequencyFilter(16, None, "abs")
    loss = MaskedFrequencyLoss(16, eps=1e-12, reduction="batch") if paper else MaskedFrequencyLoss(16)
    their_filter, their_loss = contestants.full_spectrum(s, keep_low)
    assert torch.allclose(ours(clean, keep_low), their_filter(clean, keep_low), atol=1e-12)
    one, other = (torch.rand_like(clean).requires_grad_() for _ in range(2))
    other.data.copy_(one)
    mine, theirs = loss(one, clean, keep_low), their_loss(other, clean, keep_low)
    mine.backward(), theirs.backward()
    assert torch.allclose(mine, theirs, rtol=1e-10)
    assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-12)


def test_both_steps_train_the_same_model_on_the_same_loss(monkeypatch):
    monkeypatch.chdir(ROOT)
    s = SETTINGS | {"recipe": "code_a", "size": 64}
    losses = []
    for make in (contestants.our_step, contestants.full_spectrum_step):
        torch.manual_seed(0)
        task, work = make(s)
        found = [task() for _ in range(3)]
        losses.append([one["loss"][0].item() if isinstance(one, dict) else one for one in found])
        assert work == s["batch"]
    # AdamW's first updates are ± its rate, whatever the gradient's size: rounding grows from step to step.
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][2] < losses[0][0]


def test_input_is_of_the_same_crops(photographs):
    s = SETTINGS | {"data_path": photographs, "size": 224, "images": 16}
    found = contestants.pixel_difference(s)
    assert found["largest"] <= 6 and found["mean"] < 0.3 and found["share_above_2"] < 1e-4
    for make, shape in ((contestants.our_input, torch.uint8), (contestants.pil_input, torch.float32)):
        threads = torch.get_num_threads()
        images = make(s)[0]()[0]
        torch.set_num_threads(threads)
        assert images.shape == (16, 3, 224, 224) and images.dtype == shape


def slow(s):
    return lambda: torch.rand(2000, 2000) @ torch.rand(2000, 2000), 1


def quick(s):
    return lambda: torch.rand(20, 20) @ torch.rand(20, 20), 1


def broken(s):
    raise ValueError("broken on purpose")


def test_sides_are_told_apart_with_their_memory():
    found = against(quick, slow, SETTINGS, memory=True)
    assert_compared(found, 4)
    assert found["theirs_over_ours"]["least"] > 1
    assert found["memory"]["theirs"] == {"most_mb": 48.0, "left_mb": 0.0}  # three of 4 million float32


def test_a_side_that_fails_ends_the_benchmark():
    with pytest.raises(RuntimeError, match="ended early"):
        Contestant(broken, SETTINGS).ask("seconds")


def test_filter_loss_tells_ratio_and_memory(tmp_path):
    found = run(tmp_path, "filter-loss", "--pairs", "3", "--size", "64", "--batch", "8")
    for recipe in ("code_a", "paper"):
        figures = found[f"{recipe}_batch_8"]
        assert_compared(figures, 3)
        assert figures["memory"]["ours"]["most_mb"] < figures["memory"]["theirs"]["most_mb"]
        assert figures["memory"]["ours"]["left_mb"] == 0


def test_step_writes_a_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trace = tmp_path / "trace.json"
    words = ("--pairs", "2", "--size", "64", "--batch", "4", "--model", "resnet18", "--profile", str(trace))
    assert_compared(run(tmp_path, "step", *words)["step"], 2)
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::convolution" in names and "aten::_fft_r2c" in names


def test_eval_and_startup_run(tmp_path, photographs):
    found = run(tmp_path, "eval", "--pairs", "2", "--images", "4", "--data-path", photographs)
    assert_compared(found["several_over_one"], 2)
    found = run(tmp_path, "startup", "--pairs", "2", "--files", "60000", "--classes", "3")
    for name in ("listing", "from_cache"):
        assert_compared(found[name], 2)
    assert len(found["worker_growth_mb_ours"]) == 2
    assert max(found["worker_growth_mb_ours"]) < min(found["worker_growth_mb_theirs"])
