"""Whether arms differ, by how much, whether so few runs could tell, and whether it was a fair comparison.

python scripts/study/summarize.py runs/sample_finetune_mfm runs/sample_finetune_scratch
python scripts/study/summarize.py runs/studies/variance --baseline mfm --difference 0.1 --format json
python scripts/study/summarize.py results.csv --baseline scratch_bce scratch_ce --factor pretraining loss.name

Takes run folders, folders with such inside, and CSV files with columns arm, pretrain_seed (empty: not pretrained),
finetune_seed, val_resize_size, top1; `--format csv` writes such a file. The unit of a comparison is the pretraining
(the mean of its finetunings, which share its luck and are not independent), or the finetuning in arms without
pretraining of ours. Units are compared in pairs where both arms are pretrained, or both are not, and have seeds in
common, since equal seeds then mean a common start and order of images; else by Welch's test. p is corrected over the
comparisons of one table; intervals are of one comparison each.
"""

import argparse
import csv
import io
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configs.schema import FREE_TO_CHANGE
from scripts.config_diff import differing, read_json, resolved
from scripts.study.statistics_of_runs import compare, describe, holm
from scripts.study.tables import SELECTED, to_markdown
from utils.config import show
from utils.distributed import run_entry
from utils.errors import UserError

COLUMNS = ["arm", "pretrain_seed", "finetune_seed", "val_resize_size", "top1"]
# What a comparison need not hold fixed: seeds, places, and what changes no weight and no score.
IGNORED = (FREE_TO_CHANGE | {"run.seed"}) - {"data.val_crop_size", "run.use_ema"}


@dataclass
class Arm:
    """The runs of one recipe: scores by size and unit, and every value that a key of their configs takes."""

    pretrained: bool  # by a pretraining of ours, which is then the unit; else each finetuning is one
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # size -> unit -> finetuning -> top-1
    facts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, facts: dict[str, str]) -> None:
        for key, value in facts.items():
            self.facts[key].add(value)

    def told(self, least: int = 1) -> dict[str, str]:
        """All facts as text; with `least` = 2 those in which its own runs differ."""
        return {key: " | ".join(sorted(seen)) for key, seen in self.facts.items() if len(seen) >= least}

    def units(self, size: str) -> dict[str, list[float]]:
        return {unit: list(scores.values()) for unit, scores in self.scores.get(size, {}).items()}


def read_arms(paths: list[Path]) -> dict[str, Arm]:
    """Every score there, by arm. Raises: UserError on what is no result, or two results of the same run."""
    arms: dict[str, Arm] = {}
    for path in paths:
        if path.is_file():
            read_csv(path, arms)
            continue
        found = {file.parent: read_json(file) for file in sorted(path.rglob("result.json"))}
        finetunings = {run: result for run, result in found.items() if "results" in result}
        if not finetunings:
            raise UserError(f"{path}: no result.json of a finetuning there; the run has not finished, or is no run")
        for run, result in finetunings.items():
            add_run(run, result, arms)
    return arms


def read_csv(path: Path, arms: dict[str, Arm]) -> None:
    """Scores, and the facts of the configs that a study writes beside its results.csv, if they are there."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error})") from error
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise UserError(f"{path}: must have a row and the columns {','.join(COLUMNS)}")
    for number, row in enumerate(rows, 2):
        try:
            *words, top1 = *(row[name].strip() for name in COLUMNS[:4]), float(row["top1"])
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}, line {number}: must have 5 cells, top1 a number ({error})") from error
        add(arms, *words, top1, f"{path}, line {number}")
    for name in {row["arm"].strip() for row in rows}:
        config = path.parent / "configs" / f"finetune_{name}.yaml"
        if config.is_file():
            arms[name].note(facts_of(str(config), config.with_suffix(".pretraining.yaml"))[0])


def facts_of(config_file: str, pretraining_file: Path) -> tuple[dict[str, str], dict, dict]:
    """What two finetunings to be compared must share; the whole config; and the pretraining's, {} if it is not ours."""
    config = resolved(config_file)
    pretraining = resolved(str(pretraining_file)) if pretraining_file.is_file() else {}
    facts = {key: show(value) for key, value in config.items() if key not in IGNORED}
    facts["pretraining"] = "a checkpoint of this project" if pretraining else show(config["run.weights"] or "none")
    facts |= {f"pretraining.{key}": show(value) for key, value in pretraining.items() if key not in IGNORED}
    return facts, config, pretraining


