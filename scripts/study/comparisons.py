"""Which arms of a study are compared, whether a comparison is fair, and everything that summarize.py tells."""

from dataclasses import dataclass

from scripts.study.arms import Arm, Arms, is_provenance
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
    """Pairs (arm, baseline).

    Of several baselines an arm meets those that it differs from in a studied factor alone; all of them if there is
    none such. Two baselines meet once.
    """
    unknown = [name for name in baselines if name not in arms]
    if unknown:
        raise UserError(f"--baseline {' '.join(unknown)}: no such arm; there are: {', '.join(arms)}")
    pairs: list[tuple[str, str]] = []
    for name, arm in arms.items():
        others = [base for base in baselines if base != name and (base, name) not in pairs]
        fair = [base for base in others if confounds(arms[base], arm, factors).fair]
        if len(baselines) > 1 and fair:
            others = fair
        pairs += [(name, base) for base in others]
    return pairs


def summarize(arms: Arms, baselines: list[str], factors: list[str], difference: float | None) -> dict:
    """Everything as plain containers, without a NaN: size -> "arms" (name -> description) and "comparisons" (rows).

    Args:
        baselines, factors: see `pairs_to_compare` and `confounds`.
        difference: in points of top-1: how many units would detect it?
    """
    pairs = pairs_to_compare(arms, baselines, factors)
    sizes = set()
    for arm in arms.values():
        sizes.update(arm.scores)
    summary = {}
    for size in sorted(sizes, key=lambda size: (len(size), size)):  # numbers in their order
        units = {name: arm.units(size) for name, arm in arms.items() if size in arm.scores}
        pairs_here = [(name, base) for name, base in pairs if name in units and base in units]
        summary[size] = {
            "arms": {name: description(arms[name], units[name]) for name in units},
            "comparisons": comparison_rows(arms, units, pairs_here, factors, difference),
        }
    return summary


def description(arm: Arm, units: Units) -> dict:
    described = describe(units, arm.pretrained)
    for key, values in arm.facts_that_vary().items():
        described["notes"].append(f"its runs differ in {key}: {values}")
    return described


def comparison_rows(
    arms: Arms, units: dict[str, Units], pairs: list[tuple[str, str]], factors: list[str], difference: float | None
) -> list[dict]:
    """A row for each pair (arm, baseline), p corrected over all of them."""
    tests = 0
    for name, base in pairs:
        alike = arms[name].pretrained == arms[base].pretrained
        if compare(units[name], units[base], alike, plan=False)["p"] is not None:
            tests += 1
    rows = []
    for name, base in pairs:
        confounding = confounds(arms[base], arms[name], factors)
        row = {"arm": name, "baseline": base, "differs_in": confounding.differences, "warning": confounding.warning}
        alike = arms[name].pretrained == arms[base].pretrained
        row |= compare(units[name], units[base], alike, comparisons=max(1, tests), wanted=difference)
        rows.append(row)
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows
