"""The scores of runs: finetunings, and pretrainings that were probed, from run folders or CSV files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from scripts.study.arms import FINETUNING, KNN, KNN_CURVE, SELECTED, Measure, Results, Score, add_score
from scripts.study.run_configs import RunConfigs
from scripts.study.scores_csv import read_csv
from utils.config import yaml_text
from utils.errors import UserError
from utils.run.log_file import is_evaluation_line, read_lines
from utils.run.reading import FlatConfig, read_json
from utils.scoring.neighbours import HEADLINE

LABELS_FOLDER = "labels_"  # and the share: holds the runs of an arm in a study of several shares
AVERAGED = " (ema)"  # ends the name of an arm whose averaged weights were scored
# What probes of before these settings were written had: all images of train.
ALL_OF_TRAIN = {"label_fraction": 1.0, "holdout_fraction": 0.0, "train_list": None}
SHARE_DIGITS = 4  # to which a list's share of train is rounded: SimCLR's 10 % are 128,116 of 1,281,167 images


def read_results(paths: list[Path], at_steps: tuple[int, ...] = ()) -> Results:
    """Every score in run folders, in folders with such inside, and in CSV files.

    Args:
        at_steps: score also the newest evaluation of each finetuning after at most so many steps.
    Raises: UserError on what is no result, or on two results of the same run.
    """
    results: Results = {}
    for path in paths:
        if path.is_file():
            read_csv(path, results)
        else:
            read_folder(path, results, at_steps)
    return results


def read_folder(path: Path, results: Results, at_steps: tuple[int, ...]) -> None:
    has_results = False
    for file in sorted(path.rglob("result.json")):
        run, result = file.parent, read_json(file)
        if "results" in result:
            has_results = True
            add_finetuning(run, result, at_steps, results)
        elif (run / "config.yaml").is_file():
            has_results |= add_pretraining(run, result, results)
    if not has_results:
        raise UserError(
            f"{path}: no result.json of a finetuning there, and no probe of a finished pretraining; "
            "the run has not finished, or is no run"
        )


def add_finetuning(run: Path, result: dict, at_steps: tuple[int, ...], results: Results) -> None:
    """The scores and facts of a finetuning. Runs that differ in seeds and places only are one arm.

    Args:
        run: its folder.
        result: the content of its result.json.
    """
    configs = RunConfigs.read(run, run / "pretraining.yaml")
    recipe = configs.facts()
    facts = recipe | provenance(result, prefix="")
    if configs.pretraining:
        pretraining_result = Path(configs.finetuning["run.weights"]).parent.parent / "result.json"
        facts |= provenance(read_json(pretraining_result), prefix="pretraining's ")
    arm = arm_of_run(run, recipe, Measure(), results)
    finetuning = Finetuning(run, arm, configs, selected_its_size(result), facts)
    labels = share_of_labels(run, configs.finetuning, result)
    finetuning.add(result["results"], Measure(FINETUNING, labels), results)
    for step in at_steps:
        rows = evaluation_by(run, step)
        finetuning.facts["step of the evaluation"] = str(rows[0]["step"])
        finetuning.add(rows, Measure(FINETUNING, labels, step), results)


@dataclass(frozen=True)
class Finetuning:
    """A finetuning that has finished.

    Args:
        selected: whether it chose its size on held-out images.
        facts: what is known about it.
    """

    folder: Path
    arm: str
    configs: RunConfigs
    selected: bool
    facts: dict[str, str]

    def add(self, rows: list[dict], measure: Measure, results: Results) -> None:
        """The rows of one of its evaluations, one for each kind of weights and size."""
        pretrain_seed = ""
        if self.configs.pretraining:
            pretrain_seed = yaml_text(self.configs.pretraining["run.seed"])
        for row in rows:
            score = Score(
                measure=measure,
                arm=name_of_arm(self.arm, row["weights"]),
                pretrain_seed=pretrain_seed,
                finetune_seed=yaml_text(self.configs.finetuning["run.seed"]),
                size=SELECTED if self.selected else str(row["val_resize_size"]),
                top1=row["top1"],
                origin=str(self.folder),
            )
            add_score(results, score)
            results[measure][score.arm].note(self.facts)


def share_of_labels(run: Path, config: FlatConfig, result: dict) -> float:
    """Of the images of train that were found. Raises: UserError if it cannot be known."""
    if config["data.train_list"] is None:
        return config["data.label_fraction"]
    images = result.get("train_images")
    if images is None:
        raise UserError(
            f"{run}: result.json does not say which share of train data.train_list = {config['data.train_list']} is.\n"
            "Leave this run out, or finetune it again."
        )
    return round(images["used"] / images["found"], SHARE_DIGITS)


def name_of_arm(arm: str, weights: str) -> str:
    """Args: weights: that were scored: "model" or "ema"."""
    return f"{arm}{AVERAGED}" if weights == "ema" else arm


def selected_its_size(result: dict) -> bool:
    """Whether the run chose its size on held-out images."""
    return "given" not in result.get("val_resize_size", {}).get("chosen", "given")


def evaluation_by(run: Path, step: int) -> list[dict]:
    """The lines of log.jsonl about a run's newest evaluation after at most so many steps."""
    lines = [line for line in read_lines(run / "log.jsonl") if is_evaluation_line(line) and line["step"] <= step]
    if not lines:
        raise UserError(
            f"{run}: log.jsonl has no evaluation after at most {step} steps; give a larger step, or finetune with a "
            "smaller run.evaluate_every_epochs"
        )
    return [line for line in lines if line["step"] == lines[-1]["step"]]


