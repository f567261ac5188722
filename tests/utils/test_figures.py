"""What the figures hold: lines, shades, texts and labels, asked of matplotlib's own objects."""

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from utils.figures import (
    PictureRow,
    UnitScores,
    confusion_figure,
    curves_figure,
    data_uri,
    grid,
    interval_figure,
    kernels_figure,
    radial_curves,
    radial_figure,
    save,
    smooth,
    sweep_figure,
)

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = ["<script>alert(1)", "a'b\"c", "x" * 255, "雪 Ёлка مرحبا", "$x_1^$ |b|\n*c*", "_hidden", "\udcff"]


def texts(artists) -> list[str]:
    return [artist.get_text() for artist in artists]


def spans(axis) -> list[list[float]]:
    """First and last x of each shaded range."""
    return sorted([patch.get_x(), patch.get_x() + patch.get_width()] for patch in axis.patches)


def test_radial_curves_draw_each_value_in_the_middle_of_its_ring():
    errors = {"low-pass input": torch.tensor([0.5, 0.25, 2.0]), "_high": torch.tensor([1.0, 3.0, 4.0, 5.0])}
    (axis,) = radial_curves(errors, "mean |error|", (2.5,)).axes
    low, high, vertical = axis.lines
    assert low.get_xdata().tolist() == [0.5, 1.5, 2.5] and low.get_ydata().tolist() == [0.5, 0.25, 2.0]
    assert high.get_xdata().tolist() == [0.5, 1.5, 2.5, 3.5] and high.get_ydata().tolist() == [1, 3, 4, 5]
    assert low.get_color() != high.get_color() and low.get_linestyle() != high.get_linestyle()
    assert list(vertical.get_xdata()) == [2.5, 2.5]
    assert axis.get_yscale() == "log" and axis.get_xscale() == "linear"
    assert axis.get_title() == "mean |error|" and "bins" in axis.get_xlabel()
    assert texts(axis.get_legend().texts) == [" low-pass input", " _high", "radius 2.5 of the filter"]


@pytest.mark.parametrize(
    "values, drawn, limits",
    [
        ([0.3, 0.5, 0.3], [0.3, 0.5, 0.3], (0.1, 1)),  # within a decade, where no tick lies
        ([1.0, 0.0, 3.0, math.nan, math.inf, 20.0], [1.0, None, 3.0, None, None, 20.0], (1, 100)),
        ([0.0, 0.0], [None, None], None),
    ],
)
def test_radial_curves_leave_a_gap_where_a_value_cannot_be_drawn(values, drawn, limits, tmp_path):
    figure = radial_curves({"a": torch.tensor(values, dtype=torch.float64)}, "", (1,))
    line, (low, high) = figure.axes[0].lines[0], figure.axes[0].get_ylim()
    assert [None if math.isnan(y) else y for y in line.get_ydata()] == drawn
    assert math.isfinite(low) and 0 < low < high
    if limits:
        assert (low, high) == pytest.approx(limits)
    save(figure, tmp_path / "curves.png")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert f"{low:g}" in shown and f"{high:g}" in shown


@pytest.mark.parametrize(
    "outer_radius, low_spans, high_spans",
    [(None, [[2, 6]], [[0, 2], [6, 6]]), (4.5, [[2, 4.5]], [[0, 2], [4.5, 6]]), (99, [[2, 6]], [[0, 2], [6, 6]])],
)
def test_radial_figure_has_a_line_for_each_step_and_shades_what_was_removed(outer_radius, low_spans, high_spans):
    steps = {1: np.full(6, 0.5), 30: np.linspace(0.1, 0.6, 6)}
    figure = radial_figure({"low_pass": steps, "high_pass": steps}, 2, outer_radius, "mean |error|")
    left, right = figure.axes
    assert [left.get_title(), right.get_title()] == ["low-pass input", "high-pass input"]
    assert spans(left) == low_spans and spans(right) == high_spans
    for axis in (left, right):
        assert [line.get_label() for line in axis.lines] == ["step 1", "step 30"]
        assert axis.lines[1].get_xdata().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
        assert axis.lines[1].get_ydata() == pytest.approx(steps[30])
        assert axis.get_yscale() == "log" and axis.get_ylim() == pytest.approx((0.1, 1))
    assert left.get_ylabel() == "mean |error|"


def confusion(number_of_classes: int) -> torch.Tensor:
    """Class 0 has no image; class 2 is half class 0, half class 1; all others are recognised, 3 images each."""
    counts = 3 * torch.eye(number_of_classes, dtype=torch.int64)
    counts[0] = counts[2] = 0
    counts[2, 0] = counts[2, 1] = 4
    return counts


