"""Reconstructions, plots and the report of real runs with hostile names; pages are opened in Chromium where it is."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import finetune
import pretrain
from scripts.benchmark import benchmark
from scripts.figures import plot, reconstruct, report
from scripts.study import tables as summary_tables
from tests.support.browser import CHROMIUM, DEEP, browser
from tests.support.helpers import image_folder
from tests.support.launch import FINETUNE, PRETRAIN, ROOT, overriding
from utils.errors import UserError

CLASSES = ("<script>alert(1)<script>", "qu\"o'te&amp;", "雪 Ёлка مرحبا $x_1^{2}$", "n" * 251 + ".bin")
RUNS = ("<img src=x onerror=alert(2)>", "_$\\frac{1}$ \"'`|", "r" * 255)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining and a finetuning of classes with hostile names, in folders with such names; a sweep."""
    root = tmp_path_factory.mktemp("runs")
    for split, count in (("train", 4), ("val", 2)):
        image_folder(root / "images" / split, CLASSES, per_class=count, seed=count)
    (root / "images/val" / CLASSES[0] / "0.png").rename(root / "images/val" / CLASSES[0] / '"><script>1.png')
    batch = ["--batch-size", "8", "train.images_per_device=8", "--data-path", str(root / "images")]
    one, two, three = (root / "logs" / name for name in RUNS)
    words = [*PRETRAIN, *batch, "--epochs", "2", "logging.pictures_every_steps=2", "--output-dir", str(one)]
    assert pretrain.main(words) == 0
    words = [*overriding(FINETUNE, "data.val_resize_size=[40]"), *batch, "--output-dir", str(two)]
    assert finetune.main([*words, "--epochs", "1"]) == 0
    words = [*words[:-2], "--output-dir", str(two), "--weights", str(two / "checkpoints/last.pt")]
    assert finetune.main([*words, "--eval-only", "--frequency-sweep"]) == 0
    three.mkdir()
    for name in ("config.yaml", "log.jsonl", "result.json", "frequency_sweep.json"):  # as a second seed
        (three / name).write_text((two / name).read_text().replace("seed: 0", "seed: 1"))
    return root, [one, two, three]


@pytest.fixture(scope="module")
def page(runs):
    root, folders = runs
    images = [str(root / "images/val")]
    report.main([*map(str, folders), "--images", *images, "--output", str(root / "report.html")])
    return root / "report.html"


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file_with_every_figure_described_and_every_name_as_text(page):
    found = Reader(page.read_text(encoding="utf-8"))
    allowed = (
        "html head meta title style link body h1 h2 nav a figure img figcaption div table thead tbody tr th td p pre ul"
    )
    assert {tag for tag, _ in found.tags} <= set(allowed.split()) | {"details", "summary", "li", "strong"}
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href"):
            assert name not in attributes or attributes[name].startswith(("data:image/png;base64,", "#s", "data:,"))
    assert "url(" not in page.read_text(encoding="utf-8") and "@import" not in page.read_text(encoding="utf-8")
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    # Two losses, the sizes, the sweep, two errors by frequency, the first-layer kernels, reconstructions.
    assert len(images) == 8
    for attributes in images:
        assert len(attributes["alt"]) > 20
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as picture:
            assert picture.width > 500 and np.array(picture.convert("L")).std() > 5
    for name in RUNS:
        assert name in found.text
    alts = " ".join(attributes["alt"] for attributes in images)
    assert f"{CLASSES[0]}/" in alts and RUNS[0] in alts


def test_report_tells_results_differences_and_how_it_was_run(page, runs):
    text = Reader(page.read_text(encoding="utf-8")).text
    result = json.loads((runs[1][1] / "result.json").read_text())
    assert f"{result['results'][0]['top1']:.3f}" in text or f"{result['results'][0]['top1']:.2f}" in text
    assert "run.seed" in text and result["provenance"]["commit"][:40] in text and "train:" in text


@needs_chromium
@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
def test_chromium_shows_every_figure_of_the_report_and_no_error(page, width, scheme, tmp_path):
    with browser() as chromium:
        chromium.open(page.as_uri(), width, scheme=scheme)
        rectangles = chromium.evaluate(
            "[...document.images].map(i => { const r = i.getBoundingClientRect();"
            " return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height} })"
        )
        assert len(rectangles) == 8
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width  # nothing runs off a phone
        for number, clip in enumerate(rectangles):
            assert chromium.screenshot(tmp_path / f"{number}.png", clip).std() > 5, number
        shade = chromium.screenshot()[-1, 0].mean()
        assert shade > 250 if scheme == "light" else shade < 40
        assert chromium.console == []


@needs_chromium
def test_chromium_shows_the_pictures_in_tensorboards_own_page(runs):
    # Its fast loader cannot serve images of a run with a quote or backslash in its name.
    words = ["--logdir", str(runs[0] / "logs"), "--port", "0", "--load_fast=false"]
    command = [sys.executable, "-m", "tensorboard.main", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "http://" in line)
        url = re.search(r"http://\S+", line)[0].rstrip("/")
        with browser() as chromium:
            chromium.open(f"{url}/?darkMode=false#images", 1400, 3600)
            shown = "deep(document, 'img').filter(i => i.naturalWidth > 300 && i.getBoundingClientRect().height > 50)"
            chromium.wait(f"{DEEP} {shown}.length == 8")  # six of pretraining, the confusion matrix, the mistakes
            for clip in chromium.evaluate(f"{DEEP} {shown}.map(i => {{ const r = i.getBoundingClientRect();"
                                          " return {x: r.x, y: r.y, width: r.width, height: r.height} })"):  # fmt: skip
                assert chromium.screenshot(clip=clip).std() > 10, clip
            chromium.open("about:blank")  # another tab's address alone would load nothing
            chromium.open(f"{url}/?darkMode=false#hparams", 1400, 1000)
            chromium.wait(f"{DEEP} deep(document, '*').some(e => e.textContent.includes('train.batch_size'))")
            chromium.open("about:blank")
            chromium.open(f"{url}/?darkMode=false#text", 1400, 1000)
            chromium.wait(f"{DEEP} deep(document, '*').some(e => e.textContent.includes('confidence'))")
            assert not chromium.evaluate(
                f"{DEEP} deep(document, 'script').some(e => e.textContent.includes('alert(1)'))"
            )
            assert chromium.console == []
    finally:
        server.terminate()
        server.communicate()


def test_reconstruct_takes_any_size_and_shows_a_range_of_radii(runs, tmp_path):
    root, (run, *_) = runs
    checkpoint = str(run / "checkpoints/last.pt")
    image_folder(tmp_path / "odd", ("one",), per_class=1, size=(100, 77))
    words = [checkpoint, str(tmp_path / "odd"), "--size", "native", "--output", str(tmp_path / "a.png")]
    reconstruct.main(words)
    reconstruct.main([*words[:-1], str(tmp_path / "b.png"), "--radius", "1.5", "3", "8"])
    for name, columns in (("a", 7), ("b", 4)):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > columns * 200 and np.array(picture.convert("L")).std() > 10
    crop = reconstruct.crop_of(str(tmp_path / "odd/one/0.png"), None, "bicubic")
    assert crop.shape == (1, 3, 64, 96)  # the largest multiples of 32, from the middle
    with Image.open(tmp_path / "odd/one/0.png") as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(crop[0], whole[:, 6:70, 2:98])
    for wrong, told in (
        (["--radius", "99"], "--radius 99: .*leaves no high"),
        (["--size", "50"], "must be train, native or a multiple of 32"),
    ):
        with pytest.raises(UserError, match=told):
            reconstruct.main([*words, *wrong])
    with pytest.raises(UserError, match="not a pretraining checkpoint"):
        reconstruct.main([str(runs[1][1] / "checkpoints/last.pt"), str(tmp_path / "odd")])


