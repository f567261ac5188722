"""The scores of a study as a CSV file, and back."""

import csv
import io
from pathlib import Path

from scripts.study.arms import Measure, Results, Score, add_score
from scripts.study.run_configs import RunConfigs
from utils.errors import UserError

COLUMNS = ["arm", "pretrain_seed", "finetune_seed", "val_resize_size", "top1"]
MEASURE_COLUMNS = ["score", "labels", "after"]  # a file may lack them: then its scores are ends of finetunings


def read_csv(path: Path, results: Results) -> None:
    """Scores, and the facts of the configs that a study writes beside its results.csv, if they are there."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error})") from error
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise UserError(f"{path}: must have a row and the columns {','.join(COLUMNS)}")
    arms = set()
    for number, row in enumerate(rows, 2):
        score = score_of_row(row, origin=f"{path}, line {number}")
        add_score(results, score)
        arms.add((score.measure, score.arm))
    for measure, name in arms:
        config = path.parent / "configs" / f"{config_name(measure, name)}.yaml"
        if not config.is_file():
            continue
        if measure.of_pretraining:
            configs = RunConfigs.of_pretraining(config)
        else:
            configs = RunConfigs.read(config, config.with_suffix(".pretraining.yaml"))
        results[measure][name].note(configs.facts())


def score_of_row(row: dict[str, str], origin: str) -> Score:
    try:
        arm, pretrain_seed, finetune_seed, size = [row[column].strip() for column in COLUMNS[:4]]
        top1 = float(row["top1"])
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{origin}: must have {len(row)} cells, top1 a number ({error})") from error
    return Score(measure_of_row(row, origin), arm, pretrain_seed, finetune_seed, size, top1, origin)


def measure_of_row(row: dict[str, str], origin: str) -> Measure:
    """What its cells say; those that are missing or empty say what a plain finetuning has."""
    plain = Measure()
    score = (row.get("score") or plain.score).strip()
    after = (row.get("after") or "").strip()
    try:
        labels = float(row.get("labels") or plain.labels)
        return Measure(score, labels, int(after) if after else None)
    except ValueError as error:
        raise UserError(f"{origin}: labels and after must be numbers, or empty ({error})") from error


def config_name(measure: Measure, arm: str) -> str:
    """Of the file, without its suffix, in which a study keeps the config of an arm."""
    if measure.of_pretraining:
        return f"pretrain_{arm}"
    if measure.labels == 1:
        return f"finetune_{arm}"
    return f"finetune_{arm}_labels_{measure.labels:g}"


def to_csv(results: Results) -> str:
    """The scores as a CSV file, which `read_csv` takes."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [*COLUMNS[:4], *MEASURE_COLUMNS, "top1"], lineterminator="\n")
    writer.writeheader()
    for measure, arms in results.items():
        for name, arm in arms.items():
            for size, units in arm.scores.items():
                for unit, scores in units.items():
                    for finetune_seed, top1 in scores.items():
                        writer.writerow({
                            "arm": name, "pretrain_seed": unit if arm.pretrained else "",
                            "finetune_seed": finetune_seed, "val_resize_size": size, "score": measure.score,
                            "labels": f"{measure.labels:g}", "after": measure.after, "top1": top1,
                        })  # fmt: skip
    return lines.getvalue()
