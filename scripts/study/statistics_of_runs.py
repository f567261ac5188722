"""The statistics of `summarize.py`: an arm is {unit: scores}, a unit being a pretraining, or a lone finetuning."""

import bisect
import warnings
from typing import Any

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8
EQUAL = 1e-9  # scores this close are equal
Units = dict[str, list[float]]


def describe(units: Units, pretrained: bool) -> dict[str, Any]:
    """Mean over units with its interval, deviations over runs, and the variance at both levels."""
    runs = np.concatenate([np.asarray(scores, float) for scores in units.values()])
    means, notes, interval = unit_means(units), [], None
    if len(means) < 2:
        notes.append("one unit: no interval, and nothing can be tested")
    elif np.ptp(means) <= EQUAL:
        interval = [float(means[0])] * 2
        notes.append("all units are equal: the interval has no width")
    else:
        interval = list(map(float, stats.t.interval(1 - ALPHA, len(means) - 1, means.mean(), stats.sem(means))))
    between = share = None
    deviation_of_finetunings = deviation(runs)
    pretrainings = []
    if pretrained:
        between, within, note = levels(units)
        deviation_of_finetunings = root(within)
        if between is not None and between + within:
            share = float(between / (between + within))
        for unit, scores in units.items():
            pretrainings.append((unit, len(scores), float(np.mean(scores)), deviation(scores)))
        if note:
            notes.append(note)
    return {
        "runs": len(runs),
        "units": len(means),
        "mean": float(means.mean()),
        "sample_deviation": deviation(runs),
        "population_deviation": deviation(runs, ddof=0),
        "interval": interval,
        "deviation_of_pretrainings": root(between),
        "deviation_of_finetunings": deviation_of_finetunings,
        "share_of_pretraining": share,
        "pretrainings": pretrainings,  # seed, number of finetunings, their mean, their sample deviation
        "notes": notes,
    }


def deviation(scores: list[float] | np.ndarray, ddof: int = 1) -> float | None:
    if len(scores) < 2:
        return None
    return float(np.std(scores, ddof=ddof))


def unit_means(units: Units) -> np.ndarray:
    return np.array([np.mean(scores) for scores in units.values()])


def root(variance: float | None) -> float | None:
    if variance is None:
        return None
    return float(np.sqrt(variance))


def levels(units: Units) -> tuple[float | None, float | None, str]:
    """One-way random effects, unbalanced too: variance of pretrainings, of finetunings of one, and a note.

    The analysis-of-variance estimator (Searle, Casella and McCulloch, Variance Components, section 3.6).
    """
    sizes = np.array([len(scores) for scores in units.values()])
    runs, groups = sizes.sum(), len(sizes)
    if runs == groups:
        return None, None, "one finetuning a pretraining: the two levels of variance cannot be told apart"
    within = sum(len(scores) * np.var(scores) for scores in units.values()) / (runs - groups)
    if groups == 1:
        return None, within, "one pretraining: the variance between pretrainings is unknown"
    means = unit_means(units)
    between = (sizes * (means - (sizes * means).sum() / runs) ** 2).sum() / (groups - 1)
    component = (between - within) / ((runs - (sizes**2).sum() / runs) / (groups - 1))
    note = ""
    if component < 0:
        note = f"the variance component of pretraining is negative ({component:.4f}) and shown as 0: none detectable"
    return max(component, 0.0), within, note


