"""The error rates of a whole family of comparisons, arms × shares of the labels, by simulated studies.

The many studies: pytest -m slow -s tests/scripts/study/test_false_alarms_of_shares.py
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scripts.study.arms import Arm, Measure
from scripts.study.comparisons import Column, compare_family

SHARES = (0.01, 0.1, 1.0)
BASELINES = ["scratch", "denoise"]
PAIRS = 3 * len(SHARES)
NOISE = {  # variances of a pretraining, which all of its finetunings share at every share, and of a finetuning
    "finetuning only": (0.0, 1.0),
    "both alike": (1.0, 1.0),
    "mostly pretraining": (1.0, 0.05),
}
DESIGNS = {
    "3 x 2": (3, 2),
    "6 x 1": (6, 1),
    "3 x 1": (3, 1),
}  # pretrainings, and finetunings of each; scratch has as many runs


def simulated(generator, design: str, noise: str, effects: dict[str, float]) -> list[Column]:
    """A study whose true differences from scratch are `effects`, at every share of the labels."""
    pretrainings, finetunings = DESIGNS[design]
    between, within = np.sqrt(NOISE[noise])
    luck = {}
    for name in ("mfm", "denoise"):
        luck[name] = effects.get(name, 0.0) + generator.normal(0, between, (pretrainings, 1))
    luck["scratch"] = generator.normal(0, between, (pretrainings * finetunings, 1))  # an initialisation, say
    columns = []
    for share in SHARES:
        arms = {}
        for name, effect in luck.items():
            number = 1 if name == "scratch" else finetunings
            scores = 50 + effect + generator.normal(0, within, (len(effect), number))
            arms[name] = Arm(pretrained=name != "scratch", scores={"73": by_seed(scores)})
        columns.append(Column(Measure(labels=share), "73", arms))
    return columns


def by_seed(scores: np.ndarray) -> dict[str, dict[str, float]]:
    units = {}
    for unit, row in enumerate(scores):
        units[str(unit)] = {str(seed): float(score) for seed, score in enumerate(row)}
    return units


def rows_of(columns: list[Column]) -> list[dict]:
    families = compare_family(columns, BASELINES, factors=[], difference=None, plan=False)
    return list(itertools.chain.from_iterable(families))


def shares_of_studies(studies: int, design: str, noise: str) -> tuple[float, float, float]:
    """Of studies where nothing differs: how many have a p below 0.05 after and before the correction, and of single
    comparisons, how many."""
    generator = np.random.default_rng([list(DESIGNS).index(design), list(NOISE).index(noise)])
    corrected, raw, single = 0, 0, 0
    for _ in range(studies):
        rows = rows_of(simulated(generator, design, noise, effects={}))
        assert len(rows) == PAIRS
        corrected += min(row["p_holm"] for row in rows) < 0.05
        raw += min(row["p"] for row in rows) < 0.05
        single += sum(row["p"] < 0.05 for row in rows)
    return corrected / studies, raw / studies, single / studies / PAIRS


def test_few_studies_cry_wolf_over_all_shares_and_many_would_without_the_correction():
    corrected, raw, _ = shares_of_studies(30, "6 x 1", "both alike")
    assert corrected <= 0.1 < 0.15 < raw


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("design", DESIGNS)
def test_false_alarms_of_a_whole_family_are_at_most_five_percent(design, noise):
    corrected, raw, single = shares_of_studies(2000, design, noise)
    print(
        f"\n{design}, {noise}: {100 * corrected:.1f} % of studies cry wolf, {100 * raw:.1f} % without the correction;"
    )
    print(f"{100 * single:.1f} % of single comparisons")
    assert 0.005 < corrected <= 0.06
    assert raw > 0.12
    assert abs(single - 0.05) <= 0.015


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_a_true_effect_of_one_arm_makes_no_false_alarm_of_the_others(design):
    """Holm steps down: what it finds makes the rest easier to find, and must not make it too easy."""
    generator, alarms, studies = np.random.default_rng(5), 0, 2000
    for _ in range(studies):
        rows = rows_of(simulated(generator, design, "both alike", effects={"mfm": 100.0}))
        untrue = [row for row in rows if "mfm" not in (row["arm"], row["baseline"])]
        assert len(untrue) == len(SHARES)
        alarms += min(row["p_holm"] for row in untrue) < 0.05
    print(f"\nfalse alarms beside a true effect, {design}: {100 * alarms / studies:.1f} % of studies")
    assert alarms / studies <= 0.06