@pytest.mark.parametrize("number_of_classes", [7, 20, 21, 40, 41, 100])
def test_confusion_figure_shades_the_share_of_each_row(number_of_classes):
    names = (HOSTILE * 15)[:number_of_classes]
    axis, colour_bar = confusion_figure(confusion(number_of_classes), names).axes
    shares = axis.images[0].get_array()
    assert shares.shape == (number_of_classes, number_of_classes)
    assert np.ma.getmaskarray(shares)[0].all()  # no images: blank
    assert not np.ma.getmaskarray(shares)[1:].any()
    expected = np.eye(number_of_classes)[1:]
    expected[1, :3] = 0.5, 0.5, 0
    np.testing.assert_array_equal(np.ma.getdata(shares)[1:], expected)
    assert axis.images[0].get_clim() == (0, 1) and axis.images[0].origin == "upper"
    assert axis.get_xlabel() == "predicted class" and axis.get_ylabel() == "true class"
    assert colour_bar.get_ylabel() == "share of the row"


def test_confusion_figure_writes_counts_into_the_cells_of_few_classes():
    axis = confusion_figure(confusion(20), list("abcdefghijklmnopqrst")).axes[0]
    written = {(text.get_position()[1], text.get_position()[0]): text for text in axis.texts}
    assert len(axis.texts) == len(written) == 2 + 18  # not the zeros
    assert written[2, 0].get_text() == written[2, 1].get_text() == "4" and written[19, 19].get_text() == "3"
    assert written[2, 0].get_color() == "black" and written[3, 3].get_color() == "white"
    assert not confusion_figure(confusion(21), list("abcdefghijklmnopqrstu")).axes[0].texts


def test_confusion_figure_labels_every_class_or_every_tenth():
    names = [f"class{k}" for k in range(39)] + ["a class of a long name indeed"]
    axis = confusion_figure(confusion(40), names).axes[0]
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == list(range(40))
    assert texts(axis.get_yticklabels())[1:3] == ["1 class1", "2 class2"]
    assert texts(axis.get_yticklabels())[39] == "39 a class..ame indeed"
    assert texts(axis.get_xticklabels()) == [str(k) for k in range(40)]
    axis = confusion_figure(confusion(41), [*names, "last"]).axes[0]
    assert axis.get_yticks().tolist() == [0, 10, 20, 30, 40]
    assert texts(axis.get_yticklabels())[3:] == ["30 class30", "40 last"]


def test_tensorboard_takes_figures_with_hostile_names(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    writer.add_figure("curves", radial_curves({name: torch.ones(9) for name in HOSTILE}, HOSTILE[4], (2,)), 5)
    writer.add_figure("confusion", confusion_figure(confusion(len(HOSTILE)), HOSTILE), 5)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag in ("curves", "confusion"):
        (event,) = events.Images(tag)
        assert event.step == 5 and event.width > 300 and event.height > 300


def test_smooth_is_the_mean_over_neighbours_and_shifts_nothing():
    values = np.array([1.0, 2.0, 6.0, 4.0])
    np.testing.assert_allclose(smooth(values, 3), [1.5, 3, 4, 5])
    np.testing.assert_allclose(smooth(values, 1), values)
    np.testing.assert_allclose(smooth(np.full(3, 7.0), 99), 7)


def test_curves_figure_draws_smoothed_lines_with_the_raw_ones_pale_behind():
    figure = curves_figure({"_a": ([1, 2, 3], [1.0, 2.0, 6.0]), "b": ([9], [4.0])}, "step", "loss", 3)
    (axis,) = figure.axes
    raw, smoothed, _, single = axis.lines
    assert raw.get_ydata().tolist() == [1, 2, 6] and raw.get_alpha() < 0.5
    assert smoothed.get_ydata() == pytest.approx([1.5, 3, 4]) and list(smoothed.get_xdata()) == [1, 2, 3]
    assert single.get_marker() == "."
    assert axis.get_ylabel() == "loss (mean over 3 points)" and axis.get_xlabel() == "step"
    assert texts(figure.legends[0].texts) == [" _a", " b"]
    (axis,) = curves_figure({"a": ([1, 2], [1.0, None])}, "step", "loss", 1).axes  # not smoothed
    (line,) = axis.lines
    assert line.get_ydata()[0] == 1 and math.isnan(line.get_ydata()[1]) and axis.get_ylabel() == "loss"


def test_interval_figure_has_means_intervals_and_every_unit():
    scores = {48: UnitScores(np.array([70.0, 72.0]), [69.0, 73.5]), 40: UnitScores(np.array([60.0]), None)}
    figure = interval_figure({"one": scores, "two": {40: UnitScores(np.array([50.0]), None)}}, "size", "top-1 [%]")
    (axis,) = figure.axes
    line, _, (bars,) = axis.containers[0]
    assert list(line.get_xdata()) == [40, 48] and list(line.get_ydata()) == [60, 71]
    assert [[end[1] for end in bar] for bar in bars.get_segments()] == [[60, 60], [69, 73.5]]
    dots = sorted((x, y) for dot in axis.lines for x, y in dot.get_xydata().tolist() if dot.get_linestyle() == "None")
    assert {(40, 60), (48, 70), (48, 72), (40, 50)} <= set(dots)
    assert axis.get_xticks().tolist() == [40, 48]
    assert texts(figure.legends[0].texts) == [" one (2 units, 95 %)", " two (1 unit: no interval)"]


def test_sweep_figure_draws_each_kind_with_its_binomial_band():
    rows = [{"kind": "all", "radius": None, "top1": 81.0, "images": 400}]
    for kind, top1 in (("low_pass", (50.0, 20.0)), ("high_pass", (10.0, 60.0))):
        for radius, value in zip((8, 2), top1, strict=True):
            rows.append({"kind": kind, "radius": radius, "top1": value, "images": 400})
    left, right = sweep_figure({"one": rows}).axes
    for axis, title, expected in ((left, "low-passed", [20, 50]), (right, "high-passed", [60, 10])):
        line, unfiltered = axis.lines
        assert line.get_xdata().tolist() == [2, 8] and line.get_ydata() == pytest.approx(expected)
        assert list(unfiltered.get_ydata()) == [81, 81] and title in axis.get_title()
        assert axis.get_xscale() == "log"
    band = left.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 8, 1].max() == pytest.approx(50 + 1.96 * 2.5)  # √(0.5 · 0.5 / 400) = 2.5 %
    assert band[band[:, 0] == 8, 1].min() == pytest.approx(50 - 1.96 * 2.5)


