"""The tables of `summarize.py`, from the plain containers that it makes."""

from __future__ import annotations

SELECTED = "selected"  # the size was chosen on held-out images, by each run for itself


def to_markdown(summary: dict, difference: float | None) -> str:
    """An overview, and for each size, unless every arm is a single run, the arms and the comparisons."""
    names = list(dict.fromkeys(name for told in summary.values() for name in told["arms"]))
    lines = [
        "| arm | runs |" + "".join(f" top-1 % {at(size)} |" for size in summary),
        "|---" * (2 + len(summary)) + "|",
    ]
    runs = {name: max(told["arms"].get(name, {}).get("runs", 0) for told in summary.values()) for name in names}
    for name in names:
        cells = [told["arms"].get(name, {}) for told in summary.values()]
        texts = [f"{number(c['mean'], 2)}{deviation(c)}" if c else "" for c in cells]
        lines.append(f"| {cell(name)} | {runs[name]} | " + " | ".join(texts) + " |")
    single = max(runs.values()) == 1
    lines += ["", "One run an arm: its spread is unknown, so this ranks nothing."] if single else []
    for size, told in () if single else summary.items():
        lines += ["", f"**top-1 % {at(size)}**", "", *arms_table(told["arms"]), "", *units_table(told["arms"])]
        lines += comparisons_table(told["comparisons"], difference) if told["comparisons"] else []
        lines += [f"- {cell(name)}: {note}" for name, arm in told["arms"].items() for note in arm["notes"]]
        for row in told["comparisons"]:
            lines += [f"- {pair(row)}: {note}" for note in row["notes"]]
    for row in {(r["arm"], r["baseline"]): r for told in summary.values() for r in told["comparisons"]}.values():
        changes = [f"{key}: {change}" for key, change in row["differs_in"].items()]
        lines += [f"- {pair(row)} differ in: {'; '.join(changes)}"] if changes else []
    return "\n".join(lines)


def at(size: str) -> str:
    return "at the size selected on held-out images" if size == SELECTED else f"at {size}"


def cell(text: str) -> str:
    """A name that breaks no table."""
    return " ".join(text.replace("|", "\\|").split())


def pair(row: dict) -> str:
    return f"{cell(row['arm'])} − {cell(row['baseline'])}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def deviation(cell: dict) -> str:
    return f" ± {cell['sample_deviation']:.2f}" if cell["sample_deviation"] is not None else ""


def interval(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def arms_table(arms: dict) -> list[str]:
    lines = [
        "| arm | runs | units | mean | sample sd | population sd | 95 % interval of the mean | sd between pretrainings "
        "| sd between finetunings | share of pretraining in the variance |", "|---" * 10 + "|",
    ]  # fmt: skip
    for name, arm in arms.items():
        share = "–" if arm["share_of_pretraining"] is None else f"{100 * arm['share_of_pretraining']:.0f} %"
        spreads = [number(arm[key]) for key in ("mean", "sample_deviation", "population_deviation")]
        levels = [number(arm[key]) for key in ("deviation_of_pretrainings", "deviation_of_finetunings")]
        cells = [cell(name), str(arm["runs"]), str(arm["units"]), *spreads, interval(arm["interval"]), *levels, share]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def units_table(arms: dict) -> list[str]:
    rows = [(name, *row) for name, arm in arms.items() for row in arm["pretrainings"] if arm["runs"] > arm["units"]]
    if not rows:
        return []
    lines = ["| arm | pretraining | finetunings | mean | sample sd |", "|---|---|---|---|---|"]
    lines += [
        f"| {cell(name)} | {cell(unit)} | {n} | {number(mean)} | {number(sd)} |" for name, unit, n, mean, sd in rows
    ]
    return [*lines, ""]


def comparisons_table(rows: list[dict], difference: float | None) -> list[str]:
    needed = "" if difference is None else f" units an arm to detect {difference:g} |"
    lines = [
        "| comparison | difference | 95 % interval | p | p, Holm | test | detectable at 80 % power |" + needed
        + " differs in | fair? |", "|---" * (9 + (difference is not None)) + "|",
    ]  # fmt: skip
    for row in rows:
        cells = [pair(row), number(row["difference"]), interval(row["interval"])]
        cells += [number(row["p"], 4), number(row["p_holm"], 4), row["test"], number(row["detectable"])]
        cells += [] if difference is None else [str(row["units_needed"] or "–")]
        cells += [", ".join(row["differs_in"]) or "–", f"**{row['warning']}**" if row["warning"] else "yes"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
