"""The tables about Imagenette in the READMEs hold what `summarize` gives for the published scores."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from dataclasses import dataclass

import pytest

from scripts.study import summarize
from scripts.study.arms import FINETUNING, KNN, KNN_CURVE, LINEAR, PIXELS
from tests.support.launch import ROOT

RESULTS, FRONT = ROOT / "scripts/results/README.md", ROOT / "README.md"
COMMAND = "    python scripts/study/summarize.py "
NUMBER = r"-?\d+\.\d\d"
FIGURES = (NUMBER, rf"{NUMBER} ± {NUMBER}", rf"{NUMBER} \({NUMBER} to {NUMBER}\)(, p \d\.\d\d\d)?")
SCORES = {"pixels": (PIXELS,), "linear": (LINEAR,), "neighbours": (KNN, KNN_CURVE)}  # by a word of the table


def is_figure(text: str) -> bool:
    return any(re.fullmatch(figure, text) for figure in FIGURES)


@dataclass(frozen=True)
class Cell:
    """Of a table, with the first cell of its row and the title of its column."""

    row: str
    title: str
    text: str

    def figures(self) -> list[str]:
        """Scores and differences in it, written as a program would."""
        plain = self.text.replace("−", "-").replace("+", "").replace("*", "")
        parts = [part.strip() for part in plain.split(";")]
        return [part for part in parts if is_figure(part)]

    def scores(self) -> tuple[str, ...]:
        """What it is about: features of pretrainings, if a word says so, else finetunings."""
        for word, scores in SCORES.items():
            if word in f"{self.row} {self.title}":
                return scores
        return (FINETUNING,)

    def share(self, shares: set[float]) -> float | None:
        """Of the labels, if its row or column begins with one of these shares: "10 %", "all labels"."""
        for text in (self.row, self.title):
            begin = re.match(r"(\d+(?:\.\d+)?) %|all\b", text)
            if begin is None:
                continue
            share = float(begin[1]) / 100 if begin[1] else 1.0
            if share in shares:
                return share
        return None

    def arms(self, names: set[str]) -> list[str]:
        """Arms that its row or column names, in their order; the beginning of a name is enough, as in "denoising"."""
        text = f"{self.row} {self.title}".lower()
        places = {text.find(name[:6].lower()): name for name in names}
        return [places[place] for place in sorted(places) if place >= 0]

    def steps(self) -> int | None:
        """After which the finetunings were evaluated, if it says so."""
        named = re.search(r"(\d+) steps", f"{self.row} {self.title}")
        return int(named[1]) if named else None


def section_of(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells_of(section: str) -> list[Cell]:
    """Of every table in it, without titles and first columns."""
    cells, titles = [], []
    for line in section.splitlines():
        if not line.startswith("|"):
            titles = []
            continue
        row = [text.strip() for text in line.strip("|").split("|")]
        if not titles:
            titles = row
        elif set(line) != set("|-"):
            cells += [Cell(row[0], title, text) for title, text in zip(titles[1:], row[1:], strict=True)]
    return cells


def figure(arm: dict) -> str:
    if arm["runs"] == 1:
        return f"{arm['mean']:.2f}"
    return f"{arm['mean']:.2f} ± {arm['sample_deviation']:.2f}"


def figures_of_comparison(row: dict) -> set[str]:
    difference = f"{row['difference']:.2f}"
    if row["interval"] is None:
        return {difference}
    low, high = row["interval"]
    difference += f" ({low:.2f} to {high:.2f})"
    return {difference, f"{difference}, p {row['p_holm']:.3f}"}


def figures_for(cell: Cell, summary: dict) -> set[str]:
    """Every figure of the summary that may stand in a cell, by what its row and its column name."""
    columns = [column for column in summary.values() if column["score"] in cell.scores()]
    share, steps = cell.share({column["labels"] for column in columns}), cell.steps()
    if share is not None:
        columns = [column for column in columns if column["labels"] == share]
    if steps is not None:
        columns = [column for column in columns if column["after"] == steps]
    figures = set()
    for column in columns:
        named = cell.arms(set(column["arms"]))
        for name, arm in column["arms"].items():
            if named in ([], [name]):
                figures |= {figure(arm), f"{arm['mean']:.2f}"}
        for row in column["comparisons"]:
            pair = [row["arm"], row["baseline"]]
            if named in ([], pair, pair[:1], pair[1:]):
                figures |= figures_of_comparison(row)
    return figures


def strange_figures(cells: list[Cell], summary: dict) -> list[str]:
    strange = []
    for cell in cells:
        possible = figures_for(cell, summary)
        strange += [f"{cell.row} | {cell.title}: {figure}" for figure in cell.figures() if figure not in possible]
    return strange


@pytest.fixture(scope="module")
def summary() -> dict:
    """By the command that stands above the tables."""
    section = section_of(RESULTS.read_text(), "Few labels")
    (command,) = [line for line in section.splitlines() if line.startswith(COMMAND)]
    words = shlex.split(command.removeprefix(COMMAND))
    words[0] = str(ROOT / words[0])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summarize.main([*words, "--format", "json"])
    return json.loads(printed.getvalue())


def test_each_figure_of_the_results_is_that_of_the_published_scores(summary):
    cells = cells_of(section_of(RESULTS.read_text(), "Few labels"))
    assert strange_figures(cells, summary) == []
    written = set()
    for cell in cells:
        written |= set(cell.figures())
    ends = [column for column in summary.values() if column["score"] == FINETUNING and column["after"] is None]
    assert len(ends) == 3
    for column in ends:
        assert {figure(arm) for arm in column["arms"].values()} <= written
    differences = {figure for figure in written if " to " in figure}
    assert len(differences) >= len(ends)


def test_each_figure_of_the_front_page_is_that_of_the_published_scores(summary):
    front = section_of(FRONT.read_text(), "Results")
    table = front[front.index("| labels |") :].partition("\n\n")[0]
    cells = cells_of(table)
    assert strange_figures(cells, summary) == []
    assert sum(len(cell.figures()) for cell in cells) >= 9


@pytest.mark.parametrize(
    ("cell", "is_strange"),
    [
        (Cell("1 %", "MFM", "35.05 ± 1.56"), False),
        (Cell("mfm", "1 % of labels", "35.05 ± 1.56"), False),
        (Cell("1 %", "MFM", "35.05 ± 1.57"), True),
        (Cell("10 %", "MFM", "35.05 ± 1.56"), True),  # of another share
        (Cell("1 %", "from scratch", "35.05 ± 1.56"), True),  # of another arm
        (Cell("1 % after 120 steps", "mfm", "35.05 ± 1.56"), True),  # of the end
        (Cell("10 %", "mfm − scratch", "−2.32 (−3.07 to −1.56)"), False),
        (Cell("10 %", "difference (95 % interval)", "−2.32 (−3.07 to −1.56), p 0.005"), False),
        (Cell("10 %", "difference (95 % interval)", "−2.32 (−3.07 to −1.56), p 0.002"), True),
        (Cell("10 %", "scratch − mfm", "−2.32 (−3.07 to −1.56)"), True),
        (Cell("mfm", "linear probe", "29.49 ± 0.31"), True),  # of neighbours
    ],
)
def test_a_figure_in_a_wrong_place_is_seen(cell, is_strange):
    """On made scores, so that published ones may change."""
    arms = {"mfm": (35.05, 1.56), "scratch": (36.72, 0.60)}
    later = {"mfm": (61.36, 0.37), "scratch": (63.68, 0.24)}
    early = {"mfm": (31.60, 1.36), "scratch": (32.82, 0.63)}
    made = {
        "1 %": made_column(0.01, None, arms, -1.67, (-5.04, 1.70), 0.196),
        "10 %": made_column(0.1, None, later, -2.32, (-3.07, -1.56), 0.005),
        "early": made_column(0.01, 120, early, -1.22, (-4.08, 1.64), 0.460),
        "knn": made_column(1.0, None, {"mfm": (29.49, 0.31)}) | {"score": KNN},
        "linear": made_column(1.0, None, {"mfm": (36.66, 0.55)}) | {"score": LINEAR},
    }
    assert len(cell.figures()) == 1
    assert bool(strange_figures([cell], made)) == is_strange


def made_column(
    labels: float, after: int | None, arms: dict, difference: float = 0.0, interval: tuple = (), p: float = 1.0
) -> dict:
    """A column of a summary, as far as it is read here."""
    described = {}
    for name, (mean, deviation) in arms.items():
        described[name] = {"runs": 3, "mean": mean, "sample_deviation": deviation}
    comparisons = []
    if interval:
        row = {"arm": "mfm", "baseline": "scratch", "difference": difference, "interval": list(interval), "p_holm": p}
        comparisons.append(row)
    return {"score": FINETUNING, "labels": labels, "after": after, "arms": described, "comparisons": comparisons}