def add_run(run: Path, result: dict, arms: dict[str, Arm]) -> None:
    """A finetuning's scores and facts. Runs that differ in seeds and places alone are an arm, named after the first."""
    facts, config, pretraining = facts_of(str(run), run / "pretraining.yaml")
    recipe = {key: {value} for key, value in facts.items()}
    facts |= provenance(result, "")
    if pretraining:
        beside = Path(config["run.weights"]).parent.parent / "result.json"
        facts |= provenance(read_json(beside), "pretraining's ")
    in_study = re.fullmatch(r"(p\d+_)?f\d+", run.name)
    recipes = {name: {k: v for k, v in arm.facts.items() if not is_provenance(k)} for name, arm in arms.items()}
    alike = (name for name, theirs in recipes.items() if recipe == theirs)
    own = run.name if run.name not in arms else str(run)
    arm_name = run.parent.name if in_study else next(alike, own)
    chosen = "given" not in result.get("val_resize_size", {}).get("chosen", "given")
    for row in result["results"]:
        name = arm_name + (" (ema)" if row["weights"] == "ema" else "")
        size = SELECTED if chosen else str(row["val_resize_size"])
        seed = show(pretraining["run.seed"]) if pretraining else ""
        add(arms, name, seed, show(config["run.seed"]), size, row["top1"], str(run))
        arms[name].note(facts)


def provenance(result: dict, whose: str) -> dict[str, str]:
    about, data = result.get("provenance", {}), result.get("data", {})
    found = {"git commit": about.get("commit"), "world size": about.get("world_size")}
    found |= {f"{part} data": data.get(part) for part in ("train", "val")}
    return {f"{whose}{key}": value for key, value in found.items() if value}


def is_provenance(key: str) -> bool:
    return " " in key


def add(arms: dict[str, Arm], name: str, pretrain_seed: str, finetune_seed: str, size: str, top1: float, origin: str):
    """One score. Raises: UserError naming its origin if there is one already, or it does not belong to such an arm."""
    if not name or not finetune_seed or not size:
        raise UserError(f"{origin}: arm, finetune_seed and val_resize_size must not be empty")
    if not 0 <= top1 <= 100:
        raise UserError(f"{origin}: top1 = {top1}: must be a percentage from 0 to 100")
    arm = arms.setdefault(name, Arm(bool(pretrain_seed)))
    if arm.pretrained != bool(pretrain_seed):
        raise UserError(f"{origin}: arm {name} has runs with and without a pretrain_seed; give them two names")
    scores = arm.scores.setdefault(size, {}).setdefault(pretrain_seed or finetune_seed, {})
    if finetune_seed in scores:
        which = f"pretrain_seed {pretrain_seed or 'none'}, finetune_seed {finetune_seed}, size {size}"
        raise UserError(f"{origin}: a second result of arm {name}, {which}; give each run once")
    scores[finetune_seed] = top1


def confounds(base: Arm, arm: Arm, factors: list[str]) -> tuple[dict[str, str], str]:
    """What differs between two arms, or within one, and a warning if that is more than one studied factor ("": fair).

    Args:
        factors: keys, or beginnings of keys up to a dot, or several joined by "+"; none: any one key may be the factor.
    """
    if not base.facts or not arm.facts:
        return {}, "not checked: no configs"
    values = [one.told() for one in (base, arm)]
    if base.pretrained != arm.pretrained:  # the pretraining as a whole is what differs
        values = [{key: text for key, text in one.items() if not key.startswith("pretraining.")} for one in values]
    shared = values[0].keys() & values[1].keys()
    differences = differing(*values) | {key: (values[0][key],) * 2 for key in shared & base.told(2).keys()}
    mine = {key: pair for key, pair in differences.items() if key in shared or not key.startswith("pretraining's")}
    told = {key: f"{before} -> {after}" for key, (before, after) in mine.items()}
    recipe = [key for key in told if not is_provenance(key)]
    fair = len(recipe) <= 1 if not factors else any(covers(factor, recipe) for factor in factors)
    warnings = [] if fair else ["more than the studied factor differs"]
    warnings += [f"another {key}" for key in told if is_provenance(key)]
    return told, "; ".join(warnings)


