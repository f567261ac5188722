"""The lines of the table that scripts/check_machine.py prints: what was measured, what must hold, what to do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from scripts.machine.workload import Workload
from utils.distributed import World, explain
from utils.errors import first_line
from utils.tables import markdown_table, readable_cell

PASS, FAIL, INFORMATION, NOT_RUN = "pass", "FAIL", "for information", "not run"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        measured: as text, with its unit.
        must_hold: the condition in words; "": nothing has to hold.
        result: PASS, FAIL, INFORMATION or NOT_RUN.
        remedy: what to do about a failure, or what would be better; "": nothing.
        values: the numbers behind `measured`, for the JSON file.
    """

    section: str
    what: str
    measured: str
    must_hold: str = ""
    result: str = INFORMATION
    remedy: str = ""
    values: dict = field(default_factory=dict)


def judged(
    section: str, what: str, holds: bool, measured: str, must_hold: str, remedy: str, values: dict | None = None
) -> Row:
    """A row that passes or fails. The remedy of a row that passes is left out."""
    result = PASS if holds else FAIL
    return Row(section, what, measured, must_hold, result, "" if holds else remedy, values or {})


def at_most(section: str, what: str, value: float, limit: float, remedy: str) -> Row:
    """A row that fails if the value is above its limit, or no number at all."""
    return judged(
        section, what, value <= limit, f"{value:.1e}", f"at most {limit:.0e}", remedy, {"value": value, "limit": limit}
    )


def not_run(section: str, what: str, reason: str) -> Row:
    return Row(section, what, "", result=NOT_RUN, remedy=reason)


def rows_or_failure(section: str, work: Workload, measure: Callable[[Workload], list[Row]]) -> list[Row]:
    """The rows that `measure(work)` returns. An error in it becomes a row, so that the other sections run all the same.

    Only for what a rank does by itself: the others would wait for one that has left a common measurement.
    """
    try:
        return measure(work)
    except Exception as error:  # of whatever a machine may lack
        reason = explain(error) or f"{type(error).__name__}: {first_line(error)}"
        return [Row(section, "the whole section", "an error", "no error", FAIL, reason)]


def agreed(rows: list[Row], world: World) -> list[Row]:
    """The rows of all ranks as one list, alike on all ranks. A line that fails on any rank is that rank's.

    Where a rank has other lines than rank 0, as after an error, its failures are added.
    """
    by_rank = world.gather(rows)
    result = list(by_rank[0])
    for rank, of_rank in enumerate(by_rank[1:], start=1):
        for row in of_rank:
            if row.result != FAIL:
                continue
            failure = replace(row, what=f"{row.what} (rank {rank})")
            place = place_of(row, result)
            if place is None:
                result.append(failure)
            elif result[place].result != FAIL:
                result[place] = failure
    return result


def place_of(row: Row, rows: Sequence[Row]) -> int | None:
    """Where among rows the line of the same thing is."""
    for number, other in enumerate(rows):
        if (other.section, other.what) == (row.section, row.what):
            return number
    return None


def has_failed(rows: Sequence[Row]) -> bool:
    return any(row.result == FAIL for row in rows)


def table_of(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        lines.append({
            "section": readable_cell(row.section), "what": readable_cell(row.what),
            "measured": readable_cell(row.measured), "must hold": readable_cell(row.must_hold), "result": row.result,
            "remedy": readable_cell(row.remedy),
        })  # fmt: skip
    return markdown_table(lines)


def as_json(row: Row) -> dict:
    """A row for a JSON file, which has no NaN: such a number is text there."""
    line = asdict(row)
    line["values"] = {name: finite_or_text(value) for name, value in row.values.items()}
    return line


def finite_or_text(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
