"""The arms of a study: what was measured of their runs, and what these runs have in common."""

from dataclasses import dataclass, field

from utils.errors import UserError

SELECTED = "selected"  # instead of a size: each run chose its own, on held-out images
FINETUNING, KNN_CURVE = "finetuning", "knn while pretraining"
KNN, LINEAR, PIXELS = "knn", "linear", "pixels_knn"  # methods of `finetune.py --probe`
SCORES = (FINETUNING, KNN_CURVE, KNN, LINEAR, PIXELS)  # in the order of the tables


@dataclass(frozen=True)
class Measure:
    """What was scored: arms are compared within one measure.

    Args:
        score: top-1 of a finetuning; of neighbours (k = 20) or of a linear classifier on a pretraining's features, or
            on raw pixels instead, all three by a probe after it; or of neighbours (k = 20) while it goes on.
        labels: the share of the labels that a finetuning had.
        after: None: at the end. Of a finetuning, its newest evaluation after at most so many steps; of a pretraining,
            after so many epochs.
    """

    score: str = FINETUNING
    labels: float = 1.0
    after: int | None = None

    @property
    def of_pretraining(self) -> bool:
        return self.score != FINETUNING


@dataclass
class Arm:
    """The runs of one recipe, as far as one measure goes.

    Args:
        pretrained: by a pretraining of this project, which is then the unit; else each finetuning is a unit.
        scores: size -> unit -> seed of the finetuning ("" for a probe) -> top-1 in percent.
        facts: key of the config, or name of a fact about how it was run -> every value that it has among the runs.
    """

    pretrained: bool
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    facts: dict[str, set[str]] = field(default_factory=dict)

    def note(self, facts: dict[str, str]) -> None:
        """Add what is known about one run."""
        for key, value in facts.items():
            self.facts.setdefault(key, set()).add(value)

    def facts_in_words(self) -> dict[str, str]:
        """Every fact, with its values joined where the runs differ in it."""
        return {key: " | ".join(sorted(values)) for key, values in self.facts.items()}

    def facts_that_vary(self) -> dict[str, str]:
        """The facts in which the arm's own runs differ."""
        return {key: words for key, words in self.facts_in_words().items() if len(self.facts[key]) > 1}

    def recipe(self) -> dict[str, set[str]]:
        return {key: values for key, values in self.facts.items() if not is_provenance(key)}

    def units(self, size: str) -> dict[str, list[float]]:
        """Unit -> its scores at this size."""
        return {unit: list(scores.values()) for unit, scores in self.scores.get(size, {}).items()}


Arms = dict[str, Arm]  # by name
Results = dict[Measure, Arms]


@dataclass(frozen=True)
class Score:
    """One result, and where it was read, for errors.

    Args:
        pretrain_seed: empty: not pretrained by this project.
        finetune_seed: empty for a probe.
    """

    measure: Measure
    arm: str
    pretrain_seed: str
    finetune_seed: str
    size: str
    top1: float
    origin: str


def is_provenance(key: str) -> bool:
    """Whether a fact is about how and on which data a run was made; the keys of configs have no space."""
    return " " in key


def add_score(results: Results, score: Score) -> None:
    """Raises: UserError naming its origin if there is one already, or it does not belong to such an arm."""
    check_score(score)
    pretrained = bool(score.pretrain_seed)
    arm = results.setdefault(score.measure, {}).setdefault(score.arm, Arm(pretrained))
    if arm.pretrained != pretrained:
        raise UserError(
            f"{score.origin}: arm {score.arm} has runs with and without a pretrain_seed; give them two names"
        )
    unit = score.pretrain_seed or score.finetune_seed
    scores = arm.scores.setdefault(score.size, {}).setdefault(unit, {})
    if score.finetune_seed in scores:
        raise UserError(
            f"{score.origin}: a second result of arm {score.arm}, pretrain_seed {score.pretrain_seed or 'none'}, "
            f"finetune_seed {score.finetune_seed or 'none'}, size {score.size} ({score.measure.score}); "
            "give each run once, and of two probes at one size keep one"
        )
    scores[score.finetune_seed] = score.top1


def check_score(score: Score) -> None:
    """Raises: UserError naming its origin if it lacks something, or has a value that cannot be."""
    measure = score.measure
    if measure.score not in SCORES:
        raise UserError(f"{score.origin}: score = {measure.score}: must be one of {', '.join(SCORES)}")
    if not 0 < measure.labels <= 1:
        raise UserError(f"{score.origin}: labels = {measure.labels}: must be a share above 0, up to 1")
    if measure.of_pretraining:
        if not score.arm or not score.pretrain_seed or not score.size:
            raise UserError(f"{score.origin}: arm, pretrain_seed and val_resize_size must not be empty")
    elif not score.arm or not score.finetune_seed or not score.size:
        raise UserError(f"{score.origin}: arm, finetune_seed and val_resize_size must not be empty")
    if not 0 <= score.top1 <= 100:
        raise UserError(f"{score.origin}: top1 = {score.top1}: must be a percentage from 0 to 100")