def test_grid_shows_every_picture_with_its_texts():
    pictures = [np.full((4, 5, 3), shade, np.uint8) for shade in (10, 20, 30, 40)]
    rows = [PictureRow("first", pictures[:2], ["", "1 dB"]), PictureRow("x" * 99, pictures[2:], ["", "2 dB"])]
    figure = grid(rows, ["left", "right"], "a note")
    assert [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes] == [10, 20, 30, 40]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "1 dB", "", "2 dB"]
    assert [axis.get_title() for axis in figure.axes] == ["left", "right", "", ""]
    assert figure.axes[0].get_ylabel() == "first" and len(figure.axes[2].get_ylabel()) == 22
    assert figure.get_supxlabel() == "a note"


def test_kernels_figure_shows_kernels_and_spectra():
    weight = torch.zeros(4, 3, 7, 7)
    weight[0, :, 3, 3] = 1  # a point: the spectrum is flat, of magnitude 1
    weight[1] = 1 / 49  # a mean: the spectrum is highest at frequency 0, which is drawn in the middle
    left, right, _ = kernels_figure(weight, "run").axes
    assert left.images[0].get_array().shape == (2 * 8 + 1, 2 * 8 + 1, 3)
    spectra = right.images[0].get_array()
    assert spectra.shape == (2 * 17 + 1, 2 * 17 + 1)
    np.testing.assert_allclose(spectra[1:17, 1:17], 0, atol=1e-3)
    assert np.unravel_index(spectra[1:17, 18:34].argmax(), (16, 16)) == (8, 8)


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_save_writes_the_format_of_the_suffix_and_makes_the_folder(suffix, start, tmp_path):
    path = tmp_path / "new" / f"figure.{suffix}"
    save(radial_curves({"a": torch.ones(3)}, "$x_1^$", (1,)), path)
    assert path.read_bytes().startswith(start)
    if suffix == "svg":
        ElementTree.parse(path)


def test_data_uri_is_a_png():
    assert data_uri(radial_curves({"a": torch.ones(3)}, "", (1,))).startswith("data:image/png;base64,iVBORw0KGgo")


def test_figures_are_of_one_look():
    axis = radial_curves({"a": torch.ones(3)}, "", (1,)).axes[0]
    assert axis.lines[0].get_color() == "#0072B2" and not axis.spines["top"].get_visible()
    assert not axis.get_legend().get_frame_on()


WITHOUT_MATPLOTLIB = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
from utils import figures, pictures

image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
print(tuple(pictures.sheet([image, image]).shape))
for draw in (
    lambda: figures.radial_curves({"a": torch.ones(3)}, "", (1,)),
    lambda: figures.confusion_figure(torch.eye(2), ["a", "b"]),
    lambda: figures.radial_figure({}, 1, None, ""),
):
    try:
        draw()
    except ImportError as error:
        print(error.name)
"""


@pytest.mark.process
def test_without_matplotlib_all_modules_import_and_only_drawing_fails():
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(3, 136, 268)", "matplotlib", "matplotlib", "matplotlib"]
