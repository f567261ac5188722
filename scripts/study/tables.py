"""The tables of a summary as rows of cells, for Markdown (summarize.py) and for HTML (scripts/figures/report.py)."""

from dataclasses import dataclass

from scripts.study.arms import FINETUNING, PIXELS
from scripts.study.titles import group_title, titles_of
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
class TitledTables:
    """Tables under a title (which may be ""), each with a row at least, and notes."""

    title: str
    tables: list[Rows]
    notes: list[Note]


@dataclass
class SummaryTables:
    """A whole summary, in this order.

    Args:
        overviews: the arms, a row an arm; if they were scored at several shares of the labels, or epochs of a
            pretraining, their differences too, a row a comparison.
        remark: a sentence below them, or "".
        columns: each score in detail; empty if every arm is a single run.
        differences: what the arms that were compared differ in.
    """

    overviews: list[TitledTables]
    remark: str
    columns: list[TitledTables]
    differences: list[Note]

    @classmethod
    def of(cls, summary: dict, difference: float | None) -> "SummaryTables":
        """From what `comparisons.summarize` returns."""
        tables = cls(overviews_of(summary), remark="", columns=[], differences=difference_notes(summary))
        if max(runs_of_arms(list(summary.values())).values()) == 1:
            tables.remark = "One run an arm: its spread is unknown, so this ranks nothing."
            return tables
        columns = list(summary.values())
        for column, title in zip(columns, titles_of(columns), strict=True):
            if column["score"] != PIXELS:
                tables.columns.append(column_section(column, title, difference))
        return tables


def to_markdown(tables: SummaryTables) -> str:
    blocks = [markdown_of_section(section) for section in tables.overviews]
    if tables.remark:
        blocks.append(tables.remark)
    blocks += [markdown_of_section(section) for section in tables.columns]
    if tables.differences:
        blocks.append(markdown_of_notes(tables.differences))
    return "\n\n".join(blocks)


def markdown_of_section(section: TitledTables) -> str:
    blocks = [f"**{section.title}**"] if section.title else []
    blocks += [markdown_of(rows) for rows in section.tables]
    if section.notes:
        blocks.append(markdown_of_notes(section.notes))
    return "\n\n".join(blocks)


def markdown_of_notes(notes: list[Note]) -> str:
    return "\n".join(map(markdown_note, notes))


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


def runs_of_arms(columns: list[dict]) -> dict[str, int]:
    """Arm -> its runs, in the column in which it has most."""
    runs: dict[str, int] = {}
    for column in columns:
        for name, arm in column["arms"].items():
            runs[name] = max(arm["runs"], runs.get(name, 0))
    return runs


def overviews_of(summary: dict) -> list[TitledTables]:
    """A section for finetunings, for each earlier moment of them, for pretrainings under way, and for probes."""
    groups: dict[str, list[dict]] = {}
    for column in summary.values():
        groups.setdefault(group_title(column), []).append(column)
    sections = []
    for title, columns in groups.items():
        tables = [overview_rows(columns), difference_rows(columns)]
        sections.append(TitledTables(title if len(groups) > 1 else "", [rows for rows in tables if rows], notes=[]))
    return sections


def overview_rows(columns: list[dict]) -> Rows:
    titles = titles_of(columns)
    rows = []
    for name, number_of_runs in runs_of_arms(columns).items():
        row = {"arm": name, "runs": number_of_runs}
        for column, title in zip(columns, titles, strict=True):
            row[title] = score(column["arms"].get(name))
        rows.append(row)
    return rows


def difference_rows(columns: list[dict]) -> Rows:
    """What each column says of each comparison; of finetunings with one share of the labels the details are enough."""
    if columns[0]["score"] == FINETUNING and len({column["labels"] for column in columns}) == 1:
        return []
    rows: dict[str, dict] = {}
    for column in columns:
        for comparison in column["comparisons"]:
            rows.setdefault(pair(comparison), {"difference": pair(comparison)})
    for column, title in zip(columns, titles_of(columns), strict=True):
        cells = {pair(comparison): difference_in_words(comparison) for comparison in column["comparisons"]}
        for name, row in rows.items():
            row[title] = cells.get(name, "")
    return list(rows.values())


def difference_in_words(comparison: dict) -> str:
    """The difference with its interval, and p corrected over all columns of its kind."""
    words = f"{comparison['difference']:+.2f}"
    if comparison["interval"] is not None:
        low, high = comparison["interval"]
        words += f" ({low:+.2f} to {high:+.2f}), p {comparison['p_holm']:.3f}"
    return words


def column_section(column: dict, title: str, difference: float | None) -> TitledTables:
    arms, comparisons = column["arms"], column["comparisons"]
    candidates = [arm_rows(arms), unit_rows(arms), comparison_rows(comparisons, difference)]
    notes = []
    for name, arm in arms.items():
        notes += [Note(name, f": {note}") for note in arm["notes"]]
    for comparison in comparisons:
        notes += [Note(pair(comparison), f": {note}") for note in comparison["notes"]]
    return TitledTables(title, [rows for rows in candidates if rows], notes)


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
    """A note for each pair of arms that differ, whatever the number of columns."""
    notes = {}
    for column in summary.values():
        for comparison in column["comparisons"]:
            name = pair(comparison)
            changes = [f"{key}: {change}" for key, change in comparison["differs_in"].items()]
            if changes:
                notes[name] = Note(name, f" differ in: {'; '.join(changes)}")
    return list(notes.values())


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
