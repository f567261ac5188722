"""The report: one page without scripts or anything from outside, in which every name is text."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.figures import report
from scripts.study.tables import Note, Strong
from tests.scripts.figures.conftest import CLASSES, RUNS

ALLOWED_TAGS = set(
    "html head meta title style link body h1 h2 nav a figure img figcaption div table thead tbody tr th td p pre ul "
    "details summary li strong".split()
)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []  # of each tag
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in zip(self.tags, self.attributes, strict=True) if tag == "img"]


def test_cells_are_text_whatever_they_hold():
    page = Page(report.table_of_rows([{"<b>": "a|b<script>", "&": Strong("<i>x"), "n": 5}]))
    assert page.text == "<b>&na|b<script><i>x5"
    assert page.tags == ["div", "table", "thead", "tr", "th", "th", "th", "tbody", "tr", "td", "td", "strong", "td"]


def test_notes_are_a_list_of_text():
    page = Page(report.list_of_notes([Note("a|<b>", ": x"), Note("c", " differ in: y")]))
    assert page.tags == ["ul", "li", "li"] and page.text == "a|<b>: xc differ in: y"
    assert report.list_of_notes([]) == ""


@pytest.fixture(scope="module")
def html(runs, tmp_path_factory) -> str:
    output = tmp_path_factory.mktemp("report") / "report.html"
    words = [*map(str, runs.folders), "--images", str(runs.images / "val"), "--output", str(output)]
    assert report.main(words) == 0
    return output.read_text(encoding="utf-8")


@pytest.mark.process
def test_report_has_no_script_and_nothing_from_outside(html):
    page = Page(html)
    assert set(page.tags) <= ALLOWED_TAGS
    for attributes in page.attributes:
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#s", "data:,")), attributes[name]
    assert "url(" not in html and "@import" not in html


@pytest.mark.process
def test_report_describes_every_figure_and_shows_every_name_as_text(html):
    page = Page(html)
    images = page.images()
    # Two losses, the sizes, the sweep, two errors by frequency, the first-layer kernels, reconstructions.
    assert len(images) == 8
    for attributes in images:
        assert len(attributes["alt"]) > 20
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as picture:
            assert picture.width > 500 and np.array(picture.convert("L")).std() > 5
    for name in RUNS:
        assert name in page.text
    descriptions = " ".join(attributes["alt"] for attributes in images)
    assert f"{CLASSES[0]}/" in descriptions and RUNS[0] in descriptions


@pytest.mark.process
def test_report_tells_results_differences_and_how_it_was_run(html, runs):
    text = Page(html).text
    result = json.loads((runs.finetuning / "result.json").read_text())
    assert f"{result['results'][0]['top1']:.2f}" in text
    assert "run.seed" in text and result["provenance"]["commit"][:40] in text and "train:" in text


@pytest.mark.process
def test_two_results_of_one_run_leave_the_rest_of_the_page(runs, tmp_path, capsys):
    twice = tmp_path / "twice"
    shutil.copytree(runs.finetuning, twice)
    report.main([str(runs.finetuning), str(twice), "--output", str(tmp_path / "r.html")])
    assert "No table: " in Path(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "a second result of arm" in capsys.readouterr().err