def test_plot_writes_what_there_is_and_groups_seeds(runs, tmp_path, capsys):
    plot.main([*map(str, runs[1]), "--output", str(tmp_path), "--format", "svg"])
    assert len(list(tmp_path.glob("*.svg"))) == capsys.readouterr().out.count("wrote ") == 7
    _, two, three = map(plot.read_run, runs[1])
    (points,) = plot.by_size(plot.named([two, three])).values()
    ((values, interval),) = points.values()
    assert len(values) == 2 and interval[0] <= sum(values) / 2 <= interval[1]
    (of_one,) = plot.by_size(plot.named([two])).values()
    assert next(iter(of_one.values()))[1] is None  # one run has no interval
    with pytest.raises(UserError, match="no run .it has no config.yaml"):
        plot.main([str(tmp_path)])


def test_measurements_that_a_resumed_run_repeats_count_once(tmp_path):
    for steps, first in (((1, 2, 3), 0.0), ((2, 4), 10.0)):  # the second attempt goes on after step 1
        writer = SummaryWriter(str(tmp_path), purge_step=steps[0])
        for step in steps:
            for side in ("low_pass", "high_pass"):
                writer.add_tensor(f"radial_error/error/{side}", torch.tensor([first + step]), step)
        writer.close()
        time.sleep(1.1)  # event files are told apart by the second
    history = plot.radial_history(tmp_path)
    assert [(step, values.item()) for step, values in history["error"]["low_pass"]] == [(1, 1.0), (2, 12.0), (4, 14.0)]


def test_a_name_with_a_bar_keeps_its_row_in_one_piece():
    table = "| arm | top-1 |\n|---|---|\n| " + summary_tables.cell("a|b\nc") + " | 5 |"
    found = Reader(report.of_markdown(table))
    assert [tag for tag, _ in found.tags].count("td") == 2 and "a|b c" in found.text


def test_two_results_of_one_run_leave_the_rest_of_the_page(runs, tmp_path, capsys):
    twice = tmp_path / "twice"
    shutil.copytree(runs[1][1], twice)
    report.main([str(runs[1][1]), str(twice), "--output", str(tmp_path / "r.html")])
    assert "No table: " in (tmp_path / "r.html").read_text() and "a second result of arm" in capsys.readouterr().err


def test_a_log_line_cut_short_is_left_out(runs, tmp_path):
    shutil.copytree(runs[1][1], tmp_path / "cut")
    whole = plot.read_run(tmp_path / "cut").lines
    with open(tmp_path / "cut/log.jsonl", "a") as file:
        file.write('{"step": 99, "lo')
    assert plot.read_run(tmp_path / "cut").lines == whole


def test_the_benchmark_of_pictures_tells_their_share(runs, tmp_path):
    recipe = f"base: {ROOT / 'configs/sample_pretrain.yaml'}\nmodel: {{name: resnet18}}\nfilter: {{radius: 3}}\n"

    def benchmark_with(images):
        data = f"data: {{train_crop_size: 32, data_path: '{images}'}}\n"
        (tmp_path / "small.yaml").write_text(recipe + data)
        words = ["--config", str(tmp_path / "small.yaml"), "--batch", "4", "--pairs", "3", "--device", "cpu"]
        benchmark.main(["pictures", *words, "--json", str(tmp_path / "b.json")])

    benchmark_with(runs[0] / "images")
    told = json.loads((tmp_path / "b.json").read_text())
    event, step = told["event_ms"]["median"], told["step_ms"]["median"]
    assert event > 0 and told["model"] == "resnet18" and told["every_steps"] == 500
    assert told["share_of_training_time"] == pytest.approx(event / (event + 500 * step), rel=1e-3)
    with pytest.raises(UserError, match="train: no such image folder"):
        benchmark_with("nowhere")
