"""What a study's YAML asks for: every run of its grid, with its command line and its config."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import FinetuneConfig, PretrainConfig, Problems, knob
from utils.config import Values, build, keys_affecting, parse_command_line, read_yaml, to_dict, yaml_text
from utils.errors import UserError
from utils.run.reading import differing, flat, read_json, resolved_config

# A finished run may differ from its plan in these: where it worked, and what it left behind.
FREE = keys_affecting(PretrainConfig, "nothing") | keys_affecting(FinetuneConfig, "nothing")
# These a plan may leave open (null or auto). The run then writes the value that it has chosen.
CHOSEN_BY_THE_RUN = ("train.images_per_device", "train.precision", "model.channels_last")


@dataclass(frozen=True)
class GridOptions:
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

    study: GridOptions = GridOptions()

    def problems(self) -> Problems:
        problems = []
        for key in ("pretrain_seeds", "finetune_seeds", "scratch_seeds"):
            seeds = getattr(self.study, key)
            if len(set(seeds)) < len(seeds):
                problems.append((f"study.{key}", "must not name a seed twice"))
        return problems


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of the study.

    Args:
        entry: "pretrain.py" or "finetune.py".
        words: of its command line.
        needs: the pretraining whose weights it starts from.
    """

    entry: str
    folder: Path
    words: list[str]
    config: PretrainConfig | FinetuneConfig
    needs: "PlannedRun | None"

    def finished(self) -> bool:
        """Whether there is a result. Raises: UserError if it is one of another config than the study's."""
        if not (self.folder / "result.json").is_file():
            return False
        free = FREE
        if self.needs is None:  # else its weights are those of a run of the study, wherever that lies
            free = FREE - {"run.weights"}
        changed = changes(self.folder, self.config, free)
        if self.needs:
            pretraining = changes(self.folder / "pretraining.yaml", self.needs.config, FREE)
            for key, pair in pretraining.items():
                changed[f"pretraining's {key}"] = pair
        if changed:
            differences = "; ".join(
                f"{key}: {yaml_text(before)} -> {yaml_text(now)}" for key, (before, now) in changed.items()
            )
            raise UserError(
                f"{self.folder}: finished with another config than the study's ({differences}); "
                "take the change back, or remove this folder, or give another --output-dir"
            )
        return True

    def seconds(self) -> float | None:
        """How long the run took. None: it has not finished, or was resumed, so that only its last part was timed."""
        result = read_json(self.folder / "result.json")
        if result.get("resumed"):
            return None
        return result.get("seconds")


def changes(path: Path, config: PretrainConfig | FinetuneConfig, free: frozenset[str]) -> dict[str, tuple]:
    """The keys in which a finished run differs from its plan, as key -> (before, planned).

    Args:
        path: the run's folder, or a YAML file with its config.
        config: as planned.
        free: keys that may differ.
    """
    planned = flat(to_dict(config))
    changed = differing(resolved_config(str(path)), planned)
    for key in free & changed.keys():
        del changed[key]
    for key in CHOSEN_BY_THE_RUN:
        if planned[key] in (None, "auto"):
            changed.pop(key, None)
    before, most = changed.get("train.images_per_device", (None, None))
    if before is not None and most is not None and before < most:  # a run takes fewer where the most does not divide
        del changed["train.images_per_device"]
    return changed


