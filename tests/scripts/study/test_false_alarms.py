"""The error rates of a comparison, by simulated studies: pytest -m slow -s tests/scripts/study/test_false_alarms.py"""

from __future__ import annotations

import numpy as np
import pytest

from scripts.study.statistics_of_runs import compare, detectable

pytestmark = pytest.mark.slow
STUDIES = 2000
NOISE = {  # variances between pretrainings, and between finetunings of one
    "finetuning only": (0.0, 1.0),
    "both alike": (1.0, 1.0),
    "mostly pretraining": (1.0, 0.05),
}
# pretrainings and finetunings of the arm; of the baseline (None: not pretrained); whether they share the pretrainings
DESIGNS = {
    "two pretrainings, 4 x 3": ((4, 3), (4, 3), False),
    "one pretraining finetuned two ways, 4 x 3": ((4, 3), (4, 3), True),
    "pretrained 8 x 1 against scratch 8": ((8, 1), (None, 8), False),
    "pretrained 4 x 3 against scratch 12": ((4, 3), (None, 12), False),
}


def draw(generator, counts, variances, shared=None) -> dict:
    """An arm's scores by unit; `shared` are the pretrainings' effects where both arms have the same."""
    pretrainings, finetunings = counts
    if pretrainings is None:
        # Scratch is as noisy as a whole pipeline here, so that the null hypothesis is that nothing differs.
        return {str(n): [score] for n, score in enumerate(generator.normal(0, np.sqrt(sum(variances)), finetunings))}
    effects = generator.normal(0, np.sqrt(variances[0]), pretrainings) if shared is None else shared
    noise = generator.normal(0, np.sqrt(variances[1]), (pretrainings, finetunings))
    return {str(unit): list(effect + noise[unit]) for unit, effect in enumerate(effects)}


def share_found(design: str, noise: str, difference: float = 0.0) -> float:
    """Of studies with this true difference, how many give p < 0.05."""
    counts, base_counts, same = DESIGNS[design]
    variances, found = NOISE[noise], 0
    generator = np.random.default_rng([list(DESIGNS).index(design), list(NOISE).index(noise), bool(difference)])
    for _ in range(STUDIES):
        shared = generator.normal(0, np.sqrt(variances[0]), counts[0]) if same else None
        base = draw(generator, base_counts, variances, shared)
        arm = {
            unit: [s + difference for s in scores]
            for unit, scores in draw(generator, counts, variances, shared).items()
        }
        found += compare(arm, base, alike=base_counts[0] is not None, plan=False)["p"] < 0.05
    return found / STUDIES


def true_detectable(design: str, noise: str) -> float:
    """What `detectable` states for the true variances."""
    (pretrainings, finetunings), base, same = DESIGNS[design]
    between, within = NOISE[noise]
    unit = between + within / finetunings
    if base[0] is None:
        return detectable([unit, between + within], [pretrainings, base[1]])
    return detectable([2 * (within / finetunings if same else unit)], [pretrainings])


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("design", DESIGNS)
def test_false_alarms_are_five_percent(design, noise):
    share = share_found(design, noise)
    print(f"\nfalse alarms, {design}, {noise}: {100 * share:.1f} %")
    assert abs(share - 0.05) <= 0.015


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("design", DESIGNS)
def test_the_detectable_difference_is_found_in_four_of_five_studies(design, noise):
    difference = true_detectable(design, noise)
    share = share_found(design, noise, difference)
    print(f"\npower, {design}, {noise}: {100 * share:.1f} % at a difference of {difference:.3f}")
    assert abs(share - 0.80) <= 0.04


def test_finetunings_taken_for_units_would_cry_wolf():
    """Why the unit is the pretraining: the same studies with every finetuning a unit."""
    generator, found = np.random.default_rng(0), 0
    for _ in range(STUDIES):
        arms = [draw(generator, (4, 3), NOISE["both alike"]) for _ in range(2)]
        singles = [{f"{u}/{n}": [s] for u, scores in arm.items() for n, s in enumerate(scores)} for arm in arms]
        found += compare(*singles, alike=False, plan=False)["p"] < 0.05
    print(f"\nfalse alarms with finetunings as units: {100 * found / STUDIES:.1f} %")
    assert 0.15 < found / STUDIES < 0.25