def compare(
    arm: Units, base: Units, alike: bool, comparisons: int = 1, wanted: float | None = None, plan: bool = True
) -> dict[str, Any]:
    """The difference of two arms' means over units, tested in pairs or by Welch.

    Args:
        alike: both arms pretrained, or neither, so that equal unit names mean something in common.
        comparisons: how many are made, for which the detectable difference allows as Holm's first step does.
        wanted: a difference to be detected; how many units an arm does it need?
        plan: work out what can be detected, which takes most of the time.
    """
    notes = []
    partners = partners_of(arm, base) if alike else []
    ours, theirs = unit_means(arm), unit_means(base)
    samples = [ours, theirs]
    if partners:
        if len(arm) + len(base) > 2 * len(partners):
            numbers = f"{len(arm)} and {len(base)} there"
            notes.append(f"{len(partners)} pairs; units without a partner ({numbers}) left out")
        ours = unit_means({unit: arm[unit] for unit in partners})
        theirs = unit_means({unit: base[unit] for unit in partners})
        samples = [ours - theirs]
    comparison = {
        "difference": float(ours.mean() - theirs.mean()),
        "units": [len(ours), len(theirs)],
        "interval": None,
        "p": None,
        "detectable": None,
        "units_needed": None,
        "test": "none",
        "notes": notes,
    }
    if min(map(len, samples)) < 2:
        notes.append("an arm has one unit: its spread is unknown, and the difference cannot be tested")
        return comparison
    comparison["test"] = "paired t" if partners else "Welch's t"
    if max(map(np.ptp, samples)) <= EQUAL:
        notes.append("no spread at all, in equal runs: nothing to test the difference against")
        return comparison
    comparison |= tested(samples)
    if plan:
        comparison |= planned(samples, wanted, ALPHA / comparisons)
    return comparison


def partners_of(arm: Units, base: Units) -> list[str]:
    """The units that both arms have, if they are several and more than half of each arm; else none."""
    partners = [unit for unit in arm if unit in base]
    if len(partners) > 1 and 2 * len(partners) > max(len(arm), len(base)):
        return partners
    return []


def tested(samples: list[np.ndarray]) -> dict[str, Any]:
    """p and interval of one sample against 0 (differences of pairs), or of two against each other (Welch)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one arm without spread, for which Welch is still defined
        if len(samples) == 1:
            test = stats.ttest_1samp(samples[0], 0)
        else:
            test = stats.ttest_ind(samples[0], samples[1], equal_var=False)
    return {"p": float(test.pvalue), "interval": list(map(float, test.confidence_interval(1 - ALPHA)))}


def planned(samples: list[np.ndarray], wanted: float | None, alpha: float) -> dict[str, Any]:
    """The difference that such samples detect, and the units that a wanted difference needs."""
    variances = [sample.var(ddof=1) for sample in samples]
    plan: dict[str, Any] = {"detectable": detectable(variances, list(map(len, samples)), alpha)}
    if wanted is not None:
        plan["units_needed"] = units_needed(variances, wanted, alpha)
    return plan


def error_and_freedom(variances: list[float], numbers: list[int]) -> tuple[float, float]:
    """Standard error of a difference and its degrees of freedom (Welch and Satterthwaite); one variance: of pairs."""
    parts = np.array(variances) / numbers
    return float(np.sqrt(parts.sum())), float(parts.sum() ** 2 / (parts**2 / (np.array(numbers) - 1)).sum())


def power(effect: float, freedom: float, alpha: float) -> float:
    """Of a two-sided t test; effect: true difference in standard errors."""
    limit = stats.t.isf(alpha / 2, freedom)
    other_side = np.nan_to_num(stats.nct.cdf(-limit, freedom, effect))  # where it is next to 0 scipy gives NaN
    return float(stats.nct.sf(limit, freedom, effect) + other_side)


def detectable(variances: list[float], numbers: list[int], alpha: float = ALPHA) -> float:
    """The true difference that is found with probability POWER."""
    error, freedom = error_and_freedom(variances, numbers)
    limit = stats.t.isf(alpha / 2, freedom)
    # A normal score above limit · chi keeps the power above 0.8 for any number of units.
    return error * optimize.brentq(lambda effect: power(effect, freedom, alpha) - POWER, 0, 3 * limit + 3)


def units_needed(variances: list[float], difference: float, alpha: float = ALPHA) -> int | None:
    """Smallest number of units an arm (pairs) that finds a difference with probability POWER; None: over a million."""

    def power_of(number: int) -> float:
        error, freedom = error_and_freedom(variances, [number] * len(variances))
        return power(min(difference / error, 1e6), freedom, alpha)

    number = bisect.bisect_left(range(2, 10**6), POWER, key=power_of) + 2
    if number >= 10**6:
        return None
    return number


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction, in the order given; what was not tested stays None."""
    tested_ones = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested_ones):
        largest = max(largest, min(1.0, (len(tested_ones) - rank) * p))
        corrected[index] = largest
    return corrected
