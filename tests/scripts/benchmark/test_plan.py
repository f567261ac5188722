"""What training would cost: figures by hand, properties of the prediction, agreement with the batches of real runs."""

from __future__ import annotations

import argparse
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampling import BatchPlan
from scripts.benchmark.plan import CARDS, GPUS, IMAGES, add_arguments, as_markdown, figures, plan
from tests.support.launch import ROOT
from utils.errors import UserError

PRETRAIN = ROOT / "configs" / "pretrain_resnet50.yaml"
FINETUNE = ROOT / "configs" / "finetune_resnet50_bce.yaml"
RECIPE = {
    "data.train_crop_size": 224, "train.batch_size": 2048, "train.images_per_device": 256, "schedule.epochs": 1,
    "parameters": 25_000_000,
}  # fmt: skip
RATES = st.floats(1, 1e5)


def found_by(*words) -> dict:
    return plan(add_arguments(argparse.ArgumentParser()).parse_args([str(word) for word in words]))


def of(found: dict, recipe: str, gpu: str) -> dict[int, dict]:
    """Number of GPUs: figures."""
    (row,) = [row for row in found["rows"] if (row["recipe"], row["gpu"]) == (recipe, gpu)]
    return {told["gpus"]: told for told in row["of"]}


def of_card(gpus: int, rate: float, inside: float = math.inf, network_gbit: float = math.inf, **recipe) -> dict:
    return figures(gpus, (rate, "measured", 224, inside), RECIPE | recipe, network_gbit, 730)


@pytest.fixture(scope="module")
def published() -> dict:
    return found_by("--recipe", PRETRAIN, FINETUNE)


def test_one_gpu_takes_images_over_rate(published):
    one = of(published, "pretrain_resnet50", "A100")[1]
    assert one["hours"] == pytest.approx(300 * 625 * 2048 / 2470 / 3600)  # floor(1281167 / 2048) = 625
    assert one["hours"] == pytest.approx(43.184, abs=1e-3) and one["exposed_seconds"] == 0
    assert one["loader_cores"] == pytest.approx(3.4306, abs=1e-4)  # 2470 / 720
    assert one["read_mb_per_second"] == pytest.approx(2470 * 0.1154396, rel=1e-5)  # 147,897,477,120 B / 1,281,167
    assert (one["images_per_device"], one["outside"]) == (256, None)
    small = of(published, "finetune_resnet50_bce", "A100")[1]
    assert small["images_per_second"] == pytest.approx(2470 * 1.96)  # (224 / 160)²
    assert small["hours"] == pytest.approx(100 * 625 * 2048 / (2470 * 1.96) / 3600)


def test_a_slow_network_exposes_what_the_backward_pass_does_not_hide():
    """16 GPUs, 1 Gbit/s: 2·15/16 · 4 bytes · parameters / 0.125 GB/s, less 2/3 of 128 images; parameters by hand."""
    found = found_by("--recipe", PRETRAIN, FINETUNE, "--network-gbit", 1)
    trunk = 25_557_032 - (2048 * 1000 + 1000)  # a ResNet-50 less its classifier
    for recipe, parameters, rate in (
        ("pretrain_resnet50", trunk + 2048 * 1024 + 1024, 2470),
        ("finetune_resnet50_bce", 25_557_032, 2470 * 1.96),
    ):
        told = of(found, recipe, "A100")[16]
        exposed = 1.875 * 4 * parameters / 0.125e9 - 2 / 3 * 128 / rate
        assert told["exposed_seconds"] == pytest.approx(exposed)
        assert told["images_per_second"] == pytest.approx(2048 / (128 / rate + exposed))
        assert of(found, recipe, "A100")[8]["exposed_seconds"] == 0  # no network in one machine


def test_accumulation_hides_the_exchange_behind_its_last_micro_batch_alone():
    """2 GPUs, 1024 images each as 4 micro-batches: 100 MB at 0.1 GB/s is 1 s, of which 2/3 · 256 / 1000 s is hidden."""
    told = of_card(2, 1000, inside=0.1)
    assert told["images_per_device"] == 256
    assert told["exposed_seconds"] == pytest.approx(1 - 0.512 / 3)
    assert told["images_per_second"] == pytest.approx(2048 / (1.024 + 1 - 0.512 / 3))


@given(st.sampled_from(GPUS[4:]), RATES)
def test_the_network_told_to_hide_the_exchange_just_does(gpus, rate):
    least = of_card(gpus, rate)["least_gbit"]
    assert of_card(gpus, rate, network_gbit=least * 1.001)["exposed_seconds"] == 0
    assert of_card(gpus, rate, network_gbit=least * 0.999)["exposed_seconds"] > 0
    assert of_card(gpus, rate, inside=least / 8 * 0.999)["exposed_seconds"] > 0  # the slower of the two counts


@given(st.sampled_from(GPUS), RATES, st.floats(0.1, 1e3), st.floats(0.1, 1e4))
def test_doubling_the_rate_halves_hours_where_nothing_is_exposed_and_never_more(gpus, rate, inside, network):
    assert of_card(gpus, 2 * rate)["hours"] == pytest.approx(of_card(gpus, rate)["hours"] / 2)
    slow, fast = (of_card(gpus, times * rate, inside, network) for times in (1, 2))
    assert slow["hours"] / 2 <= fast["hours"] * (1 + 1e-9) and fast["hours"] <= slow["hours"] * (1 + 1e-9)
    assert slow["images_per_second"] <= gpus * rate * (1 + 1e-9)


def test_more_gpus_are_faster_within_the_recipe(published):
    """Strictly in a machine, and between machines; the first step out of a machine may lose, as for H200s here."""
    for row in published["rows"]:
        told = {figures["gpus"]: figures for figures in row["of"] if not figures["outside"]}
        assert list(told) == GPUS[:7]
        speeds = [figures["images_per_second"] for figures in told.values()]
        for group in (speeds[:4], speeds[4:]):
            assert all(fewer < more for fewer, more in itertools.pairwise(group)), row["gpu"]
        unlimited = [of_card(gpus, speeds[0])["images_per_second"] for gpus in told]
        assert unlimited == pytest.approx([gpus * speeds[0] for gpus in told])
    h200 = of(published, "finetune_resnet50_bce", "H200")
    assert h200[16]["images_per_second"] < h200[8]["images_per_second"]


@given(st.integers(1, 4096), st.sampled_from(GPUS), st.none() | st.integers(1, 512))
def test_batches_are_cut_as_real_runs_cut_them(batch, gpus, images_per_device):
    told = of_card(gpus, 1000, **{"train.batch_size": batch, "train.images_per_device": images_per_device})
    if batch % gpus:
        assert "does not divide" in told["outside"] and "hours" not in told
        with pytest.raises(UserError, match="does not divide"):
            BatchPlan.make(IMAGES, batch, None, 1, world_size=gpus)
        return
    micro = told["images_per_device"]
    assert micro <= (images_per_device or batch)
    cut = BatchPlan.make(IMAGES, batch, micro, 1, world_size=gpus)
    assert told["hours"] * 3600 * gpus * 1000 == pytest.approx(cut.total_steps * batch)
    assert (told["outside"] is not None) == (micro < 32)


def test_what_is_outside_of_the_recipe_is_marked(tmp_path, published):
    for line in as_markdown(published).splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 10 and cells[8].endswith("†") and not any("†" in cell for cell in cells[:8]), line
    (tmp_path / "odd.yaml").write_text(f"base: {PRETRAIN}\ntrain:\n  batch_size: 1000\n  images_per_device: 125\n")
    found = found_by("--recipe", tmp_path / "odd.yaml")
    told = of(found, "odd", "V100")
    assert told[8]["images_per_device"] == 125 and told[1]["images_per_device"] == 125
    assert told[16]["outside"] == told[512]["outside"] == "train.batch_size = 1000 does not divide"
    assert [line.split("|")[-4:-2] for line in as_markdown(found).splitlines()[2:]] == [[" – ", " – "]] * 4


def test_labels_tell_measured_published_and_predicted(tmp_path, published):
    labels = {
        row["gpu"]: [told["label"] for told in row["of"][:2]]
        for row in published["rows"] if row["recipe"] == "pretrain_resnet50"
    }  # fmt: skip
    assert labels == {
        "P40": ["predicted"] * 2, "V100": ["published", "predicted"], "A100": ["published", "predicted"],
        "H200": ["predicted"] * 2,
    }  # fmt: skip
    assert {row["of"][0]["label"] for row in published["rows"] if row["recipe"] != "pretrain_resnet50"} == {"predicted"}

    files = []
    for device, pixels in (("NVIDIA A100-SXM4-80GB", 224), ("Tesla P40", 160), ("Quadro P4000", 224)):
        files.append(tmp_path / f"{device}.json")
        files[-1].write_text(json.dumps({"device": device, "images_per_second": 1000, "pixels": pixels, "more": 1}))
    found = found_by("--recipe", PRETRAIN, FINETUNE, "--rates", *files)
    assert {row["gpu"] for row in found["rows"]} == {*CARDS, "Quadro P4000"}
    a100, p40 = of(found, "pretrain_resnet50", "A100"), of(found, "pretrain_resnet50", "P40")
    assert (a100[1]["images_per_second"], a100[1]["label"], a100[2]["label"]) == (1000, "measured", "predicted")
    assert p40[1]["images_per_second"] == pytest.approx(1000 / 1.96)  # measured at 160, predicted at 224
    assert (p40[1]["label"], p40[1]["from"]) == ("predicted", "measured")
    assert of(found, "finetune_resnet50_bce", "P40")[1]["label"] == "measured"
    assert "1,000 measured" in as_markdown(found)


def test_nvidias_own_rates_of_8_gpus_are_a_little_below_the_prediction(published):
    """Of the page that the rates of one are from: 8056 images/s with V100s, 16621 with A100s."""
    for gpu, rate in (("V100", 8056), ("A100", 16621)):
        assert 1 <= of(published, "pretrain_resnet50", gpu)[8]["images_per_second"] / rate < 1.2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"device": 1, "images_per_second": 1, "pixels": 224}',
     '{"device": "A100", "images_per_second": "fast", "pixels": 224}', '{"device": "A100", "images_per_second": 1}'],
)  # fmt: skip
def test_a_file_without_a_rate_is_named(tmp_path, text):
    (tmp_path / "rate.json").write_text(text)
    with pytest.raises(UserError, match=r"rate\.json: must hold device"):
        found_by("--rates", tmp_path / "rate.json")


@pytest.mark.parametrize("words", [("--network-gbit", 0), ("--images-per-core", -1), ("--network-gbit", "nan")])
def test_figures_that_are_not_above_0_are_refused(words):
    with pytest.raises(UserError, match="must be above 0"):
        found_by(*words)


@pytest.mark.parametrize(("rate", "pixels"), [(0, 224), (1000, -224)])
def test_measured_figures_that_are_not_above_0_are_refused(tmp_path, rate, pixels):
    (tmp_path / "rate.json").write_text(json.dumps({"device": "A100", "images_per_second": rate, "pixels": pixels}))
    with pytest.raises(UserError, match="must be above 0"):
        found_by("--rates", tmp_path / "rate.json")


def test_help_has_the_formula():
    told = add_arguments(argparse.ArgumentParser()).format_help()
    for part in ("max(0, exchange − 2/3 · b/rate)", "floor(1281167 /", "(224 / data.train_crop_size)²"):
        assert part in told
