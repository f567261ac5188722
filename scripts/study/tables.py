"""The tables of `summarize.py`, from the plain containers that it makes."""

SELECTED = "selected"  # the size was chosen on held-out images, by each run for itself


def to_markdown(summary: dict, difference: float | None) -> str:
    """An overview, and for each size, unless every arm is a single run, the arms and the comparisons."""
    names = list(dict.fromkeys(name for told in summary.values() for name in told["arms"]))
    runs = {name: max(told["arms"].get(name, {}).get("runs", 0) for told in summary.values()) for name in names}
    rows = [
        {"arm": cell(name), "runs": runs[name]}
        | {f"top-1 % {at(size)}": score(told["arms"].get(name)) for size, told in summary.items()}
        for name in names
    ]
    lines = table(rows)
    single = max(runs.values()) == 1
    lines += ["", "One run an arm: its spread is unknown, so this ranks nothing."] if single else []
    for size, told in () if single else summary.items():
        lines += ["", f"**top-1 % {at(size)}**", "", *arms_table(told["arms"]), "", *units_table(told["arms"])]
        lines += comparisons_table(told["comparisons"], difference)
        lines += [f"- {cell(name)}: {note}" for name, arm in told["arms"].items() for note in arm["notes"]]
        lines += [f"- {pair(row)}: {note}" for row in told["comparisons"] for note in row["notes"]]
    for row in {(r["arm"], r["baseline"]): r for told in summary.values() for r in told["comparisons"]}.values():
        changes = [f"{key}: {change}" for key, change in row["differs_in"].items()]
        lines += [f"- {pair(row)} differ in: {'; '.join(changes)}"] if changes else []
    return "\n".join(lines)


def table(rows: list[dict]) -> list[str]:
    """Rows of the same keys, which are the header."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (rows[0], *(row.values() for row in rows))]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def at(size: str) -> str:
    return "at the size selected on held-out images" if size == SELECTED else f"at {size}"


def cell(text: str) -> str:
    """A name that breaks no table."""
    return " ".join(text.replace("|", "\\|").split())


def pair(row: dict) -> str:
    return f"{cell(row['arm'])} − {cell(row['baseline'])}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def score(arm: dict | None) -> str:
    if arm is None:
        return ""
    return number(arm["mean"], 2) + (f" ± {arm['sample_deviation']:.2f}" if arm["runs"] > 1 else "")


def interval(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def arms_table(arms: dict) -> list[str]:
    rows = []
    for name, arm in arms.items():
        share = arm["share_of_pretraining"]
        rows.append({
            "arm": cell(name), "runs": arm["runs"], "units": arm["units"], "mean": number(arm["mean"]),
            "sample sd": number(arm["sample_deviation"]), "population sd": number(arm["population_deviation"]),
            "95 % interval of the mean": interval(arm["interval"]),
            "sd between pretrainings": number(arm["deviation_of_pretrainings"]),
            "sd between finetunings": number(arm["deviation_of_finetunings"]),
            "share of pretraining in the variance": "–" if share is None else f"{100 * share:.0f} %",
        })  # fmt: skip
    return table(rows)


def units_table(arms: dict) -> list[str]:
    rows = [
        {"arm": cell(name), "pretraining": cell(unit), "finetunings": n, "mean": number(mean), "sample sd": number(sd)}
        for name, arm in arms.items() if arm["runs"] > arm["units"] for unit, n, mean, sd in arm["pretrainings"]
    ]  # fmt: skip
    return [*table(rows), ""] if rows else []


def comparisons_table(rows: list[dict], difference: float | None) -> list[str]:
    cells = []
    for row in rows:
        needed = {f"units an arm to detect {difference:g}": row["units_needed"] or "–"} if difference else {}
        cells.append({
            "comparison": pair(row), "difference": number(row["difference"]),
            "95 % interval": interval(row["interval"]), "p": number(row["p"], 4), "p, Holm": number(row["p_holm"], 4),
            "test": row["test"], "detectable at 80 % power": number(row["detectable"]), **needed,
            "differs in": ", ".join(row["differs_in"]) or "–",
            "fair?": f"**{row['warning']}**" if row["warning"] else "yes",
        })  # fmt: skip
    return [*table(cells), ""] if rows else []