def covers(factor: str, keys: list[str]) -> bool:
    parts = factor.split("+")
    return all(key in parts or key.startswith(tuple(f"{part}." for part in parts)) for key in keys)


def pairs_to_compare(arms: dict[str, Arm], baselines: list[str], factors: list[str]) -> list[tuple[str, str]]:
    """(arm, baseline): of several baselines an arm meets those it differs from in a studied factor alone, else all."""
    unknown = [name for name in baselines if name not in arms]
    if unknown:
        raise UserError(f"--baseline {' '.join(unknown)}: no such arm; there are: {', '.join(arms)}")
    found = []
    for name, arm in arms.items():
        others = [base for base in baselines if base != name and (name, base) not in [(b, a) for a, b in found]]
        fair = [base for base in others if not confounds(arms[base], arm, factors)[1].startswith("more")]
        found += [(name, base) for base in (fair if len(baselines) > 1 and fair else others)]
    return found


def summarize(arms: dict[str, Arm], baselines: list[str], factors: list[str], difference: float | None) -> dict:
    """Everything as plain containers, without a NaN: by size the arms, their comparisons, and notes in words."""
    pairs = pairs_to_compare(arms, baselines, factors)
    sizes = sorted({size for arm in arms.values() for size in arm.scores}, key=lambda size: (len(size), size))
    summary = {}
    for size in sizes:
        there = {name: arm.units(size) for name, arm in arms.items() if size in arm.scores}
        described = {name: describe(units, arms[name].pretrained) for name, units in there.items()}
        for name, arm in described.items():
            arm["notes"] += [f"its runs differ in {key}: {seen}" for key, seen in arms[name].told(2).items()]
        rows = []
        alike = {pair: arms[pair[0]].pretrained == arms[pair[1]].pretrained for pair in pairs}
        cells = {pair: (there[pair[0]], there[pair[1]], alike[pair]) for pair in pairs if there.keys() >= {*pair}}
        tests = sum(compare(*cell, plan=False)["p"] is not None for cell in cells.values())
        for (name, base), cell in cells.items():
            told, warning = confounds(arms[base], arms[name], factors)
            rows.append({"arm": name, "baseline": base, "differs_in": told, "warning": warning})
            rows[-1] |= compare(*cell, max(1, tests), difference)
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = corrected
        summary[size] = {"arms": described, "comparisons": rows}
    return summary


def to_csv(arms: dict[str, Arm]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, arm in arms.items():
        for size, units in arm.scores.items():
            for unit, scores in units.items():
                writer.writerows((name, unit if arm.pretrained else "", seed, size, s) for seed, s in scores.items())
    return text.getvalue()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUNS_OR_CSV")
    parser.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    parser.add_argument("--baseline", nargs="+", default=[], metavar="ARM", help="what every other arm is compared to")
    parser.add_argument("--factor", nargs="+", default=[], metavar="KEY", help="keys studied; KEY+KEY is one factor")
    parser.add_argument("--difference", type=float, metavar="D", help="how many units would detect D points?")
    arguments = parser.parse_args(argv)
    if arguments.difference is not None and not arguments.difference > 0:
        raise UserError(f"--difference {arguments.difference}: must be above 0 points")
    arms = read_arms(arguments.paths)
    if arguments.format == "csv":
        return print(to_csv(arms), end="")
    summary = summarize(arms, arguments.baseline, arguments.factor, arguments.difference)
    in_json = arguments.format == "json"
    print(json.dumps(summary, indent=2, allow_nan=False) if in_json else to_markdown(summary, arguments.difference))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