@dataclass
class Study:
    """A study as its YAML states it.

    Args:
        path: of the YAML, for errors.
        output: the folder for all runs.
        pretrainings: name -> words of pretrain.py's command line.
        arms: name -> "finetune": words of finetune.py's command line, and "pretraining": one of these names.
    """

    path: str
    output: Path
    grid: GridOptions
    pretrainings: dict[str, Any]
    arms: dict[str, Any]
    runs: list[PlannedRun] = field(default_factory=list)  # each pretraining before its finetunings

    def check(self, good: bool, key: str, problem: str) -> None:
        if not good:
            raise UserError(f"{self.path}: {key}: {problem}")

    def check_names(self) -> None:
        """Raises: UserError if pretrainings and arms do not fit together."""
        self.check(bool(self.arms), "arms", "must name at least one arm")
        for name, words in self.pretrainings.items():
            is_text = isinstance(words, str)
            self.check(is_text, f"pretrainings.{name}", "must be words of pretrain.py's command line")
        for name, arm in self.arms.items():
            problem = "must hold `finetune: words`, and `pretraining: NAME` unless it has none"
            self.check(is_arm(name, arm), f"arms.{name}", problem)
            known = ", ".join(self.pretrainings) or "none"
            if "pretraining" in arm:
                is_known = arm["pretraining"] in self.pretrainings
                self.check(is_known, f"arms.{name}.pretraining", f"must be one of {known}")
        used = {arm["pretraining"] for arm in self.arms.values() if "pretraining" in arm}
        self.check(used == set(self.pretrainings), "pretrainings", "one is used by no arm; remove it")
        self.check(set(self.grid.baseline) <= set(self.arms), "study.baseline", "must name arms")

    def plan_runs(self) -> None:
        """Raises: UserError naming the pretraining or arm whose command line is wrong."""
        for seed in self.grid.pretrain_seeds:
            self.plan_pretrainings(seed)
        for seed in self.grid.scratch_seeds:
            for name, arm in self.arms.items():
                if "pretraining" not in arm:
                    self.runs.append(self.finetuning(name, seed, needs=None, folder=f"f{seed}"))

    def plan_pretrainings(self, seed: int) -> None:
        """Every pretraining with this seed, and their finetunings."""
        pretrained = {}
        for name, words in self.pretrainings.items():
            pretrained[name] = self.planned(
                key=f"pretrainings.{name}",
                entry="pretrain.py",
                folder=self.output / "pretrain" / name / f"p{seed}",
                words=f"{self.grid.pretrain} {words} run.seed={seed}",
                needs=None,
            )
        self.runs += pretrained.values()
        for name, arm in self.arms.items():
            if "pretraining" not in arm:
                continue
            for number in self.grid.finetune_seeds:
                finetune_seed = 1000 * seed + number  # so no two finetunings of an arm share their luck
                needs = pretrained[arm["pretraining"]]
                self.runs.append(self.finetuning(name, finetune_seed, needs, folder=f"p{seed}_f{finetune_seed}"))

    def finetuning(self, arm: str, seed: int, needs: PlannedRun | None, folder: str) -> PlannedRun:
        return self.planned(
            key=f"arms.{arm}",
            entry="finetune.py",
            folder=self.output / "finetune" / arm / folder,
            words=f"{self.grid.finetune} {self.arms[arm].get('finetune', '')} run.seed={seed}",
            needs=needs,
        )

    def planned(self, *, key: str, entry: str, folder: Path, words: str, needs: PlannedRun | None) -> PlannedRun:
        """A run with its config. Raises: UserError naming `key` if the command line is wrong."""
        command_line = [*shlex.split(words), "--output-dir", str(folder)]
        if needs:
            command_line += ["--weights", str(needs.folder / "checkpoints" / "last.pt")]
        config_class = PretrainConfig if entry == "pretrain.py" else FinetuneConfig
        try:
            config = parse_command_line(config_class, command_line, "")
        except UserError as error:
            raise UserError(f"{self.path}: {key}: {error}") from error
        return PlannedRun(entry, folder, command_line, config, needs)


def is_arm(name: str, arm: object) -> bool:
    """Whether an arm has a name for a folder, and holds texts under the keys that arms have."""
    if "/" in name or not isinstance(arm, dict) or not arm.keys() <= {"pretraining", "finetune"}:
        return False
    return all(isinstance(value, str) for value in arm.values())


def taken_section(values: Values, section: str) -> dict[str, Any]:
    """The keys of one section, taken out of `values`."""
    keys = [key for key in values if key.startswith(f"{section}.")]
    return {key.removeprefix(f"{section}."): values.pop(key)[0] for key in keys}


def read_study(path: str, output: Path) -> Study:
    """A study with its runs. Raises: UserError naming the key that is wrong."""
    values = read_yaml(path)
    pretrainings, arms = taken_section(values, "pretrainings"), taken_section(values, "arms")
    study = Study(path, output, build(StudyConfig, values).study, pretrainings, arms)
    study.check_names()
    study.plan_runs()
    return study
