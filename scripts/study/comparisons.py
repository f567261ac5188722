"""Which arms of a study are compared, whether a comparison is fair, and everything that summarize.py tells."""

import itertools
from dataclasses import dataclass

from scripts.study.arms import PIXELS, SCORES, Arm, Arms, Measure, Results, is_provenance
from scripts.study.statistics_of_runs import Units, compare, describe, holm
from utils.errors import UserError
from utils.run.reading import differing

UNFAIR = "more than the studied factor differs"


@dataclass(frozen=True)
class Confounds:
    """What differs between two arms, as key -> "before -> after", and a warning if that is not fair ("": it is)."""

    differences: dict[str, str]
    warning: str

    @property
    def fair(self) -> bool:
        return not self.warning.startswith(UNFAIR)


def confounds(base: Arm, arm: Arm, factors: list[str]) -> Confounds:
    """What differs between two arms, or varies within the base. It is fair if one studied factor does alone.

    Args:
        factors: keys, or beginnings of keys up to a dot, or several of them joined by "+". Without any, every key may
            be the factor.
    """
    if not base.facts or not arm.facts:
        return Confounds({}, "not checked: no configs")
    before, after = base.facts_in_words(), arm.facts_in_words()
    if base.pretrained != arm.pretrained:  # the pretraining as a whole is what differs
        before, after = without_pretrainings_keys(before), without_pretrainings_keys(after)
    pairs = differing(before, after)
    for key in base.facts_that_vary():
        if key in before and key in after:
            pairs[key] = before[key], before[key]
    differences = {}
    for key, (old, new) in pairs.items():
        # How a pretraining was run is known of some only, which is no difference.
        if (key in before and key in after) or not key.startswith("pretraining's"):
            differences[key] = f"{old} -> {new}"
    return Confounds(differences, warning_of(list(differences), factors))


def without_pretrainings_keys(facts: dict[str, str]) -> dict[str, str]:
    return {key: words for key, words in facts.items() if not key.startswith("pretraining.")}


def warning_of(differing_keys: list[str], factors: list[str]) -> str:
    """What is not fair about a comparison of arms that differ in these keys."""
    recipe = [key for key in differing_keys if not is_provenance(key)]
    if factors:
        fair = any(covers(factor, recipe) for factor in factors)
    else:
        fair = len(recipe) <= 1
    warnings = [f"another {key}" for key in differing_keys if is_provenance(key)]
    if not fair:
        warnings.insert(0, UNFAIR)
    return "; ".join(warnings)


def covers(factor: str, keys: list[str]) -> bool:
    """Whether all keys belong to the factor."""
    parts = factor.split("+")
    sections = tuple(f"{part}." for part in parts)
    return all(key in parts or key.startswith(sections) for key in keys)


def pairs_to_compare(arms: Arms, baselines: list[str], factors: list[str]) -> list[tuple[str, str]]:
    """Pairs (arm, baseline) of arms that are there.

    Of several baselines an arm meets those that it differs from in a studied factor alone; all of them if there is
    none such. Two baselines meet once.
    """
    baselines = [name for name in baselines if name in arms]
    pairs: list[tuple[str, str]] = []
    for name, arm in arms.items():
        others = [base for base in baselines if base != name and (base, name) not in pairs]
        fair = [base for base in others if confounds(arms[base], arm, factors).fair]
        if len(baselines) > 1 and fair:
            others = fair
        pairs += [(name, base) for base in others]
    return pairs


@dataclass(frozen=True)
class Column:
    """The scores of one measure at one size: what is one table of a summary."""

    measure: Measure
    size: str
    arms: Arms

    def units(self) -> dict[str, Units]:
        """The units of each arm that has such scores."""
        return {name: arm.units(self.size) for name, arm in self.arms.items() if self.size in arm.scores}

    def family(self) -> tuple:
        """Columns of one family differ in the share of labels, or in the epoch of a pretraining, and in nothing else.

        They ask one question at several places, so that p is corrected over all of their comparisons.
        """
        if self.measure.of_pretraining:
            return self.measure.score, self.size
        return self.measure.score, self.size, self.measure.after


def columns_of(results: Results) -> list[Column]:
    """Every column, families together: ends before earlier evaluations, sizes and shares in their order."""
    columns = []
    for measure, arms in results.items():
        sizes = set()
        for arm in arms.values():
            sizes.update(arm.scores)
        columns += [Column(measure, size, arms) for size in sizes]
    return sorted(columns, key=place)


def place(column: Column) -> tuple:
    measure, size = column.measure, column.size
    after = measure.after or 0
    return SCORES.index(measure.score), after, len(size), size, measure.labels  # so numbers are in their order


def summarize(results: Results, baselines: list[str], factors: list[str], difference: float | None) -> dict:
    """Everything as plain containers, without a NaN: name of a column -> what it holds.

    A column has its "score", "labels", "after" and "size" (see `Measure`), "arms" (name -> description) and
    "comparisons" (rows). A column of finetunings with all labels, at their end, is named by its size.

    Args:
        baselines, factors: see `pairs_to_compare` and `confounds`.
        difference: in points of top-1: how many units would detect it?
    Raises: UserError if no score is of a baseline.
    """
    known = names_of_arms(results)
    unknown = [name for name in baselines if name not in known]
    if unknown:
        raise UserError(f"--baseline {' '.join(unknown)}: no such arm; there are: {', '.join(known)}")
    families: dict[tuple, list[Column]] = {}
    for column in columns_of(results):
        families.setdefault(column.family(), []).append(column)
    summary = {}
    for columns in families.values():
        comparisons = compare_family(columns, baselines, factors, difference)
        for column, rows in zip(columns, comparisons, strict=True):
            measure = column.measure
            summary[column_name(column)] = {
                "score": measure.score,
                "labels": measure.labels,
                "after": measure.after,
                "size": column.size,
                "arms": descriptions(column),
                "comparisons": rows,
            }
    return summary


def names_of_arms(results: Results) -> list[str]:
    """Every arm that has a score, once, in the order of the results."""
    names: dict[str, None] = {}
    for arms in results.values():
        names |= dict.fromkeys(arms)
    return list(names)


def column_name(column: Column) -> str:
    measure = column.measure
    if measure.of_pretraining:
        name = f"{measure.score} {column.size}"
        return name if measure.after is None else f"{name} after {measure.after} epochs"
    name = column.size
    if measure.after is not None:
        name += f" after {measure.after} steps"
    if measure.labels != 1:
        name += f" labels {measure.labels:g}"
    return name


def descriptions(column: Column) -> dict[str, dict]:
    """Of each arm that has scores in this column."""
    described = {}
    for name, units in column.units().items():
        arm = column.arms[name]
        if column.measure.of_pretraining:
            described[name] = describe(units, pretrained=False)
            described[name]["deviation_of_finetunings"] = None  # there are none
        else:
            described[name] = describe(units, arm.pretrained)
        for key, values in arm.facts_that_vary().items():
            described[name]["notes"].append(f"its runs differ in {key}: {values}")
    return described


def compare_family(
    columns: list[Column], baselines: list[str], factors: list[str], difference: float | None, plan: bool = True
) -> list[list[dict]]:
    """The comparisons of each column, with p corrected over those of all columns (Holm).

    Scores of different columns depend on each other, since a pretraining is finetuned with each share of the labels.
    Holm's correction holds whatever the dependence.

    Args:
        plan: work out what can be detected, which takes most of the time.
    """
    pairs = [pairs_in(column, baselines, factors) for column in columns]
    tests = 0
    for column, pairs_of_column in zip(columns, pairs, strict=True):
        tests += sum(compared(column, *pair, plan=False)["p"] is not None for pair in pairs_of_column)
    rows_of_columns = []
    for column, pairs_of_column in zip(columns, pairs, strict=True):
        rows = []
        for name, base in pairs_of_column:
            confounding = confounds(column.arms[base], column.arms[name], factors)
            row = {"arm": name, "baseline": base, "differs_in": confounding.differences}
            row["warning"] = confounding.warning
            row |= compared(column, name, base, comparisons=max(1, tests), wanted=difference, plan=plan)
            rows.append(row)
        rows_of_columns.append(rows)
    rows = list(itertools.chain.from_iterable(rows_of_columns))
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows_of_columns


def pairs_in(column: Column, baselines: list[str], factors: list[str]) -> list[tuple[str, str]]:
    """The pairs (arm, baseline) that a column has scores of. Raw pixels know no arm, so nothing is to be compared."""
    if column.measure.score == PIXELS:
        return []
    units = column.units()
    pairs = pairs_to_compare(column.arms, baselines, factors)
    return [(name, base) for name, base in pairs if name in units and base in units]


def compared(column: Column, name: str, base: str, **how) -> dict:
    """What `compare` says about two arms of a column."""
    arm, baseline = column.arms[name], column.arms[base]
    alike = arm.pretrained == baseline.pretrained
    return compare(arm.units(column.size), baseline.units(column.size), alike, **how)
