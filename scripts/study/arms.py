"""The arms of a study: their scores, and what their runs have in common, from run folders or CSV files."""

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import keys_affecting, yaml_text
from utils.errors import UserError
from utils.run.reading import FlatConfig, read_json, resolved_config

COLUMNS = ["arm", "pretrain_seed", "finetune_seed", "val_resize_size", "top1"]  # of a CSV file
SELECTED = "selected"  # instead of a size: each run chose its own, on held-out images
# What a comparison need not hold fixed: places and logging; the seed, since an arm is a mean over seeds; and the sizes
# that are evaluated, since each of them has a table of its own.
IGNORED = (
    keys_affecting(PretrainConfig, "nothing")
    | keys_affecting(FinetuneConfig, "nothing")
    | {"run.seed", "data.val_resize_size", "run.select_val_resize_size"}
)


@dataclass
class Arm:
    """The runs of one recipe.

    Args:
        pretrained: by a pretraining of this project, which is then the unit; else each finetuning is a unit.
        scores: size -> unit -> seed of the finetuning -> top-1 in percent.
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


@dataclass(frozen=True)
class Score:
    """One result, and where it was read, for errors. An empty pretrain_seed: not pretrained by this project."""

    arm: str
    pretrain_seed: str
    finetune_seed: str
    size: str
    top1: float
    origin: str


Arms = dict[str, Arm]  # by name


def read_arms(paths: list[Path]) -> Arms:
    """Every score in run folders, in folders with such inside, and in CSV files, by arm.

    Raises: UserError on what is no result, or on two results of the same run.
    """
    arms: Arms = {}
    for path in paths:
        if path.is_file():
            read_csv(path, arms)
        else:
            read_folder(path, arms)
    return arms


def read_folder(path: Path, arms: Arms) -> None:
    has_results = False
    for file in sorted(path.rglob("result.json")):
        result = read_json(file)
        if "results" in result:
            has_results = True
            add_run(file.parent, result, arms)
    if not has_results:
        raise UserError(f"{path}: no result.json of a finetuning there; the run has not finished, or is no run")


def read_csv(path: Path, arms: Arms) -> None:
    """Scores, and the facts of the configs that a study writes beside its results.csv, if they are there."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error})") from error
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise UserError(f"{path}: must have a row and the columns {','.join(COLUMNS)}")
    names = set()
    for number, row in enumerate(rows, 2):
        score = score_of_row(row, origin=f"{path}, line {number}")
        add_score(arms, score)
        names.add(score.arm)
    for name in names:
        config = path.parent / "configs" / f"finetune_{name}.yaml"
        if config.is_file():
            arms[name].note(RunConfigs.read(config, config.with_suffix(".pretraining.yaml")).facts())


def score_of_row(row: dict[str, str], origin: str) -> Score:
    try:
        arm, pretrain_seed, finetune_seed, size = [row[column].strip() for column in COLUMNS[:4]]
        top1 = float(row["top1"])
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{origin}: must have 5 cells, top1 a number ({error})") from error
    return Score(arm, pretrain_seed, finetune_seed, size, top1, origin)


@dataclass(frozen=True)
class RunConfigs:
    """The config of a finetuning, and of its pretraining (empty if that is not of this project)."""

    finetuning: FlatConfig
    pretraining: FlatConfig

    @classmethod
    def read(cls, finetuning: Path, pretraining: Path) -> "RunConfigs":
        """From a folder or YAML file, and from a YAML file that may be missing."""
        if pretraining.is_file():
            return cls(resolved_config(str(finetuning)), resolved_config(str(pretraining)))
        return cls(resolved_config(str(finetuning)), {})

    def facts(self) -> dict[str, str]:
        """What two finetunings must share to be compared."""
        facts = {key: yaml_text(value) for key, value in self.finetuning.items() if key not in IGNORED}
        facts["pretraining"] = yaml_text(self.finetuning["run.weights"] or "none")
        if self.pretraining:
            facts["pretraining"] = "a checkpoint of this project"
        for key, value in self.pretraining.items():
            if key not in IGNORED:
                facts[f"pretraining.{key}"] = yaml_text(value)
        return facts


