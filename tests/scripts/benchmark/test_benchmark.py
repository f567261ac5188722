"""The benchmark compares like with like, and says what it ran. No test says how fast anything is."""

import json
import math
import os

import pytest
import torch
from torchvision.transforms import v2

from scripts.benchmark import benchmark, ours, side_by_side, startup, theirs
from scripts.benchmark.photographs import make_photographs
from scripts.benchmark.side_by_side import Conditions, Contestant, Side, compare, comparison, spread
from scripts.benchmark.workload import AUTHORS, COINCHEUNG, RADIUS
from tests.support.helpers import image_folder
from tests.support.launch import ROOT
from utils.errors import UserError
from utils.run.reading import resolved_config

CONDITIONS = Conditions(pairs=3, threads=1, device="cpu")
MB = 10**6 // 4  # float32 numbers


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return str(make_photographs(tmp_path_factory.mktemp("photographs"), 16, classes=2))


@pytest.fixture
def threads():
    """Puts back torch's threads, which the input tasks change."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(tmp_path, *words: str) -> dict:
    benchmark.main([*words, "--threads", "1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"cpu", "cores", "date", "torch", "commit"} <= figures["machine"].keys()
    return figures


def assert_compared(figures: dict, pairs: int):
    assert figures["pairs"] == pairs
    for name in ("theirs_over_ours", "ours_ms", "theirs_ms"):
        values = figures[name]
        assert 0 < values["least"] <= values["median"] <= values["most"] < math.inf


def test_figures_of_pairs_by_hand():
    figures = comparison("a", "b", our_seconds=[0.001, 0.002, 0.004], their_seconds=[0.002, 0.002, 0.012])
    assert figures["theirs_over_ours"] == {"median": 2, "quartiles": [1, 3], "least": 1, "most": 3}
    assert figures["ours_ms"] == {"median": 2, "quartiles": [1, 4], "least": 1, "most": 4}
    assert figures["theirs_ms"]["most"] == 12
    assert (figures["ours"], figures["theirs"], figures["pairs"]) == ("a", "b", 3)
    assert spread([7.00049]) == {"median": 7, "quartiles": [7, 7], "least": 7, "most": 7}


@pytest.mark.parametrize(
    ("recipe", "config"), [(COINCHEUNG, "pretrain_resnet50.yaml"), (AUTHORS, "pretrain_resnet50_paper.yaml")]
)
def test_recipes_are_those_of_the_configs(recipe, config):
    values = resolved_config(str(ROOT / "configs" / config))
    assert recipe.output == values["filter.output"]
    assert recipe.clamp == (values["filter.clamp"] and tuple(values["filter.clamp"]))
    assert (recipe.eps, recipe.reduction) == (values["loss.eps"], values["loss.reduction"])
    assert recipe.gray == (values["loss.target"] == "gray") and values["filter.radius"] == RADIUS


@pytest.mark.parametrize("recipe", [COINCHEUNG, AUTHORS], ids=lambda recipe: recipe.key)
def test_whole_spectra_give_the_same_as_ours(recipe):
    arguments = {"recipe": recipe, "batch": 4, "size": 48, "device": "cpu"}
    our_task, their_task = ours.OurFilterAndLoss(**arguments), theirs.FullSpectrumFilterAndLoss(**arguments)
    clean = our_task.clean.double()
    assert torch.allclose(our_task.filtered(clean), their_task.filtered(clean), atol=1e-12)
    our_prediction = torch.rand_like(clean).requires_grad_()
    their_prediction = our_prediction.detach().clone().requires_grad_()
    our_loss, their_loss = our_task.loss(our_prediction, clean), their_task.loss(their_prediction, clean)
    our_loss.backward()
    their_loss.backward()
    assert torch.allclose(our_loss, their_loss, rtol=1e-10)
    assert torch.allclose(our_prediction.grad, their_prediction.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.process
def test_both_steps_train_the_same_model_on_the_same_loss():
    arguments = {"model": "resnet18", "batch": 4, "size": 64, "device": "cpu"}
    torch.manual_seed(0)
    our_step = ours.OurStep(**arguments, precision="float32")
    torch.manual_seed(0)
    their_step = theirs.CoinCheungStep(**arguments)
    assert our_step.work == their_step.work == 4
    our_losses = [our_step()["loss"][0].item() for _ in range(3)]
    their_losses = [their_step() for _ in range(3)]
    # AdamW's first updates are ± its rate, whatever the gradient's size: rounding grows from step to step.
    assert our_losses == pytest.approx(their_losses, rel=2e-3)
    assert our_losses[0] == pytest.approx(their_losses[0], rel=1e-5)
    assert our_losses[2] < our_losses[0]


def test_both_inputs_make_the_same_crops(photographs, threads):
    arguments = {"data_path": photographs, "size": 224, "interpolation": "bicubic", "images": 16}
    difference = theirs.pixel_difference(**arguments)
    assert difference["largest"] <= 6 and difference["mean"] < 0.3 and difference["share_above_2"] < 1e-4
    for make, dtype in ((ours.OurInput, torch.uint8), (theirs.PilInput, torch.float32)):
        images = make(**arguments)()[0]
        assert images.shape == (16, 3, 224, 224) and images.dtype == dtype


def test_input_goes_on_where_the_last_call_ended(photographs, threads):
    task = ours.DecodingAlone(photographs, images=10)
    numbers = []
    task.load = numbers.append
    task()
    task()
    assert numbers == [*range(16), 0, 1, 2, 3]


class Allocates:
    """Holds `brief` MB for a moment, and `lasting` MB from then on."""

    work = 1

    def __init__(self, brief: int, lasting: int):
        self.brief, self.lasting, self.kept = brief, lasting, []

    def __call__(self) -> None:
        torch.ones(self.brief * MB)
        self.kept.append(torch.ones(self.lasting * MB))


class Broken:
    def __init__(self):
        raise UserError("broken on purpose")


class Ends:
    def __init__(self):
        os._exit(1)


def side(make: type, keeps_freed_memory: bool = True, **arguments) -> Side:
    return Side(make.__name__, make, arguments, keeps_freed_memory)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_side_sets_up_its_own_process(keeps, monkeypatch, threads):
    calls = []
    monkeypatch.setattr(side_by_side, "die_with_parent", lambda _signal: calls.append("die"))
    monkeypatch.setattr(side_by_side, "keep_freed_memory", lambda: calls.append("keep"))
    side_by_side.set_up(side(Allocates, keeps, brief=1, lasting=0), Conditions(pairs=1, threads=1, device="cpu"))
    assert calls == (["die", "keep"] if keeps else ["die"]) and torch.get_num_threads() == 1


@pytest.mark.process
def test_sides_are_told_apart_with_their_memory():
    figures = compare(
        side(Allocates, brief=8, lasting=0), side(Allocates, brief=32, lasting=2), CONDITIONS, memory=True
    )
    assert_compared(figures, CONDITIONS.pairs)
    assert figures["memory"]["ours"] == {"most_mb": pytest.approx(8, rel=0.1), "left_mb": 0}
    assert figures["memory"]["theirs"]["most_mb"] == pytest.approx(32, rel=0.1)
    assert figures["memory"]["theirs"]["left_mb"] == pytest.approx(2, rel=0.1)


@pytest.mark.process
@pytest.mark.parametrize(("make", "message"), [(Broken, "broken on purpose"), (Ends, "Ends ended early")])
def test_a_side_that_fails_ends_the_benchmark(make, message):
    with Contestant(side(make), CONDITIONS) as contestant:
        with pytest.raises((UserError, RuntimeError), match=message):
            contestant.wait_until_ready()


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["Memcpy DtoD (Device -> Device)", "ampere_sgemm", "Memset (Device)", "ampere_sgemm"], (2, 2)),
        (["vectorized_elementwise_kernel"], (1, 0)),
    ],
)
def test_kernels_are_told_from_copies(names, counts):
    assert side_by_side.counts_of_launches(names) == {"kernels": counts[0], "copies": counts[1]}


@pytest.mark.parametrize("names", [[], ["Memcpy HtoD (Pinned -> Device)"]])
def test_a_profiler_that_sees_no_kernel_is_not_believed(names):
    assert side_by_side.counts_of_launches(names) == "not available"


@pytest.mark.process
def test_step_writes_a_trace(tmp_path):
    trace = tmp_path / "trace.json"
    words = ("--pairs", "2", "--size", "64", "--batch", "4", "--model", "resnet18", "--profile", str(trace))
    figures = run(tmp_path, "step", *words)
    assert_compared(figures["step"], 2)
    assert figures["step"]["launches"] == {"ours": "not available", "theirs": "not available"}
    assert figures["settings"]["recipe"] == "code_a" and figures["settings"]["batch"] == 4
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::convolution" in names and "aten::_fft_r2c" in names


def compare_in_this_process(our_side, their_side, conditions, memory=False, launches=False, trace=None) -> dict:
    """Instead of `compare`, which starts two processes: each side is built and works once."""
    assert conditions == CONDITIONS
    for one in (our_side, their_side):
        assert one.keeps_freed_memory == (one.make.__module__ == ours.__name__)
        task = one.make(**one.arguments)
        task()
        assert task.work > 0
    return comparison(our_side.name, their_side.name, [1.0] * conditions.pairs, [2.0] * conditions.pairs)


@pytest.fixture
def one_process(monkeypatch, threads):
    monkeypatch.setattr(benchmark, "compare", compare_in_this_process)
    monkeypatch.setattr(startup, "compare", compare_in_this_process)


def test_input_and_eval_take_their_options(tmp_path, photographs, one_process):
    words = ("--pairs", "3", "--images", "4", "--size", "64", "--data-path", photographs)
    figures = run(tmp_path, "input", *words)
    assert_compared(figures["against_pil"], 3)
    assert figures["against_decoding_alone"]["theirs"] == "decoding_alone"
    assert figures["pixel_difference_from_pil"]["mean"] < 0.3
    assert figures["settings"]["data_path"] == photographs and figures["settings"]["mean_kb"] > 10
    assert_compared(run(tmp_path, "eval", *words)["several_over_one"], 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no file"):
        run(tmp_path, "input", "--data-path", str(tmp_path / "empty"))


def test_augment_compares_both_styles_on_the_same_crops(tmp_path, photographs, one_process):
    figures = run(tmp_path, "augment", "--pairs", "3", "--images", "4", "--data-path", photographs)
    for style in ("torchvision", "timm"):
        assert_compared(figures[style], 3)
    assert figures["settings"]["size"] == 160
    arguments = {"style": "timm", "data_path": photographs, "size": 48, "images": 4}
    our_task, their_task = ours.OurRandAugment(**arguments), theirs.PillowRandAugment(**arguments)
    for crop, pillow in zip(our_task.crops, their_task.crops, strict=True):
        assert torch.equal(crop, v2.functional.pil_to_tensor(pillow))
    for images in (our_task(), their_task()):
        assert [(image.shape, image.dtype) for image in images] == 4 * [((3, 48, 48), torch.uint8)]


def test_filter_loss_compares_both_recipes_at_each_batch(tmp_path, one_process):
    figures = run(tmp_path, "filter-loss", "--pairs", "3", "--size", "64", "--batch", "4", "8")
    keys = {"code_a_batch_4", "code_a_batch_8", "paper_batch_4", "paper_batch_8"}
    assert figures.keys() == {"settings", "machine", *keys}


@pytest.mark.process
def test_startup_finds_that_workers_grow_less(tmp_path, monkeypatch, one_process):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # it sets another one, which is put back after the test
    figures = run(tmp_path, "startup", "--pairs", "3", "--files", "60000", "--classes", "3")
    assert_compared(figures["listing"], 3)
    assert figures["from_cache"]["theirs_seconds_in_all"] == 120_000
    assert len(figures["worker_growth_mb_ours"]) == 2
    assert max(figures["worker_growth_mb_ours"]) < min(figures["worker_growth_mb_theirs"])


@pytest.mark.process
def test_pictures_share_of_the_time_of_training(tmp_path):
    images = image_folder(tmp_path / "images" / "train")
    config = tmp_path / "small.yaml"
    config.write_text(
        f"base: {ROOT / 'configs/sample_pretrain.yaml'}\nmodel: {{name: resnet18}}\nfilter: {{radius: 3}}\n"
        f"data: {{train_crop_size: 32, data_path: '{images.parent}'}}\n"
    )
    figures = run(tmp_path, "pictures", "--config", str(config), "--batch", "4", "--pairs", "3", "--device", "cpu")
    event, step = figures["event_ms"]["median"], figures["step_ms"]["median"]
    assert event > 0 and figures["model"] == "resnet18" and figures["every_steps"] == 500
    assert figures["share_of_training_time"] == pytest.approx(event / (event + 500 * step), rel=1e-3)
    assert figures["settings"]["size"] == 32
    with pytest.raises(UserError, match="train: no such image folder"):
        config.write_text(config.read_text().replace(str(images.parent), "nowhere"))
        run(tmp_path, "pictures", "--config", str(config), "--batch", "4", "--device", "cpu")
