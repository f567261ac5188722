"""What a study's YAML asks for: its grid, and the run of each cell with its command line and config."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from configs.schema import FREE_TO_CHANGE, FinetuneConfig, PretrainConfig, knob
from scripts.config_diff import differing, read_json, resolved
from utils.config import build, parse_command_line, read_yaml, show, to_dict
from utils.errors import UserError
from utils.run.job import flat

# These may change when a run is resumed, but give another result.
SCORING = {"data.val_resize_size", "data.val_crop_size", "run.select_val_resize_size", "run.use_ema"}


@dataclass(frozen=True)
class Grid:
    pretrain: str = knob("", "words of every pretraining's command line")
    finetune: str = knob("", "words of every finetuning's command line")
    pretrain_seeds: tuple[int, ...] = knob((0,), "of each pretraining", low=0)
    finetune_seeds: tuple[int, ...] = knob((0,), "of each pretraining's finetunings", low=0, high=999)
    scratch_seeds: tuple[int, ...] = knob((0,), "of the arms without pretraining", low=0)
    baseline: tuple[str, ...] = knob(("scratch",), "arms that others are compared to")
    factor: tuple[str, ...] = knob(("pretraining",), "keys whose effect is studied")
    processes: int = knob(1, "GPUs, and so processes, of a run; on a CPU it is one process", low=1)
    pretrain_minutes: float = knob(60.0, "expected, of a pretraining", "minutes", above=0)
    finetune_minutes: float = knob(60.0, "expected, of a finetuning with its evaluation", "minutes", above=0)


@dataclass(frozen=True)
class StudyConfig:
    """The section `study` of a study's YAML; `pretrainings` and `arms` hold command lines under names of your own."""

    study: Grid = Grid()

    def problems(self):
        seeds = ("pretrain_seeds", "finetune_seeds", "scratch_seeds")
        doubled = [key for key in seeds if len(set(getattr(self.study, key))) < len(getattr(self.study, key))]
        return [(f"study.{key}", "must not name a seed twice") for key in doubled]


@dataclass(frozen=True, eq=False)
class Planned:
    """A run of the study: `entry` with `words`, from the weights of the run it `needs`."""

    entry: str
    folder: Path
    words: list[str]
    config: PretrainConfig | FinetuneConfig
    needs: "Planned | None"

    def finished(self) -> bool:
        """Whether there is a result. Raises: UserError if it is one of another config than the study's."""
        if not (self.folder / "result.json").is_file():
            return False
        changed = changes(self.folder, self.config, self.needs is None)
        if self.needs:
            pretraining = changes(self.folder / "pretraining.yaml", self.needs.config, False)
            changed |= {f"pretraining's {key}": pair for key, pair in pretraining.items()}
        if changed:
            listed = "; ".join(f"{key}: {show(before)} -> {show(now)}" for key, (before, now) in changed.items())
            remedy = "take the change back, or remove this folder, or give another --output-dir"
            raise UserError(f"{self.folder}: finished with another config than the study's ({listed}); {remedy}")
        return True

    def seconds(self) -> float | None:
        """What the run took; None if it has not finished, or was resumed, so that its last part alone was timed."""
        result = read_json(self.folder / "result.json")
        return None if result.get("resumed") else result.get("seconds")


def changes(path: Path, config, weights: bool) -> dict[str, tuple]:
    """The keys that matter in which a finished run differs from its plan; what the plan leaves open it may settle."""
    planned, free = flat(to_dict(config)), FREE_TO_CHANGE - SCORING - ({"run.weights"} if weights else set())
    open_keys = {key for key in ("train.images_per_device", "train.precision") if planned[key] in (None, "auto")}
    found = differing(resolved(str(path)), planned)
    return {key: pair for key, pair in found.items() if key not in free | open_keys}


def read_study(path: str, output: Path) -> tuple[Grid, list[Planned]]:
    """Settings and runs, each pretraining before its finetunings. Raises: UserError naming the key that is wrong."""
    values, named = read_yaml(path), {"pretrainings": {}, "arms": {}}
    for section, texts in named.items():
        for key in [key for key in values if key.startswith(f"{section}.")]:
            texts[key.removeprefix(f"{section}.")] = values.pop(key)[0]
    grid = build(StudyConfig, values).study
    check(bool(named["arms"]), path, "arms", "must name at least one arm")
    for name, words in named["pretrainings"].items():
        check(isinstance(words, str), path, f"pretrainings.{name}", "must be words of pretrain.py's command line")
    for name, arm in named["arms"].items():
        good = isinstance(arm, dict) and arm.keys() <= {"pretraining", "finetune"} and "/" not in name
        good = good and all(isinstance(value, str) for value in arm.values())
        check(good, path, f"arms.{name}", "must hold `finetune: words`, and `pretraining: NAME` unless it has none")
        known = arm.get("pretraining") in (None, *named["pretrainings"])
        check(known, path, f"arms.{name}.pretraining", f"must be one of {', '.join(named['pretrainings']) or 'none'}")
    used = {arm.get("pretraining") for arm in named["arms"].values()}
    check(used - {None} == set(named["pretrainings"]), path, "pretrainings", "one is used by no arm; remove it")
    check(set(grid.baseline) <= set(named["arms"]), path, "study.baseline", "must name arms")

    def finetuning(name: str, folder: str, seed: int, needs: Planned | None = None) -> Planned:
        words = f"{grid.finetune} {named['arms'][name].get('finetune', '')} run.seed={seed}"
        return planned(path, f"arms.{name}", "finetune.py", output / "finetune" / name / folder, words, needs)

    runs = []
    for p in grid.pretrain_seeds if named["pretrainings"] else ():
        pretrained = {}
        for name, words in named["pretrainings"].items():
            text, folder = f"{grid.pretrain} {words} run.seed={p}", output / "pretrain" / name / f"p{p}"
            pretrained[name] = planned(path, f"pretrainings.{name}", "pretrain.py", folder, text)
        runs += pretrained.values()
        for name, arm in named["arms"].items():
            for seed in (1000 * p + f for f in grid.finetune_seeds if "pretraining" in arm):
                runs.append(finetuning(name, f"p{p}_f{seed}", seed, pretrained[arm["pretraining"]]))
    scratch = [name for name, arm in named["arms"].items() if "pretraining" not in arm]
    runs += [finetuning(name, f"f{seed}", seed) for seed in grid.scratch_seeds for name in scratch]
    return grid, runs


def check(good: bool, path: str, key: str, what: str) -> None:
    if not good:
        raise UserError(f"{path}: {key}: {what}")


def planned(path: str, key: str, entry: str, folder: Path, text: str, needs: Planned | None = None) -> Planned:
    words = [*shlex.split(text), "--output-dir", str(folder)]
    words += ["--weights", str(needs.folder / "checkpoints" / "last.pt")] if needs else []
    try:
        config = parse_command_line(PretrainConfig if entry == "pretrain.py" else FinetuneConfig, words, "")
    except (UserError, SystemExit) as error:
        raise UserError(f"{path}: {key}: {error if isinstance(error, UserError) else 'see above'}") from error
    return Planned(entry, folder, words, config, needs)