@dataclass(frozen=True)
class FeatureScore:
    """Top-1 in percent from a pretraining's features, and what decided it."""

    measure: Measure
    size: str
    top1: float
    facts: dict[str, str]
    weights: str = "model"  # or "ema"


def add_pretraining(run: Path, result: dict, results: Results) -> bool:
    """The scores of a pretraining's features. Returns: whether there are any.

    Args:
        run: its folder.
        result: the content of its result.json.
    """
    configs = RunConfigs.of_pretraining(run)
    found = knn_curve(run, configs.pretraining) + probes(run, result)
    if not found:
        return False
    recipe = configs.facts()
    facts = recipe | provenance(result, prefix="pretraining's ")
    arm = arm_of_run(run, recipe, found[0].measure, results)
    for one in found:
        seed, name = yaml_text(configs.pretraining["run.seed"]), name_of_arm(arm, one.weights)
        add_score(results, Score(one.measure, name, seed, "", one.size, one.top1, origin=str(run)))
        results[one.measure][name].note(facts | one.facts)
    return True


def knn_curve(run: Path, config: FlatConfig) -> list[FeatureScore]:
    """The neighbours' scores in log.jsonl, which run.probe_every_epochs asks for; one for each number of epochs.

    Args:
        config: of the run. Where it counts its length in steps, epochs are those of its schedule.
    """
    by_place = {}
    for line in read_lines(run / "log.jsonl"):
        if is_evaluation_line(line) and "top1" in line:
            epochs = line["epoch"] + 1  # completed: a probe is made at the end of its epoch
            if config["schedule.steps"] is not None:
                epochs = round(line["step"] * config["schedule.epochs"] / config["schedule.steps"])
            size = str(line["val_resize_size"])
            by_place[epochs, size] = FeatureScore(Measure(KNN_CURVE, after=epochs), size, line["top1"], facts={})
    return list(by_place.values())


def probes(run: Path, result: dict) -> list[FeatureScore]:
    """The scores of `finetune.py --probe` on the run's last checkpoint, which lie in RUN/evaluations."""
    scores = []
    for file in sorted((run / "evaluations").glob("probe_*.json")):
        content = read_json(file)
        if content["checkpoint"]["step"] != result.get("steps"):
            continue  # of an earlier checkpoint; a probe during the pretraining tells about those
        decided_by = decisions_of_probe(content)
        facts = {f"probe's {key}": json.dumps(value) for key, value in decided_by.items() if key != "weights"}
        (size,), weights = decided_by["val_resize_size"], content["checkpoint"]["weights"]
        for row in content["results"]:
            if row["method"] != KNN or is_headline(row):
                scores.append(FeatureScore(Measure(row["method"]), str(size), row["top1"], facts, weights))
    return scores


def decisions_of_probe(content: dict) -> dict[str, object]:
    """Every setting that decided a probe, and the fingerprints of weights and data, from its JSON."""
    return ALL_OF_TRAIN | content["decided_by"]


def is_headline(row: dict) -> bool:
    """Whether this is the one score of neighbours that counts, fixed beforehand."""
    return (row["k"], row["temperature"]) == (HEADLINE.k, HEADLINE.temperature)


def arm_of_run(run: Path, recipe: dict[str, str], measure: Measure, results: Results) -> str:
    """The arm's folder in a study; else the arm that has this recipe already; else a new name, that of the run.

    Args:
        measure: arms with the same recipe are looked for among those with such a score, whatever the share of labels.
    """
    if re.fullmatch(r"(p\d+_)?f\d+|p\d+", run.name):  # as scripts/study/plan.py names the runs of an arm
        folder = run.parent
        if folder.name.startswith(LABELS_FOLDER):
            folder = folder.parent
        return folder.name
    values_of_run = {key: {value} for key, value in recipe.items()}
    names = set()
    for other, arms in results.items():
        if other.score != measure.score:
            continue
        for full_name, arm in arms.items():
            name = full_name.removesuffix(AVERAGED)
            if arm.recipe() == values_of_run:
                return name
            names.add(name)
    if run.name in names:
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
