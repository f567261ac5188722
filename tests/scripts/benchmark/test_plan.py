"""What training would cost: figures by hand, and agreement with the batches of real runs."""

import argparse
import json

import pytest

from data.sampling import BatchPlan
from scripts.benchmark.plan import CARDS, GPUS, IMAGES, Card, Recipe, add_plan_options, as_markdown, forecast, plan
from tests.support.launch import ROOT
from utils.errors import UserError

PRETRAIN = ROOT / "configs" / "pretrain_resnet50.yaml"
FINETUNE = ROOT / "configs" / "finetune_resnet50_bce.yaml"
RECIPE = Recipe("r", crop_size=224, batch_size=2048, images_per_device=256, epochs=1, parameters=25_000_000)


def plan_of(*words: object) -> dict:
    parser = argparse.ArgumentParser()
    add_plan_options(parser)
    return plan(parser.parse_args([str(word) for word in words]))


def forecasts(figures: dict, recipe: str, gpu: str) -> dict[int, dict]:
    (row,) = [row for row in figures["rows"] if (row["recipe"], row["gpu"]) == (recipe, gpu)]
    return {one["gpus"]: one for one in row["of"]}


def test_one_gpu_by_hand():
    figures = plan_of("--recipe", PRETRAIN, FINETUNE)
    one = forecasts(figures, "pretrain_resnet50", "A100")[1]
    assert one["hours"] == pytest.approx(300 * 625 * 2048 / 2470 / 3600)  # floor(1281167 / 2048) = 625
    assert one["loader_cores"] == pytest.approx(2470 / 720) and one["exposed_seconds"] == 0
    assert one["read_mb_per_second"] == pytest.approx(2470 * 0.1154396, rel=1e-5)  # 147,897,477,120 B / 1,281,167
    small = forecasts(figures, "finetune_resnet50_bce", "A100")[1]
    assert small["images_per_second"] == pytest.approx(2470 * 1.96)  # (224 / 160)²
    assert (one["label"], small["label"], small["from"]) == ("published", "predicted", "published")
    line = "| pretrain_resnet50 | A100 | 2,470 published | 3.4 | 285 | 43.18 (2,470/s) | 5.40 (19,760/s) | "
    assert line + "1.07 (100,145/s) | 0.88 (121,214/s)† | 187 |" in as_markdown(figures).splitlines()


def test_a_slow_network_exposes_what_the_backward_pass_does_not_hide():
    """16 GPUs, 1 Gbit/s: 2·15/16 · 4 bytes · parameters / 0.125 GB/s, less 2/3 of 128 images; parameters by hand."""
    figures = plan_of("--recipe", PRETRAIN, "--network-gbit", 1)
    parameters = 25_557_032 - (2048 * 1000 + 1000) + 2048 * 1024 + 1024  # a ResNet-50, its classifier for a decoder
    of_gpus = forecasts(figures, "pretrain_resnet50", "A100")
    exposed = 1.875 * 4 * parameters / 0.125e9 - 2 / 3 * 128 / 2470
    assert of_gpus[16]["exposed_seconds"] == pytest.approx(exposed)
    assert of_gpus[16]["images_per_second"] == pytest.approx(2048 / (128 / 2470 + exposed))
    assert of_gpus[8]["exposed_seconds"] == 0  # no network in one machine


def test_accumulation_hides_the_exchange_behind_its_last_micro_batch_alone():
    """2 GPUs, 1024 images each as 4 micro-batches: 100 MB at 0.1 GB/s is 1 s, of which 2/3 · 256 / 1000 s is hidden."""
    figures = forecast(2, Card(1000, "measured", 224, exchange=0.1), RECIPE, network_gbit=100, images_per_core=730)
    assert figures["exposed_seconds"] == pytest.approx(1 - 0.512 / 3)
    assert figures["images_per_second"] == pytest.approx(2048 / (1.024 + 1 - 0.512 / 3))


@pytest.mark.parametrize("batch", [1000, 2048])
def test_batches_are_split_as_real_runs_split_them(batch):
    recipe = Recipe("r", crop_size=224, batch_size=batch, images_per_device=200, epochs=1, parameters=1)
    for gpus in GPUS:
        figures = forecast(gpus, CARDS["A100"], recipe, network_gbit=100, images_per_core=730)
        if batch % gpus:
            assert "does not divide" in figures["outside"] and "hours" not in figures
        else:
            split = BatchPlan.make(IMAGES, batch, figures["images_per_device"], epochs=1, world_size=gpus)
            assert figures["hours"] * figures["images_per_second"] * 3600 == pytest.approx(split.total_steps * batch)
            assert figures["images_per_device"] == max(n for n in range(1, 201) if batch // gpus % n == 0)
            assert (figures["outside"] is not None) == (figures["images_per_device"] < 32)


def test_a_measured_rate_takes_the_place_of_its_card(tmp_path):
    file = tmp_path / "rate.json"
    file.write_text(json.dumps({"device": "NVIDIA A100-SXM4-80GB", "images_per_second": 1000, "pixels": 160}))
    figures = plan_of("--recipe", PRETRAIN, "--rates", file)
    one = forecasts(figures, "pretrain_resnet50", "A100")[1]
    assert one["images_per_second"] == pytest.approx(1000 / 1.96)  # measured at 160, predicted at 224
    assert (one["label"], one["from"]) == ("predicted", "measured")
    for content in ("", "[]", '{"device": "A100", "images_per_second": "fast", "pixels": 224}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"rate\.json: must hold device"):
            plan_of("--rates", file)
    with pytest.raises(UserError, match="must be above 0"):
        plan_of("--network-gbit", "nan")
