"""The tables of a summary as rows of cells, for Markdown (summarize.py) and for HTML (scripts/figures/report.py)."""

from dataclasses import dataclass

from scripts.study.arms import SELECTED
from utils.tables import markdown_table, readable_cell

Rows = list[dict]  # of the same keys, which are the header; a cell is text, a number or Strong


@dataclass(frozen=True)
class Strong:
    """A cell that is shown in bold."""

    words: str


@dataclass(frozen=True)
class Note:
    """A remark on an arm or a comparison; the text goes on after its name."""

    name: str
    text: str


@dataclass
class SizeTables:
    """The summary of one size: tables, each with a row at least, and notes."""

    title: str
    tables: list[Rows]
    notes: list[Note]


@dataclass
class SummaryTables:
    """A whole summary, in this order.

    Args:
        overview: a row an arm.
        remark: a sentence below it, or "".
        sizes: empty if every arm is a single run.
        differences: what the arms that were compared differ in.
    """

    overview: Rows
    remark: str
    sizes: list[SizeTables]
    differences: list[Note]

    @classmethod
    def of(cls, summary: dict, difference: float | None) -> "SummaryTables":
        """From what `comparisons.summarize` returns."""
        runs = runs_of_arms(summary)
        tables = cls(overview_rows(summary, runs), remark="", sizes=[], differences=difference_notes(summary))
        if max(runs.values()) == 1:
            tables.remark = "One run an arm: its spread is unknown, so this ranks nothing."
        else:
            tables.sizes = [size_tables(size, results, difference) for size, results in summary.items()]
        return tables


def to_markdown(tables: SummaryTables) -> str:
    lines = [markdown_of(tables.overview)]
    if tables.remark:
        lines += ["", tables.remark]
    for size in tables.sizes:
        lines += ["", f"**{size.title}**", ""]
        for rows in size.tables:
            lines += [markdown_of(rows), ""]
        lines += map(markdown_note, size.notes)
    lines += map(markdown_note, tables.differences)
    return "\n".join(lines)


def markdown_of(rows: Rows) -> str:
    markdown_rows = []
    for row in rows:
        markdown_rows.append({key: markdown_of_cell(cell) for key, cell in row.items()})
    return markdown_table(markdown_rows)


def markdown_of_cell(cell: object) -> str:
    if isinstance(cell, Strong):
        return f"**{readable_cell(cell.words)}**"
    return readable_cell(str(cell))


def markdown_note(note: Note) -> str:
    return f"- {readable_cell(note.name)}{note.text}"


def runs_of_arms(summary: dict) -> dict[str, int]:
    """Arm -> its runs, at the size at which it has most."""
    runs: dict[str, int] = {}
    for results in summary.values():
        for name, arm in results["arms"].items():
            runs[name] = max(arm["runs"], runs.get(name, 0))
    return runs


def overview_rows(summary: dict, runs: dict[str, int]) -> Rows:
    rows = []
    for name, number_of_runs in runs.items():
        row = {"arm": name, "runs": number_of_runs}
        for size, results in summary.items():
            row[f"top-1 % {size_in_words(size)}"] = score(results["arms"].get(name))
        rows.append(row)
    return rows


def size_tables(size: str, results: dict, difference: float | None) -> SizeTables:
    arms, comparisons = results["arms"], results["comparisons"]
    candidates = [arm_rows(arms), unit_rows(arms), comparison_rows(comparisons, difference)]
    notes = []
    for name, arm in arms.items():
        notes += [Note(name, f": {note}") for note in arm["notes"]]
    for comparison in comparisons:
        notes += [Note(pair(comparison), f": {note}") for note in comparison["notes"]]
    return SizeTables(f"top-1 % {size_in_words(size)}", [rows for rows in candidates if rows], notes)


def arm_rows(arms: dict) -> Rows:
    rows = []
    for name, arm in arms.items():
        share = arm["share_of_pretraining"]
        rows.append(
            {
                "arm": name,
                "runs": arm["runs"],
                "units": arm["units"],
                "mean": number(arm["mean"]),
                "sample sd": number(arm["sample_deviation"]),
                "population sd": number(arm["population_deviation"]),
                "95 % interval of the mean": interval(arm["interval"]),
                "sd between pretrainings": number(arm["deviation_of_pretrainings"]),
                "sd between finetunings": number(arm["deviation_of_finetunings"]),
                "share of pretraining in the variance": "–" if share is None else f"{100 * share:.0f} %",
            }
        )
    return rows


def unit_rows(arms: dict) -> Rows:
    """The pretrainings of the arms that have several finetunings of one."""
    rows = []
    for name, arm in arms.items():
        if arm["runs"] == arm["units"]:
            continue
        for unit, finetunings, mean, sample_deviation in arm["pretrainings"]:
            rows.append(
                {
                    "arm": name,
                    "pretraining": unit,
                    "finetunings": finetunings,
                    "mean": number(mean),
                    "sample sd": number(sample_deviation),
                }
            )
    return rows


def comparison_rows(comparisons: list[dict], difference: float | None) -> Rows:
    rows = []
    for comparison in comparisons:
        row = {
            "comparison": pair(comparison),
            "difference": number(comparison["difference"]),
            "95 % interval": interval(comparison["interval"]),
            "p": number(comparison["p"], 4),
            "p, Holm": number(comparison["p_holm"], 4),
            "test": comparison["test"],
            "detectable at 80 % power": number(comparison["detectable"]),
        }
        if difference:
            row[f"units an arm to detect {difference:g}"] = comparison["units_needed"] or "–"
        row["differs in"] = ", ".join(comparison["differs_in"]) or "–"
        row["fair?"] = "yes"
        if comparison["warning"]:
            row["fair?"] = Strong(comparison["warning"])
        rows.append(row)
    return rows


def difference_notes(summary: dict) -> list[Note]:
    """A note for each pair of arms that differ, whatever the number of sizes."""
    notes = {}
    for results in summary.values():
        for comparison in results["comparisons"]:
            name = pair(comparison)
            changes = [f"{key}: {change}" for key, change in comparison["differs_in"].items()]
            if changes:
                notes[name] = Note(name, f" differ in: {'; '.join(changes)}")
    return list(notes.values())


def size_in_words(size: str) -> str:
    if size == SELECTED:
        return "at the size selected on held-out images"
    return f"at {size}"


def pair(comparison: dict) -> str:
    return f"{comparison['arm']} − {comparison['baseline']}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def score(arm: dict | None) -> str:
    """Mean and deviation of an arm; empty if it has no run at this size."""
    if arm is None:
        return ""
    if arm["runs"] == 1:
        return number(arm["mean"], 2)
    return f"{arm['mean']:.2f} ± {arm['sample_deviation']:.2f}"


def interval(ends: list[float] | None) -> str:
    if ends is None:
        return "–"
    return f"{ends[0]:.3f} to {ends[1]:.3f}"