def add_run(run: Path, result: dict, arms: Arms) -> None:
    """The scores and facts of a finetuning. Runs that differ in seeds and places only are one arm.

    Args:
        run: its folder.
        result: the content of its result.json.
    """
    configs = RunConfigs.read(run, run / "pretraining.yaml")
    recipe = configs.facts()
    facts = recipe | provenance(result, prefix="")
    pretrain_seed = ""
    if configs.pretraining:
        pretraining_result = Path(configs.finetuning["run.weights"]).parent.parent / "result.json"
        facts |= provenance(read_json(pretraining_result), prefix="pretraining's ")
        pretrain_seed = yaml_text(configs.pretraining["run.seed"])
    arm = arm_of_run(run, recipe, arms)
    for row in result["results"]:
        score = Score(
            arm=f"{arm} (ema)" if row["weights"] == "ema" else arm,
            pretrain_seed=pretrain_seed,
            finetune_seed=yaml_text(configs.finetuning["run.seed"]),
            size=SELECTED if selected_its_size(result) else str(row["val_resize_size"]),
            top1=row["top1"],
            origin=str(run),
        )
        add_score(arms, score)
        arms[score.arm].note(facts)


def selected_its_size(result: dict) -> bool:
    """Whether the run chose its size on held-out images."""
    return "given" not in result.get("val_resize_size", {}).get("chosen", "given")


def arm_of_run(run: Path, recipe: dict[str, str], arms: Arms) -> str:
    """The arm's folder in a study; else the arm that has this recipe already; else a new name, that of the run."""
    if re.fullmatch(r"(p\d+_)?f\d+", run.name):  # as scripts/study/plan.py names the runs of an arm
        return run.parent.name
    values_of_run = {key: {value} for key, value in recipe.items()}
    for name, arm in arms.items():
        if arm.recipe() == values_of_run:
            return name
    if run.name in arms:
        return str(run)
    return run.name


def provenance(result: dict, prefix: str) -> dict[str, str]:
    """How and on which data a run was made, from its result.json."""
    about, data = result.get("provenance", {}), result.get("data", {})
    facts = {
        "git commit": about.get("commit"),
        "world size": about.get("world_size"),
        "train data": data.get("train"),
        "val data": data.get("val"),
    }
    return {f"{prefix}{key}": value for key, value in facts.items() if value}


def is_provenance(key: str) -> bool:
    """Whether a fact is from `provenance`; the keys of configs have no space."""
    return " " in key


def add_score(arms: Arms, score: Score) -> None:
    """Raises: UserError naming its origin if there is one already, or it does not belong to such an arm."""
    if not score.arm or not score.finetune_seed or not score.size:
        raise UserError(f"{score.origin}: arm, finetune_seed and val_resize_size must not be empty")
    if not 0 <= score.top1 <= 100:
        raise UserError(f"{score.origin}: top1 = {score.top1}: must be a percentage from 0 to 100")
    pretrained = bool(score.pretrain_seed)
    arm = arms.setdefault(score.arm, Arm(pretrained))
    if arm.pretrained != pretrained:
        raise UserError(
            f"{score.origin}: arm {score.arm} has runs with and without a pretrain_seed; give them two names"
        )
    unit = score.pretrain_seed or score.finetune_seed
    scores = arm.scores.setdefault(score.size, {}).setdefault(unit, {})
    if score.finetune_seed in scores:
        raise UserError(
            f"{score.origin}: a second result of arm {score.arm}, pretrain_seed {score.pretrain_seed or 'none'}, "
            f"finetune_seed {score.finetune_seed}, size {score.size}; give each run once"
        )
    scores[score.finetune_seed] = score.top1


def to_csv(arms: Arms) -> str:
    """The scores as a CSV file, which `read_arms` takes."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, arm in arms.items():
        for size, units in arm.scores.items():
            for unit, scores in units.items():
                pretrain_seed = unit if arm.pretrained else ""
                for finetune_seed, top1 in scores.items():
                    writer.writerow([name, pretrain_seed, finetune_seed, size, top1])
    return lines.getvalue()
