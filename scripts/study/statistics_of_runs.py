"""The statistics of `summarize.py`: an arm is {unit: scores}, a unit being a pretraining, or a lone finetuning."""

import bisect
import warnings

import numpy as np
from scipy import optimize, stats

ALPHA, POWER = 0.05, 0.8
EQUAL = 1e-9  # scores this close are equal
Units = dict[str, list[float]]


def describe(units: Units, pretrained: bool) -> dict:
    """Mean over units with its interval, deviations over runs, and the variance at both levels."""
    runs = np.concatenate([np.asarray(scores, float) for scores in units.values()])
    means, notes, interval = unit_means(units), [], None
    if len(means) < 2:
        notes.append("one unit: no interval, and nothing can be tested")
    elif np.ptp(means) <= EQUAL:
        interval = [float(means[0])] * 2
        notes.append("all units are equal: the interval has no width")
    else:
        interval = [float(end) for end in stats.t.interval(1 - ALPHA, len(means) - 1, means.mean(), stats.sem(means))]
    between, within, told = levels(units) if pretrained else (None, None, "")
    total = None if between is None else between + within
    return {
        "runs": len(runs), "units": len(means), "mean": float(means.mean()),
        "sample_deviation": deviation(runs), "population_deviation": deviation(runs, 0), "interval": interval,
        "deviation_of_pretrainings": root(between),
        "deviation_of_finetunings": root(within) if pretrained else deviation(runs),
        "share_of_pretraining": float(between / total) if total else None,
        "pretrainings": [(unit, len(scores), float(np.mean(scores)), deviation(scores))
                         for unit, scores in units.items() if pretrained],
        "notes": notes + [told] * bool(told),
    }  # fmt: skip


def deviation(scores, ddof: int = 1) -> float | None:
    return float(np.std(scores, ddof=ddof)) if len(scores) > 1 else None


def unit_means(units: Units) -> np.ndarray:
    return np.array([np.mean(scores) for scores in units.values()])


def root(variance: float | None) -> float | None:
    return None if variance is None else float(np.sqrt(variance))


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
    told = ""
    if component < 0:
        told = f"the variance component of pretraining is negative ({component:.4f}) and shown as 0: none detectable"
    return max(component, 0.0), within, told


def compare(arm: Units, base: Units, alike: bool, comparisons=1, wanted: float | None = None, plan=True) -> dict:
    """The difference of two arms' means over units, tested in pairs or by Welch.

    Args:
        alike: both arms pretrained, or neither, so that equal unit names mean something in common.
        comparisons: how many are made, for which the detectable difference allows as Holm's first step does.
        wanted: a difference to be detected; how many units an arm does it need?
        plan: work out what can be detected, which takes most of the time.
    """
    notes, common = [], [unit for unit in arm if unit in base] if alike else []
    paired = len(common) > 1 and 2 * len(common) > max(len(arm), len(base))
    if paired and len(arm) + len(base) > 2 * len(common):
        notes.append(f"{len(common)} pairs; units without a partner ({len(arm)} and {len(base)} there) left out")
    ours, theirs = ({unit: one[unit] for unit in common} if paired else one for one in (arm, base))
    ours, theirs = unit_means(ours), unit_means(theirs)
    found = {"difference": float(ours.mean() - theirs.mean()), "units": [len(ours), len(theirs)], "interval": None}
    found |= {"p": None, "detectable": None, "units_needed": None, "test": "none", "notes": notes}
    samples = [ours - theirs] if paired else [ours, theirs]
    if min(map(len, samples)) < 2:
        notes.append("an arm has one unit: its spread is unknown, and the difference cannot be tested")
        return found
    found["test"] = "paired t" if paired else "Welch's t"
    if max(map(np.ptp, samples)) <= EQUAL:
        notes.append("no spread at all, in equal runs: nothing to test the difference against")
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of one arm without spread, for which Welch is still defined
        test = stats.ttest_1samp(samples[0], 0) if paired else stats.ttest_ind(ours, theirs, equal_var=False)
    found |= {"p": float(test.pvalue), "interval": [float(end) for end in test.confidence_interval(1 - ALPHA)]}
    variances, numbers = [sample.var(ddof=1) for sample in samples], [len(sample) for sample in samples]
    if plan:
        found["detectable"] = detectable(variances, numbers, ALPHA / comparisons)
    if plan and wanted is not None:
        found["units_needed"] = units_needed(variances, wanted, ALPHA / comparisons)
    return found


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

    found = bisect.bisect_left(range(2, 10**6), POWER, key=power_of) + 2
    return found if found < 10**6 else None


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction, in the order given; what was not tested stays None."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected, largest = [None] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected
